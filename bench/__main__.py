"""`python -m bench [NAME …]`: run the measurements and fail if any floor is missed."""

import argparse
import datetime
import gc
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop

from bench import (
    callbacks,
    claims,
    counts,
    deletes,
    deliveries,
    idle,
    latency,
    lists,
    minute,
    outgoing,
    pages,
    postgres,
    report,
    start,
    whole,
)
from bench.machine import LOAD_CORE, measure_noise, on_core
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
    "pages": pages.measure,
    "postgres": postgres.measure_callbacks,
    "postgres-start": start.measure_postgres,
    "claims": claims.measure,
    "deletes": deletes.measure,
    "whole": whole.measure,
    "two-processes": whole.measure_two,
    "minute": minute.measure,
}
ROUNDS, SECONDS = 3, 2.5
ROWS = 1_000_000
QUICK_ROUNDS, QUICK_SECONDS = 1, 1.5


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MEASUREMENTS))
    parser.add_argument("--quick", action="store_true", help="one short round, fewer rows")
    parser.add_argument("--rounds", type=int, help=f"rounds of each, {ROUNDS} by default")
    parser.add_argument(
        "--rows", type=int, default=ROWS, help=f"generations of `deletes` ({ROWS:,})"
    )
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in MEASUREMENTS]
    if unknown:
        parser.error(f"no such measurement: {', '.join(unknown)}")
    return arguments


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder on the project's disk (/tmp may be in memory), and delete it afterwards."""
    parent = Path(__file__).with_name("data")
    parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as path:
        yield Path(path)


async def run(names: list[str], plan: Plan, results: report.Results) -> None:
    """Run the named measurements one after the other, and add the results of each."""
    for name in names:
        noise = await measure_noise()
        if noise * 100 > report.NOISE_PERCENT:
            print(f"! other programs use {noise:.0%} of a core: expect noise")
        figures, began = Figures(), time.perf_counter()
        figures.add(others_percent_of_core=noise * 100)
        await MEASUREMENTS[name](plan, figures)
        gc.collect()
        results["measurements"][name] = report.summarize(figures)
        report.show(f"{name} ({time.perf_counter() - began:.0f} s)", results["measurements"][name])


def main() -> int:
    """Run the benchmarks; return 1 if a floor is missed."""
    arguments = parse_arguments()
    names = arguments.names or list(MEASUREMENTS)
    rounds = arguments.rounds or (QUICK_ROUNDS if arguments.quick else ROUNDS)
    seconds = QUICK_SECONDS if arguments.quick else SECONDS
    gc.disable()
    results = report.new_results(datetime.datetime.now(datetime.UTC).date().isoformat())
    try:
        with temporary_folder() as folder, on_core(LOAD_CORE):
            plan = Plan(rounds, seconds, folder, arguments.quick, arguments.rows)
            uvloop.run(run(names, plan, results))
    finally:  # A measurement that fails takes none of the others' results with it.
        if not arguments.quick and arguments.rows == ROWS:
            report.write(report.merge_earlier(results))
    missed = report.list_missed(results, names)
    for line in missed:
        print(f"MISSED {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
