"""`python -m chaos [NAME …]`: attacks the promises, and fails where one is broken."""

import argparse
import asyncio
import datetime
import importlib
import os
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from chaos import report
from chaos.outcome import Outcome
from chaos.plan import Plan

SUITES = ("kill", "storage", "simulation", "clock", "upstream", "subscribers", "fuzz")
MINUTES = 10.0
FUZZ_SHARE = 1 / 8
QUICK_FUZZED, QUICK_FUZZ_SECONDS = 2, 2.0
BESIDE = tuple(name for name in SUITES if name != "subscribers")  # That one measures.
SIDE_BY_SIDE = 8


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


async def attack(name: str, plan: Plan) -> tuple[Outcome, float]:
    """One suite, and how many seconds it took; Outcome.not_run says why where it cannot be."""
    began = time.perf_counter()
    plan.folder.mkdir(parents=True)
    try:
        module = importlib.import_module(f"chaos.{name}")
    except ImportError as error:
        return Outcome(not_run=f"{error.name or name} is not installed"), 0.0
    if name == "fuzz":
        outcome = await asyncio.to_thread(_fuzz, module, plan)
    else:
        outcome = await module.run(plan)
    seconds = time.perf_counter() - began
    print(f"{name}: {seconds:.0f} s, {len(outcome.broken)} broken", flush=True)
    return outcome, seconds


def _fuzz(module: Any, plan: Plan) -> Outcome:
    """Every reader for a share of the minutes; or a few of them, by the seed, for seconds."""
    found: Outcome
    if plan.quick:
        names = random.Random(plan.seed).sample(module.NAMES, QUICK_FUZZED)
        found = module.fuzz(names, QUICK_FUZZ_SECONDS, plan.folder)
    else:
        found = module.run(plan.minutes * FUZZ_SHARE, plan.folder)
    return found


async def attack_all(names: Sequence[str], plan: Plan) -> dict[str, dict[str, Any]]:
    """Every suite, all beside each other but the one that measures."""
    found = {}
    beside = [name for name in names if name in BESIDE]
    shared = replace(plan, slots=asyncio.Semaphore(SIDE_BY_SIDE))
    for name, result in zip(
        beside, await asyncio.gather(*(attack(n, shared.of(n)) for n in beside)), strict=True
    ):
        found[name] = report.of(*result)
    for name in names:
        if name not in beside:
            found[name] = report.of(*await attack(name, plan.of(name)))
    return found


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
    found["suites"] = asyncio.run(attack_all(names, plan))
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
