"""Running the tools that build an image: each one's words in a log, its progress as a line on the terminal."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from mgmt.terminal import QUIET, print_line

HOUSE = Path(__file__).resolve().parents[2]
CACHE = "NARTHEX_CACHE"
SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LAST_WORDS = 20  # lines of a failed tool's output that its error shows


class ImageError(Exception):
    """An image that cannot be built, found or trusted; the message says where it went wrong and the remedy."""


def cache() -> Path:
    """Where images, wheels and downloads are kept between builds."""
    return Path(os.environ.get(CACHE) or "/var/cache/narthex")


class Workshop:
    """A folder to build in, and the log of all that was run there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "build.log"

    def run(
        self,
        argv: Sequence[str | Path],
        variables: Mapping[str, str] | None = None,
        seconds: float = 1800.0,
        folder: Path | None = None,
    ) -> str:
        """Run a tool to its end; its standard output. Raises ImageError with its last words where it fails."""
        name = str(argv[0])
        environment = {"PATH": SEARCH, "HOME": str(self.folder), "LANG": "C.UTF-8", "TMPDIR": str(self.folder)}
        environment |= {k: os.environ[k] for k in os.environ if k.lower().endswith("_proxy")} | dict(variables or {})
        if not shutil.which(name, path=SEARCH):
            raise ImageError(f"{name} is not installed; ./narthex installs it, or do so with this system's own tools")
        with self.log.open("ab") as log:
            log.write(f"\n$ {' '.join(map(str, argv))}\n".encode())
            log.flush()
            start = log.tell()
            try:
                done = subprocess.run(
                    [str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                    env=environment, timeout=seconds, check=False, cwd=folder or self.folder,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                raise ImageError(f"{name} did not end within {seconds:g} s; its words: {self.log}") from None
            log.seek(0, os.SEEK_END)
            log.write(done.stdout)
        if done.returncode:
            said = self.log.read_bytes()[start:].decode(errors="replace").strip().splitlines()
            words = "\n  ".join(said[-LAST_WORDS:])
            raise ImageError(f"{name} ended in {done.returncode}:\n  {words}\n  The whole log: {self.log}")
        return done.stdout.decode(errors="replace")


@contextmanager
def step(words: str) -> Iterator[None]:
    """A line before the work, and one with its seconds after it."""
    print_line(f"  {words} ...")
    started = time.monotonic()
    yield
    print_line(f"  {words}: ", (f"{time.monotonic() - started:.0f} s", QUIET))
