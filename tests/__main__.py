"""`./narthex test [--tier TIER] [pytest's arguments]`: every tier in order, the cheapest first.

But netns, which mostly waits, runs beside the ones before it, which mostly calculate; what it says comes after theirs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from mgmt.image.catalogue import for_tests
from tests.tier import ROOT, Outcome, Run, run_pytest, started, termination_as_interrupt

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
    with termination_as_interrupt(), beside(tiers, for_pytest) as others:
        for tier in tiers:
            print(f"\n== {tier}: {DESCRIPTIONS[tier]} ==", flush=True)
            outcome = others[tier].outcome() if tier in others else run_tier(tier, for_pytest)
            outcomes.append(outcome)
            skipped = f", {outcome.skipped} skipped" if outcome.skipped else ""
            told = f"-- {tier}: {outcome.passed} passed, {outcome.failed} failed{skipped}, {outcome.seconds:.1f} s"
            print(told, flush=True)

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


@contextmanager
def beside(tiers: Sequence[str], for_pytest: Sequence[str]) -> Iterator[dict[str, Run]]:
    """The tiers that run beside others, started."""
    if "netns" not in tiers[1:]:
        yield {}
        return
    with TemporaryDirectory(prefix="narthex-netns-") as directory:
        said = Path(directory) / "said"
        with started(arguments_of("netns", for_pytest), ENVIRONMENT, said) as run:
            yield {"netns": run}


def run_tier(tier: str, for_pytest: Sequence[str]) -> Outcome:
    """Run one tier."""
    if tier == "vm":
        print(f"the image: {for_tests().parent.name}", flush=True)  # built first, where it isn't in the cache
    return run_pytest(arguments_of(tier, for_pytest), ENVIRONMENT)


def arguments_of(tier: str, for_pytest: Sequence[str]) -> list[str]:
    """pytest's arguments for one tier. Paths among the ones given stand in for the tier's own."""
    arguments = ["-m", tier, *for_pytest]
    if tier == "vm":
        arguments.append(f"--timeout={VM_TIMEOUT_S}")
    if not any(is_path(argument) for argument in for_pytest):
        arguments += TIERS[tier]
        if tier == "unit":
            others = [path for name in TIERS if name != tier for path in TIERS[name]]
            arguments += [f"--ignore={path}" for path in others]
    return arguments


ENVIRONMENT = {"NARTHEX_TRIALS": os.environ.get("NARTHEX_TRIALS", "tenth")}
VM_TIMEOUT_S = 1200  # an emulated boot, on a busy machine


def is_path(argument: str) -> bool:
    return not argument.startswith("-") and (ROOT / argument.split("::")[0]).exists()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
