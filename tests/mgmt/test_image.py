"""What goes into the image, as data: it is whole, it is said once, and a change of it is another image."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import yaml

from mgmt.image import artifacts, base, inputs, provision
from mgmt.image.base import IMAGES, partitions
from mgmt.image.tools import HOUSE

DISK = yaml.safe_load((IMAGES / "disk.yaml").read_text())


def test_partitions_lie_one_after_the_other_and_leave_room_for_the_copy_of_the_table() -> None:
    layout = partitions(DISK["size_mib"], DISK["partitions"])
    end = 1
    for number, partition in enumerate(layout, 1):
        assert (partition.number, partition.first) == (number, end)
        end += partition.size
    assert end == DISK["size_mib"] - 1


def test_the_root_is_last_so_that_it_can_grow_and_logs_have_a_place_of_their_own() -> None:
    layout = partitions(DISK["size_mib"], DISK["partitions"])
    assert layout[-1].name == "root"
    assert layout[-1].size > 1000
    fstab = {line.split()[1]: line.split()[0] for line in (IMAGES / "tree/etc/fstab").read_text().splitlines()}
    assert fstab["/"] == "LABEL=root"
    assert fstab["/var/log"] == "LABEL=log"
    assert {"root", "log", "EFI"} <= {p.name for p in layout}


def test_every_package_says_what_it_is_there_for() -> None:
    for kind in ("bare", "image"):
        for package, why in base.packages(kind).items():  # type: ignore[arg-type]
            assert len(why) > 5, package
    assert base.packages("bare").items() < base.packages("image").items()


def test_only_apt_options_of_excluded_files_are_given_to_dpkg() -> None:
    lines = [s for s in (IMAGES / "excluded.txt").read_text().splitlines() if s and not s.startswith("#")]
    assert lines
    for line in lines:
        assert line.startswith(("path-exclude=/", "path-include=/")), line


def test_what_is_masked_says_why() -> None:
    for line in (IMAGES / "masked.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        kind, name, *why = line.split()
        assert kind in ("unit", "generator"), line
        assert why, line
        kinds = ("service", "socket", "timer", "mount", "automount", "path")
        assert kind == "generator" or name.rpartition(".")[2] in kinds, line


def test_every_program_of_the_image_that_outlives_a_release_is_there() -> None:
    for program in inputs.PROGRAMS:
        assert (HOUSE / "appliance" / f"{program}.py").exists(), program


@pytest.fixture(name="provisioned")
def _provisioned(tmp_path: Path) -> Path:
    provision.make_provision(tmp_path / "one.tar", b"the bundle", 1_700_000_000)
    return tmp_path / "one.tar"


def test_the_tree_is_roots_with_the_modes_that_git_knows(provisioned: Path) -> None:
    with tarfile.open(provisioned) as tar:
        members = {m.name: m for m in tar.getmembers()}
        assert tar.extractfile("agent.bundle").read() == b"the bundle"  # type: ignore[union-attr]
    for member in members.values():
        assert (member.uid, member.gid, member.mtime) == (0, 0, 1_700_000_000)
        assert member.issym() or member.mode in (0o644, 0o755)
    assert members["tree/usr/lib/narthex/agent"].mode == 0o755
    assert members["tree/usr/lib/narthex/closed.nft"].mode == 0o644
    masked = members["tree/etc/systemd/system/ssh.service"]
    assert masked.isreg()
    assert masked.size == 0
    assert "tree/usr/lib/narthex/appliance/seed.py" in members


def test_the_same_inputs_give_the_same_provision(provisioned: Path, tmp_path: Path) -> None:
    provision.make_provision(tmp_path / "other.tar", b"the bundle", 1_700_000_000)
    assert provisioned.read_bytes() == (tmp_path / "other.tar").read_bytes()


def test_a_wheel_more_is_another_system_and_their_order_is_not() -> None:
    assert inputs.system(["a", "b"]) == inputs.system(["b", "a"])
    assert inputs.system(["a", "b"]) != inputs.system(["a", "b", "c"])


def test_the_agents_code_is_no_input_of_the_system_but_its_early_programs_are() -> None:
    paths = {p.relative_to(HOUSE).as_posix() for p in inputs.system_files()}
    assert "appliance/seed.py" in paths
    assert "appliance/engine.py" not in paths
    assert "images/packages.yaml" in paths
    assert "packer/image.pkr.hcl" in paths


def test_a_listing_tells_kind_mode_owner_size_and_content(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir(mode=0o750)
    (tmp_path / "folder/a file").write_text("hello")
    (tmp_path / "link").symlink_to("folder/a file")
    told = {line.partition(" -")[0].partition(" l")[0].partition(" d")[0]: line for line in artifacts.listing(tmp_path)}
    assert "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824" in told["/folder/a file"]
    assert told["/link"].endswith("-> folder/a file")
    assert "drwxr-x---" in told["/folder"]


def test_images_differ_in_what_was_changed_added_or_removed_and_not_in_what_may_differ() -> None:
    before = ["/a -rw 0:0 1 aa", "/b -rw 0:0 1 bb", "/log/x -rw 0:0 1 cc", "/gone -rw 0:0 1 dd"]
    after = ["/a -rw 0:0 1 aa", "/b -rw 0:0 1 b2", "/log/x -rw 0:0 1 c2", "/new -rw 0:0 1 ee"]
    assert artifacts.differences(before, after, ["/log/"]) == ["/b", "/gone", "/new"]
    assert artifacts.differences(before, before, []) == []


def test_a_damaged_artifact_is_named(tmp_path: Path) -> None:
    (tmp_path / "good").write_text("good")
    (tmp_path / "bad").write_text("good")
    sums = "".join(f"{artifacts.sha512(tmp_path / n)}  {n}\n" for n in ("good", "bad", "good"))
    (tmp_path / artifacts.SUMS).write_text(sums + f"{'0' * 128}  absent\n")
    assert artifacts.check_sums(tmp_path) == ["absent is missing"]
    (tmp_path / "bad").write_text("evil")
    assert [w.split()[0] for w in artifacts.check_sums(tmp_path)] == ["bad", "absent"]
