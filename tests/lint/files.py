"""The files that the linters look at: what git tracks, and what it would track."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


MADE_HERE = {".cache", ".git", ".venv", "__pycache__"}


@cache
def tracked_files() -> tuple[Path, ...]:
    """Absolute paths of all files that are in git or would be added; of all files, where there is no git."""
    if (ROOT / ".git").exists():
        # The clone may belong to another user than root, who runs this.
        git = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
        listing = subprocess.run(
            [*git, "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
        ).stdout
        paths = {ROOT / name.decode() for name in listing.split(b"\0") if name}
    else:
        paths = {path for path in ROOT.rglob("*") if not MADE_HERE & set(path.relative_to(ROOT).parts)}
    return tuple(sorted(path for path in paths if path.is_file() and not path.is_symlink()))
