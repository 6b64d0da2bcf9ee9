"""The agent's start in a machine, as its unit does it: the image's file, a release's programs, a /run of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from appliance import boot

FILE = Path(boot.__file__)


def test_the_agent_is_loaded_before_the_wait_and_run_after_it(tmp_path: Path) -> None:
    """As the unit starts it: the image's file, the release's programs, in namespaces of its own."""
    package = tmp_path / "release/appliance"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        "import os\n"
        "print('loaded', os.path.exists('/run/narthex/sshd.env'), flush=True)\n"
        "def main():\n    print('run', os.path.exists('/run/narthex/sshd.env'), flush=True)\n    return 3\n"
    )
    script = f"""
set -e
mount -t tmpfs none /run; mkdir /run/narthex
mount -t tmpfs none /opt; mkdir -p /opt/narthex/releases/1-a; ln -s releases/1-a /opt/narthex/current
(sleep 0.3; : >/run/narthex/sshd.env) &
NARTHEX_RELEASE=1-a PYTHONPATH={package.parent} exec {sys.executable} -P {FILE}
"""
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout.splitlines(), done.returncode) == (["loaded False", "run True"], 3), done.stderr


def test_without_a_seed_nothing_is_run(tmp_path: Path) -> None:
    package = tmp_path / "release/appliance"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("def main():\n    print('run', flush=True)\n    return 0\n")
    script = f"""
mount -t tmpfs none /run; mkdir /run/narthex; : >/run/narthex/trouble
exec {sys.executable} -P {FILE}
"""
    environ = os.environ | {"PYTHONPATH": str(package.parent), "NARTHEX_RELEASE": "1-a"}
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False, env=environ
    )
    assert (done.stdout, done.returncode) == ("", boot.NO_SEED)
    assert boot.TROUBLE in done.stderr
