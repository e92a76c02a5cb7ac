"""`python -m chaos [NAME …]`: attack the promises and fail if one is broken."""

import argparse
import asyncio
import datetime
import importlib
import os
import random
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from chaos import report
from chaos.outcome import Outcome
from chaos.plan import Plan, UnknownTryError

SUITES = (
    *("kill", "storage", "simulation", "overlaps", "clock", "upstream", "rows", "entrance", "stop"),
    *("fuzz", "freeze", "processes", "subscribers", "neighbours"),
)
MINUTES = 10.0
ALONE = ("freeze", "processes", "subscribers", "neighbours")  # Which measure times.
SIDE_BY_SIDE = 8


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SUITES))
    parser.add_argument("--quick", action="store_true", help="a few tries of each, in four minutes")
    parser.add_argument("--seed", type=int, help="the seed of all randomness; random by default")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"about, in all ({MINUTES:g})"
    )
    parser.add_argument("--only", metavar="LABEL", help="run only this try of a suite")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in SUITES]
    if unknown:
        parser.error(f"no such suite: {', '.join(unknown)}")
    if arguments.only and len(arguments.names) != 1:
        parser.error("--only needs the name of one suite")
    return arguments


async def attack(name: str, plan: Plan) -> tuple[Outcome, float]:
    """Run a suite; return its outcome and the seconds it took."""
    began = time.perf_counter()
    plan.folder.mkdir(parents=True)
    try:
        module = importlib.import_module(f"chaos.{name}")
    except ImportError as error:
        return Outcome(not_run=f"{error.name or name} is not installed"), 0.0
    if name == "fuzz":
        outcome = await asyncio.to_thread(module.run, plan)
    else:
        outcome = await module.run(plan)
    seconds = time.perf_counter() - began
    print(f"{name}: {seconds:.0f} s, {len(outcome.broken)} broken", flush=True)
    return outcome, seconds


async def attack_all(names: Sequence[str], plan: Plan) -> dict[str, dict[str, Any]]:
    """Run the suites side by side, then one after the other those that measure speed."""
    suites = {}
    beside = [name for name in names if name not in ALONE]
    shared = replace(plan, slots=asyncio.Semaphore(SIDE_BY_SIDE))
    for name, result in zip(
        beside, await asyncio.gather(*(attack(n, shared.for_suite(n)) for n in beside)), strict=True
    ):
        suites[name] = report.summarize(*result)
    for name in names:
        if name in ALONE:
            suites[name] = report.summarize(*await attack(name, plan.for_suite(name)))
    return suites


def main() -> int:
    """Run the suites; return 1 if a promise is broken."""
    arguments = parse_arguments()
    names = arguments.names or list(SUITES)
    seed = random.randrange(1_000_000) if arguments.seed is None else arguments.seed
    minutes = 1.0 if arguments.quick else arguments.minutes
    data = Path(__file__).with_name("data")
    folder = data / f"{seed}-{os.getpid()}"
    plan = Plan(seed, arguments.quick, minutes, folder, only=arguments.only)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    results = report.new_report(today, seed, quick=arguments.quick)
    print(
        f"seed {seed}; to repeat: python -m chaos {' '.join(names)} --seed {seed}"
        f"{' --quick' if arguments.quick else ''}",
        flush=True,
    )
    try:
        results["suites"] = asyncio.run(attack_all(names, plan))
    except UnknownTryError as error:
        print(error, file=sys.stderr)
        shutil.rmtree(plan.folder, ignore_errors=True)
        return 2
    report.show(results)
    if report.is_broken(results):
        print(f"The files of the broken tries are in {plan.folder}.")
    else:
        shutil.rmtree(plan.folder, ignore_errors=True)
    if arguments.only is None:
        report.write(results)
    if not arguments.quick and set(names) == set(SUITES):
        report.write_document(results)
    return 1 if report.is_broken(results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
