"""`python -m bench [NAME …]`: measures, compares with the floors, and fails where one is missed."""

import argparse
import datetime
import gc
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop

from bench import callbacks, counts, deliveries, idle, latency, lists, outgoing, report, start
from bench.machine import LOAD_CORE, busy, on_core
from bench.plan import Figures, Measure, Plan

MEASUREMENTS: dict[str, Measure] = {
    "counts": counts.measure,
    "generator": callbacks.measure_generator,
    "callbacks": callbacks.measure,
    "one-client": callbacks.measure_one,
    "start": start.measure,
    "sender": outgoing.measure,
    "deliveries": deliveries.measure,
    "latency": latency.measure,
    "isolation": deliveries.measure_isolation,
    "polling": idle.measure_polling,
    "backlog": deliveries.measure_backlog,
    "idle": idle.measure,
    "lists": lists.measure,
}
ROUNDS, SECONDS = 3, 2.5
QUICK_ROUNDS, QUICK_SECONDS = 1, 1.5


def options() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MEASUREMENTS))
    parser.add_argument("--quick", action="store_true", help="one short round, fewer rows")
    parser.add_argument("--rounds", type=int, help=f"rounds of each, {ROUNDS} by default")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in MEASUREMENTS]
    if unknown:
        parser.error(f"no such measurement: {', '.join(unknown)}")
    return given


@contextmanager
def folder() -> Iterator[Path]:
    """A folder on the disk that the project is on, emptied on the way out."""
    parent = Path(__file__).with_name("data")
    parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as made:
        yield Path(made)


async def run(names: list[str], plan: Plan) -> report.Results:
    """Every measurement in turn."""
    results = report.fresh(datetime.datetime.now(datetime.UTC).date().isoformat())
    for name in names:
        others = await busy()
        if others * 100 > report.NOISE_PERCENT:
            print(f"! the cores are {others:.0%} busy with something else: expect noise")
        figures, began = Figures(), time.perf_counter()
        figures.add(others_percent_of_core=others * 100)
        await MEASUREMENTS[name](plan, figures)
        gc.collect()
        results["measurements"][name] = report.summed_up(figures)
        report.show(f"{name} ({time.perf_counter() - began:.0f} s)", results["measurements"][name])
    return results


def main() -> int:
    """Measure; 1 if a floor is missed."""
    given = options()
    names = given.names or list(MEASUREMENTS)
    rounds = given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS)
    seconds = QUICK_SECONDS if given.quick else SECONDS
    gc.disable()
    with folder() as made, on_core(LOAD_CORE):
        plan = Plan(rounds, seconds, made, given.quick)
        results = uvloop.run(run(names, plan))
    if not given.quick:
        report.write(report.with_older(results))
    missed = report.missed(results, names)
    for line in missed:
        print(f"MISSED {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
