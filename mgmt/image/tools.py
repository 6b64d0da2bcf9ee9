"""Running the tools that build an image: each one's words in a log, its progress as a line on the terminal."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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
            process = subprocess.Popen(
                [str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                env=environment, cwd=folder or self.folder, start_new_session=True,
            )  # fmt: skip
            try:
                out, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                _end_group(process)
                raise ImageError(f"{name} did not end within {seconds:g} s; its words: {self.log}") from None
            except BaseException:  # interrupted: no machine of a build goes on by itself
                _end_group(process)
                raise
            log.seek(0, os.SEEK_END)
            log.write(out)
        if process.returncode:
            said = self.log.read_bytes()[start:].decode(errors="replace").strip().splitlines()
            words = "\n  ".join(said[-LAST_WORDS:])
            raise ImageError(f"{name} ended in {process.returncode}:\n  {words}\n  The whole log: {self.log}")
        return out.decode(errors="replace")


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """A tool with all that it has started: Packer has a machine of its own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10.0)


@contextmanager
def step(words: str) -> Iterator[None]:
    """A line before the work, and one with its seconds after it."""
    print_line(f"  {words} ...")
    started = time.monotonic()
    yield
    print_line(f"  {words}: ", (f"{time.monotonic() - started:.0f} s", QUIET))
