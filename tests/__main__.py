"""`./narthex test [--tier TIER] [pytest's arguments]`: every tier in order, the cheapest first."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from mgmt.image.catalogue import for_tests
from tests.tier import ROOT, Outcome, run_pytest

# Each with its directories; the unit tier is all that the others do not name.
TIERS = {
    "lint": ["tests/lint"],
    "unit": ["tests"],
    "property": ["tests/property"],
    "netns": ["tests/netns"],
    "vm": ["tests/vm"],
}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="./narthex test", description=__doc__, allow_abbrev=False)
    parser.add_argument("--tier", choices=TIERS, action="append", help="only this tier; may be repeated")
    ours, for_pytest = parser.parse_known_args(argv)
    tiers = [tier for tier in TIERS if ours.tier is None or tier in ours.tier]

    outcomes: list[Outcome] = []
    for tier in tiers:
        print(f"\n== {tier}: {DESCRIPTIONS[tier]} ==", flush=True)
        outcome = run_tier(tier, for_pytest)
        outcomes.append(outcome)
        skipped = f", {outcome.skipped} skipped" if outcome.skipped else ""
        print(f"-- {tier}: {outcome.passed} passed, {outcome.failed} failed{skipped}, {outcome.seconds:.1f} s")

    passed = sum(outcome.passed for outcome in outcomes)
    failed = sum(outcome.failed for outcome in outcomes)
    if passed + failed == 0:
        print("\nno test was run: that is a failure")
    print(f"\n{passed} passed, {failed} failed", flush=True)
    return 0 if passed and not failed else 1


DESCRIPTIONS = {
    "lint": "linters and import rules",
    "unit": "no process, no socket",
    "property": "oracle, trace and kernels agree",
    "netns": "real kernel, real daemons, real packets",
    "vm": "the built image under QEMU",
}


def run_tier(tier: str, for_pytest: Sequence[str]) -> Outcome:
    """Run one tier. Paths among pytest's arguments stand in for the tier's own."""
    arguments = ["-m", tier, *for_pytest]
    if tier == "vm":
        print(f"the image: {for_tests().parent.name}", flush=True)  # built first, where it isn't in the cache
        arguments.append(f"--timeout={VM_TIMEOUT_S}")
    if not any(is_path(argument) for argument in for_pytest):
        paths = [path for path in TIERS[tier] if (ROOT / path).is_dir()]
        if not paths:
            return Outcome(0, 0, 0, 0.0, 0)
        arguments += paths
        if tier == "unit":
            others = [path for name in TIERS if name != tier for path in TIERS[name]]
            arguments += [f"--ignore={path}" for path in others]
    trials = os.environ.get("NARTHEX_TRIALS", "tenth")
    return run_pytest(arguments, {"NARTHEX_TRIALS": trials})


VM_TIMEOUT_S = 1200  # an emulated boot, on a busy machine


def is_path(argument: str) -> bool:
    return not argument.startswith("-") and (ROOT / argument.split("::")[0]).exists()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
