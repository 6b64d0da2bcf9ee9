"""`./narthex bench ROOM [--json] [--check]`: figures side by side in one run, each with its floor."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

ROOMS = ("router", "image")


def main() -> int:
    parser = argparse.ArgumentParser(prog="narthex bench", description=__doc__)
    parser.add_argument("room", choices=ROOMS)
    parser.add_argument("--json", action="store_true", help="one JSON object with all figures")
    parser.add_argument("--check", action="store_true", help="print what misses its target last, and end in 1")
    given = parser.parse_args()
    from tests.bench.figures import show

    return show(import_module(f"tests.bench.{given.room}").run(), given.json, given.check)


if __name__ == "__main__":
    sys.exit(main())
