"""`python -m chaos [NAME …]`: attacks the promises, and fails where one is broken."""

import argparse
import asyncio
import datetime
import importlib
import os
import random
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from chaos import report
from chaos.outcome import Outcome
from chaos.plan import Plan

SUITES = ("kill", "storage", "simulation", "clock", "upstream", "subscribers", "fuzz")
MINUTES = 15.0


def options() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SUITES))
    parser.add_argument("--quick", action="store_true", help="some tries of each, 90 s in all")
    parser.add_argument("--seed", type=int, help="draws everything; printed if not given")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"about ({MINUTES:g})")
    parser.add_argument("--only", metavar="LABEL", help="the one try of a suite to make")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in SUITES]
    if unknown:
        parser.error(f"no such suite: {', '.join(unknown)}")
    if given.only and len(given.names) != 1:
        parser.error("--only needs the name of one suite")
    return given


def suite(name: str) -> Callable[[Plan], Outcome]:
    """The suite as a function; Outcome.not_run says why where it cannot be."""
    try:
        module = importlib.import_module(f"chaos.{name}")
    except ImportError as error:
        reason = f"{error.name or name} is not installed"
        return lambda _plan: Outcome(not_run=reason)
    if name == "fuzz":
        return lambda plan: module.run(plan.minutes * FUZZ_SHARE, plan.folder)
    run: Callable[[Plan], Awaitable[Outcome]] = module.run

    async def attack(plan: Plan) -> Outcome:
        return await run(plan)

    return lambda plan: asyncio.run(attack(plan))


FUZZ_SHARE = 1 / 8


def main() -> int:
    """Attack; 1 if a promise is broken."""
    given = options()
    names = given.names or list(SUITES)
    seed = random.randrange(1_000_000) if given.seed is None else given.seed
    minutes = 1.0 if given.quick else given.minutes
    data = Path(__file__).with_name("data")
    plan = Plan(seed, given.quick, minutes, data / f"{seed}-{os.getpid()}", only=given.only)
    found = report.fresh(
        datetime.datetime.now(datetime.UTC).date().isoformat(), seed, quick=given.quick
    )
    print(
        f"seed {seed}; the same again: python -m chaos {' '.join(names)} --seed {seed}"
        f"{' --quick' if given.quick else ''}",
        flush=True,
    )
    for name in names:
        shutil.rmtree(plan.of(name).folder, ignore_errors=True)
        plan.of(name).folder.mkdir(parents=True)
        began = time.perf_counter()
        outcome = suite(name)(plan.of(name))
        seconds = time.perf_counter() - began
        found["suites"][name] = report.of(outcome, seconds)
        print(f"{name}: {seconds:.0f} s, {len(outcome.broken)} broken", flush=True)
    report.show(found)
    if report.is_broken(found):
        print(f"The files of what broke are in {plan.folder}.")
    else:
        shutil.rmtree(plan.folder, ignore_errors=True)
    if given.only is None:
        report.write(found)
    if not given.quick and set(names) == set(SUITES):
        report.write_document(found)
    return 1 if report.is_broken(found) else 0


if __name__ == "__main__":
    raise SystemExit(main())
