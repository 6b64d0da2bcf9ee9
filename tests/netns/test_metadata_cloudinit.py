"""cloud-init's own code in a guest: its CloudStack data source, and its crawl of EC2's paths, get everything.

The code is Debian's packages for this host, unpacked into the cache and not installed: no service comes with it.
"""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mgmt.image.tools import cache
from tests.bed import wait_for
from tests.netns.stage import LAN, WEB, Json, Stage, office
from tests.netns.test_metadata import KEYS, get, host

PACKAGES = (
    "cloud-init", "python3-yaml", "python3-requests", "python3-urllib3", "python3-idna", "python3-certifi",
    "python3-chardet", "python3-configobj", "python3-six",
)  # fmt: skip
BINARY = b"\x1f\x8b" + random.Random(6).randbytes(1 << 16)
VALUES = {"availability-zone": "zone 1", "service-offering": "Small Instance", "cloud-identifier": "CloudStack-(e5b5)"}
# $1: the network's name server; $2: a folder for resolv.conf and whatever cloud-init keeps; $3: the program
IN_GUEST = """
set -e
mkdir -p "$2"
echo "nameserver $1" >"$2/resolv.conf"
mount --bind "$2/resolv.conf" /etc/resolv.conf
exec /usr/bin/python3 -S -s -c "$3" "$2"
"""
CLOUDSTACK = """
import base64, json, sys
from cloudinit import distros, helpers
from cloudinit.sources.DataSourceCloudStack import DataSourceCloudStack
paths = helpers.Paths({"cloud_dir": sys.argv[1], "run_dir": sys.argv[1]})
source = DataSourceCloudStack({}, distros.fetch("debian")("debian", {}, paths), paths)
got = source._get_data()
print(json.dumps({
    "got": got, "server": source.metadata_address, "user_data": base64.b64encode(source.userdata_raw).decode(),
    "metadata": source.metadata, "keys": source.get_public_ssh_keys(), "config": source.get_config_obj(),
    "instance": source.get_instance_id(), "zone": source.availability_zone,
}))
"""
EC2 = """
import base64, json
from cloudinit.sources import normalize_pubkey_data
from cloudinit.sources.helpers import ec2
at = "http://169.254.169.254"
told = {v: ec2.get_instance_metadata(v, at) for v in ("2009-04-04", "2021-03-23", "latest")}
print(json.dumps({
    "metadata": told, "keys": {v: normalize_pubkey_data(m["public-keys"]) for v, m in told.items()},
    "user_data": base64.b64encode(ec2.get_instance_userdata("2009-04-04", at)).decode(),
}))
"""


@pytest.fixture(scope="module", name="code")
def code_fixture() -> Path:
    """The folder with cloud-init's packages."""
    tree = cache() / "tests" / "cloud-init"
    code = tree / "usr/lib/python3/dist-packages"
    if not (code / "cloudinit").exists():
        shutil.rmtree(tree, ignore_errors=True)
        new = tree.with_name(f"cloud-init.{os.getpid()}")
        new.mkdir(parents=True)
        subprocess.run(("apt-get", "-q", "download", *PACKAGES), cwd=new, check=True, capture_output=True)
        for package in new.glob("*.deb"):
            subprocess.run(("dpkg", "-x", package, new), check=True)
            package.unlink()
        new.rename(tree)
    return code


@pytest.fixture(scope="module", name="stage")
def stage_fixture() -> Iterator[Stage]:
    with Stage() as stage:
        word = {"id": "p-1", "value": "S3cret-of-web"}
        told = {"user_data": base64.b64encode(BINARY).decode(), "ssh_keys": KEYS, "password": word, "values": VALUES}
        stage.push(office(metadata=True, dns=True, domain="office.example"), host("web", told))
        wait_for(lambda: get(stage.web, "/")[0] == 200)
        yield stage


def run(stage: Stage, code: Path, folder: Path, program: str) -> Json:
    variables = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(code), "PYTHONDONTWRITEBYTECODE": "1"}
    argv = ("unshare", "--mount", "--propagation", "private", "sh", "-c", IN_GUEST, "sh", LAN, str(folder), program)
    with stage.web.entered():
        done = subprocess.run(argv, env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_cloudstack_data_source_gets_everything(stage: Stage, code: Path, tmp_path: Path) -> None:
    found = run(stage, code, tmp_path / "first", CLOUDSTACK)
    assert found["got"] is True
    assert found["server"] == f"http://{LAN}/", "by the name data-server"
    assert base64.b64decode(found["user_data"]) == BINARY
    own = {"instance-id": "vm-web", "local-hostname": "web", "local-ipv4": WEB, "mac": "02:00:00:00:0b:05"}
    assert found["metadata"] == {**own, **VALUES, "public-keys": KEYS}
    assert found["keys"] == KEYS
    assert found["instance"] == "vm-web"
    assert found["zone"] == "zone 1"
    assert found["config"] == {"ssh_pwauth": True, "password": "S3cret-of-web", "chpasswd": {"expire": False}}
    # It has acknowledged the password, so its next boot is given none; all else is as before.
    again = run(stage, code, tmp_path / "second", CLOUDSTACK)
    assert again == {**found, "config": {}}


def test_the_paths_of_ec2_are_crawled_whole(stage: Stage, code: Path, tmp_path: Path) -> None:
    found = run(stage, code, tmp_path, EC2)
    assert base64.b64decode(found["user_data"]) == BINARY
    for version, told in found["metadata"].items():
        assert found["keys"][version] == KEYS
        assert {**told, "public-keys": ""} == {
            "instance-id": "vm-web", "local-hostname": "web", "local-ipv4": WEB, "mac": "02:00:00:00:0b:05",
            **VALUES, "public-keys": "",
        }  # fmt: skip
