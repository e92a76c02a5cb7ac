"""Coverage-guided fuzzing (atheris) of all code that reads untrusted bytes (tests/fuzz/targets.py).

`python -m chaos.fuzz [TARGET …] [--seconds N]`; with `--input FILE`, one input is read once.
"""

import argparse
import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from chaos.outcome import Outcome
from chaos.plan import Plan

ROOT = Path(__file__).resolve().parent.parent
MODULES = ("service", "tests.fuzz")
NAMES = (
    "upstream",
    "response",
    "answer",
    "retry-after",
    "token",
    "setting",
    "signature",
    "log",
    "callback",
    "request",
)
BYTES_MAX = 8_192  # Of an input.
INPUT_SECONDS, MEGABYTES = 10, 2_048  # The limits of one input; seconds of the processor.
HANG_SECONDS = 180  # An input that hangs takes longer than that, on a busy machine too.
GRACE_SECONDS = 60
QUICK_INPUTS = 1_000  # Of each target in a quick run.
SHARE = 1 / 8  # Of the minutes of a run of all suites.
PROMISE = "any bytes get an expected, bounded answer without secrets"


class Limits(NamedTuple):
    """When to stop, and what to begin with; the defaults mean what they mean to libFuzzer."""

    seconds: int  # Of each target.
    inputs: int = -1  # Without limit.
    seed: int = 0  # A random one.


def run(plan: Plan) -> Outcome:
    """Fuzz every target in turn; failing inputs are stored below the plan's folder."""
    if plan.quick:  # A number of inputs instead of a time, so that the seed repeats the run.
        return fuzz(NAMES, Limits(GRACE_SECONDS, QUICK_INPUTS, plan.seed + 1), plan.folder)
    seconds = max(1, round(plan.minutes * 60 * SHARE / len(NAMES)))
    return fuzz(NAMES, Limits(seconds), plan.folder)


def fuzz(names: Sequence[str], limits: Limits, folder: Path) -> Outcome:
    """Fuzz each target in its own process."""
    total = Outcome()
    if importlib.util.find_spec("atheris") is None:
        total.not_run = "atheris is not installed: it has wheels for Linux only"
        return total
    for name in names:
        total.add(_fuzz_one(name, limits, folder / name))
    return total


def _fuzz_one(name: str, limits: Limits, folder: Path) -> Outcome:
    """Fuzz one target; each input that fails is a broken promise."""
    outcome, corpus, failed = Outcome(), folder / "corpus", folder / "failed"
    failed.mkdir(parents=True, exist_ok=True)
    corpus.mkdir(exist_ok=True)
    before = set(failed.iterdir())
    command = [sys.executable, "-m", "chaos.fuzz", name, "--child", "--folder", str(folder)]
    for option, value in limits._asdict().items():
        command += [f"--{option}", str(value)]
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            code: int | str = child.wait(limits.seconds + HANG_SECONDS + GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            code = f"killed {HANG_SECONDS + GRACE_SECONDS} s after its time was up"
    output = (folder / "log").read_text("utf-8", "replace")
    outcome.tries = _count_inputs(output)
    outcome.faults[name] = outcome.tries
    outcome.notes[f"fuzz.{name}.corpus"] = len(list(corpus.iterdir()))
    for path in sorted(set(failed.iterdir()) - before):
        repeat = f"python -m chaos.fuzz {name} --input {path}"
        detail = f"{name}: {_find_error(output)}"
        outcome.check(PROMISE, holds=False, detail=detail, repeat=repeat)
    holds = bool(outcome.broken) or (code == 0 and outcome.tries > 0)  # Not reported twice.
    detail = f"{name} ended with {code}: {output[-300:]}"
    outcome.check(PROMISE, holds=holds, detail=detail, repeat=" ".join(command[1:5]))
    return outcome


def _count_inputs(output: str) -> int:
    """Read the number of inputs from libFuzzer's output."""
    counts = [
        line.split()[-1] for line in output.splitlines() if "number_of_executed_units" in line
    ]
    return int(counts[-1]) if counts else 0


def _find_error(output: str) -> str:
    """Return the first line of the output that names an error."""
    errors = [line for line in output.splitlines() if "Error" in line or "ERROR: libFuzzer" in line]
    return errors[0].strip()[:300] if errors else output[-300:]


def _run_child(name: str, limits: Limits, folder: Path) -> None:
    """Fuzz until the time is up; libFuzzer then ends the process."""
    import atheris  # noqa: PLC0415  only the child needs it

    with atheris.instrument_imports(include=list(MODULES)):
        from tests.fuzz import seeds  # noqa: PLC0415  imports in this block are instrumented
        from tests.fuzz.targets import TARGETS  # noqa: PLC0415  the same
    for data in seeds.of(name):
        (folder / "corpus" / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    options = {
        "max_total_time": limits.seconds,
        "runs": limits.inputs,
        "seed": limits.seed,
        "max_len": BYTES_MAX,
        "timeout": HANG_SECONDS,
        "report_slow_units": HANG_SECONDS,
        "rss_limit_mb": MEGABYTES,
        "artifact_prefix": f"{folder / 'failed'}/",
        "print_final_stats": 1,
        "verbosity": 1,
    }
    arguments = [f"-{option}={value}" for option, value in options.items()]
    target = _measured(TARGETS[name])
    atheris.Setup([sys.argv[0], *arguments, str(folder / "corpus")], target)
    atheris.Fuzz()


def _measured(target: Callable[[bytes], object]) -> Callable[[bytes], None]:
    """Return the target with a limit of the processor's time, which no busy machine uses up."""

    def read(data: bytes) -> None:
        began = time.process_time()
        target(data)
        seconds = time.process_time() - began
        assert seconds <= INPUT_SECONDS, f"it took {seconds:.1f} s"

    return read


def _read_input(name: str, path: Path) -> None:
    from tests.fuzz import world  # noqa: PLC0415  only here
    from tests.fuzz.targets import TARGETS  # noqa: PLC0415  only here

    try:
        TARGETS[name](path.read_bytes())
    finally:
        world.close()
    print(f"{name}: nothing broke")


def main() -> int:
    """Fuzz the targets; return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m chaos.fuzz", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="TARGET", help=", ".join(NAMES))
    parser.add_argument("--seconds", type=int, default=30, help="for each target")
    parser.add_argument(
        "--folder", type=Path, help="where the corpus and failing inputs are stored"
    )
    parser.add_argument("--input", type=Path, help="read this file once by one target")
    parser.add_argument("--inputs", type=int, default=-1, help="at most, for each target")
    parser.add_argument("--seed", type=int, default=0, help="random by default")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in NAMES]:
        parser.error(f"no such target: {', '.join(unknown)}")
    names = arguments.names or NAMES
    if arguments.input:
        _read_input(names[0], arguments.input)
        return 0
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="genhook-fuzz-"))
    limits = Limits(arguments.seconds, arguments.inputs, arguments.seed)
    if arguments.child:
        _run_child(names[0], limits, folder)
        return 0
    outcome = fuzz(names, limits, folder)
    if outcome.not_run:
        print(outcome.not_run)
    for name, tries in outcome.faults.items():
        print(f"{name:12} {tries:>9} inputs, corpus {outcome.notes[f'fuzz.{name}.corpus']}")
    for broken in outcome.broken:
        print(f"BROKEN {broken.detail}\n  repeat: {broken.repeat}")
    return 1 if outcome.broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
