"""Coverage-guided fuzzing (atheris) of every reader of strangers' bytes: tests/fuzz/targets.py.

`python -m chaos.fuzz [TARGET …] [--seconds N]`; with `--input FILE` one input is read once.
"""

import argparse
import hashlib
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

from chaos.outcome import Outcome

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
BYTES_MAX = 8_192  # of an input
INPUT_SECONDS, MEGABYTES = 20, 2_048  # what one input may take
GRACE_SECONDS = 60.0
PROMISE = "whatever the bytes: an answer that was planned, bounded, without a secret"


def run(minutes: float, folder: Path) -> Outcome:
    """Every target in turn, for `minutes` in all; what fails is kept below `folder`."""
    return fuzz(list(NAMES), minutes * 60 / len(NAMES), folder)


def fuzz(names: list[str], seconds: float, folder: Path) -> Outcome:
    """Each target for `seconds`, in a process of its own."""
    total = Outcome()
    if importlib.util.find_spec("atheris") is None:
        total.not_run = "atheris is not installed: it has wheels for Linux only"
        return total
    for name in names:
        total.add(_one(name, max(1, round(seconds)), folder / name))
    return total


def _one(name: str, seconds: int, folder: Path) -> Outcome:
    """One target: what it tried, and the inputs that it failed with."""
    outcome, corpus, failed = Outcome(), folder / "corpus", folder / "failed"
    failed.mkdir(parents=True, exist_ok=True)
    corpus.mkdir(exist_ok=True)
    before = set(failed.iterdir())
    command = [sys.executable, "-m", "chaos.fuzz", name, "--child", "--seconds", str(seconds)]
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(
            [*command, "--folder", str(folder)], cwd=ROOT, stdout=log, stderr=log
        )
        try:
            code: int | str = child.wait(seconds + GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            code = f"killed: it did not end {GRACE_SECONDS:.0f} s after its time"
    said = (folder / "log").read_text("utf-8", "replace")
    outcome.tries = _executed(said)
    outcome.faults[name] = outcome.tries
    outcome.notes[f"fuzz.{name}.corpus"] = len(list(corpus.iterdir()))
    for path in sorted(set(failed.iterdir()) - before):
        again = f"python -m chaos.fuzz {name} --input {path}"
        outcome.check(PROMISE, holds=False, seen=f"{name}: {_reason(said)}", again=again)
    is_told = bool(outcome.broken)
    holds = is_told or (code == 0 and outcome.tries > 0)
    again = " ".join(command[1:5])
    outcome.check(
        PROMISE, holds=holds, seen=f"{name} ended with {code}: {said[-300:]}", again=again
    )
    return outcome


def _executed(said: str) -> int:
    """How many inputs were tried, by libFuzzer's own count."""
    counts = [line.split()[-1] for line in said.splitlines() if "number_of_executed_units" in line]
    return int(counts[-1]) if counts else 0


def _reason(said: str) -> str:
    """The line that says what was wrong."""
    errors = [line for line in said.splitlines() if "Error" in line or "ERROR: libFuzzer" in line]
    return errors[0].strip()[:300] if errors else said[-300:]


def _child(name: str, seconds: int, folder: Path) -> None:
    """Fuzz for ever, or until the time is over: libFuzzer ends the process itself."""
    import atheris  # noqa: PLC0415  only the child has it to do with it

    with atheris.instrument_imports(include=list(MODULES)):
        from tests.fuzz import seeds  # noqa: PLC0415  what is imported here is watched
        from tests.fuzz.targets import TARGETS  # noqa: PLC0415  the same
    for data in seeds.of(name):
        (folder / "corpus" / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    options = {
        "max_total_time": seconds,
        "max_len": BYTES_MAX,
        "timeout": INPUT_SECONDS,
        "rss_limit_mb": MEGABYTES,
        "artifact_prefix": f"{folder / 'failed'}/",
        "print_final_stats": 1,
        "verbosity": 1,
    }
    arguments = [f"-{option}={value}" for option, value in options.items()]
    atheris.Setup([sys.argv[0], *arguments, str(folder / "corpus")], TARGETS[name])
    atheris.Fuzz()


def _again(name: str, path: Path) -> None:
    from tests.fuzz import world  # noqa: PLC0415  only here
    from tests.fuzz.targets import TARGETS  # noqa: PLC0415  only here

    try:
        TARGETS[name](path.read_bytes())
    finally:
        world.close()
    print(f"{name}: nothing broke")


def main() -> int:
    """Fuzz; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m chaos.fuzz", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="TARGET", help=", ".join(NAMES))
    parser.add_argument("--seconds", type=int, default=30, help="for each target")
    parser.add_argument("--folder", type=Path, help="where corpus and failures are kept")
    parser.add_argument("--input", type=Path, help="read this file once, as one target does")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in NAMES]:
        parser.error(f"no such target: {', '.join(unknown)}")
    names = given.names or list(NAMES)
    if given.input:
        _again(names[0], given.input)
        return 0
    folder = given.folder or Path(tempfile.mkdtemp(prefix="genhook-fuzz-"))
    if given.child:
        _child(names[0], given.seconds, folder)
        return 0
    outcome = fuzz(names, given.seconds, folder)
    if outcome.not_run:
        print(outcome.not_run)
    for name, tries in outcome.faults.items():
        print(f"{name:12} {tries:>9} inputs, corpus {outcome.notes[f'fuzz.{name}.corpus']}")
    for broken in outcome.broken:
        print(f"BROKEN {broken.seen}\n  again: {broken.again}")
    return 1 if outcome.broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
