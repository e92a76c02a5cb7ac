"""`python -m chaos.mutants [NAME …]`: break the service in one way at a time; a test must fail.

Each mutation of mutants.toml is made in a copy of the project, in which one of its tests must fail.
The command fails if they pass, or if the text to change is not in its file exactly once.
"""

import argparse
import datetime
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from bench.report import fill

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "reliability.md"
COPIED = (
    *("service", "tests", "chaos", "bench", "docs", "deploy"),
    *("openapi.yaml", "pyproject.toml", "README.md", "CHANGELOG.md", "constraints.txt"),
)
NOT_COPIED = shutil.ignore_patterns("__pycache__", "data", "mutants.*")
UNMUTATED_SECONDS_MAX = 900
SECONDS_MAX = 240
PYTEST = ("-n", "0", "-p", "no:cacheprovider", "-p", "no:randomly", "--tb=line")
NICE = 19
_FAILED = re.compile(r"^(?:FAILED|ERROR) (tests/\S+?\.py::\w+)", re.MULTILINE)
_REASON = re.compile(r"^\S+\.py:\d+: (.*)$", re.MULTILINE)
REASON_CHARACTERS = 100


class Edit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The text `old`, which `file` contains exactly once, and the text that replaces it."""

    file: str
    old: str
    new: str


class Mutation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A way to break the service, the promise that it breaks, and the tests that must fail."""

    name: str
    breaks: str
    tests: list[str]
    edits: list[Edit]


class Result(msgspec.Struct, frozen=True):
    """The result of a mutation: the first test that failed and its message, or a reason."""

    verdict: Literal["caught", "survived", "unfit"]
    test: str = ""
    reason: str = ""


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of mutants.toml."""

    mutation: list[Mutation]


def load_mutations() -> list[Mutation]:
    """Load every mutation; AssertionError if two have the same name."""
    table = msgspec.toml.decode(Path(__file__).with_suffix(".toml").read_bytes(), type=Table)
    names = [mutation.name for mutation in table.mutation]
    assert len(set(names)) == len(names), "two mutations have the same name"
    return table.mutation


def copy_project(source: Path, to: Path) -> None:
    """Copy what the tests need, and nothing else."""
    to.mkdir()
    for name in COPIED:
        if (source / name).is_dir():
            shutil.copytree(source / name, to / name, ignore=NOT_COPIED)
        else:
            shutil.copy2(source / name, to / name)


def mutate(folder: Path, mutation: Mutation) -> str:
    """Make the edits; return the reason if that is not possible, else an empty text."""
    for edit in mutation.edits:
        path = folder / edit.file
        text = path.read_text("utf-8") if path.is_file() else ""
        count = text.count(edit.old)
        if count != 1:
            return f"{edit.file} contains the text to change {count} times"
        if edit.old == edit.new:
            return f"the edit of {edit.file} changes nothing"
        path.write_text(text.replace(edit.old, edit.new), "utf-8")
        try:
            if path.suffix == ".py":
                compile(path.read_text("utf-8"), edit.file, "exec")
        except SyntaxError as error:
            return f"{edit.file} would be no Python: {error}"
    return ""


def run(folder: Path, *command: str, seconds: float) -> subprocess.CompletedProcess[str] | None:
    """Run Python in the copy, so that it imports the copy instead of the installed service.

    None if it takes too long; then everything that it started is killed.
    """
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GENHOOK_")},
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait()
    return subprocess.CompletedProcess(command, process.returncode, output)


def run_tests(
    folder: Path, tests: Sequence[str], seconds: float
) -> subprocess.CompletedProcess[str] | None:
    """Run the tests up to the first failure."""
    return run(folder, "-m", "pytest", "-x", *PYTEST, *tests, seconds=seconds)


def judge(process: subprocess.CompletedProcess[str] | None) -> Result:
    """Return the result of a test run; an error before any test ran proves nothing."""
    if process is None:
        return Result("unfit", reason=f"the tests took over {SECONDS_MAX} s")
    if process.returncode == 0:
        return Result("survived")
    failed = _FAILED.search(process.stdout)
    if process.returncode != 1 or failed is None:
        return Result("unfit", reason=process.stdout[-2_000:])
    reason = _REASON.search(process.stdout)
    return Result("caught", test=failed[1], reason=reason[1][:REASON_CHARACTERS] if reason else "")


def try_mutation(unmutated: Path, scratch: Path, mutation: Mutation) -> Result:
    """Try one mutation in its own copy."""
    folder = scratch / mutation.name
    copy_project(unmutated, folder)
    try:
        if unfit := mutate(folder, mutation):
            return Result("unfit", reason=unfit)
        return judge(run_tests(folder, mutation.tests, SECONDS_MAX))
    finally:
        shutil.rmtree(folder)


def check_unmutated(folder: Path, mutations: Sequence[Mutation]) -> bool:
    """Check that the copy imports itself, and that all tests pass without a mutation."""
    where = run(folder, "-c", "import service; print(service.__file__)", seconds=60)
    assert where is not None
    print(f"service is {where.stdout.strip()}", flush=True)
    if where.stdout.strip() != str(folder / "service" / "__init__.py"):
        print("That is not the copy, so mutations would change nothing.")
        return False
    tests = sorted({test for mutation in mutations for test in mutation.tests})
    process = run_tests(folder, tests, UNMUTATED_SECONDS_MAX)
    if process is None or process.returncode != 0:
        print(process.stdout[-4_000:] if process else "The tests took too long.")
        print("The tests fail without a mutation, so a failure would prove nothing.")
        return False
    lines = [line for line in process.stdout.splitlines() if " passed" in line]
    print(f"unmutated: {lines[-1]}", flush=True)
    return True


def try_all(unmutated: Path, mutations: Sequence[Mutation]) -> Iterator[tuple[Mutation, Result]]:
    """Try the mutations in turn, and print each result."""
    for mutation in mutations:
        began = time.perf_counter()
        result = try_mutation(unmutated, unmutated.parent, mutation)
        seconds = time.perf_counter() - began
        detail = f"{result.test}: {result.reason}" if result.test else result.reason
        print(f"{mutation.name}: {result.verdict} in {seconds:.0f} s {detail}", flush=True)
        yield mutation, result


def table(results: Sequence[tuple[Mutation, Result]], date: str) -> str:
    """Return the table for docs/reliability.md."""
    caught = sum(result.verdict == "caught" for _, result in results)
    lines = [
        f"{date}: {caught} of {len(results)} caught.",
        "",
        "| mutation | promise it breaks | caught by |",
        "|---|---|---|",
    ]
    for mutation, result in results:
        by = f"`{result.test}`" if result.verdict == "caught" else f"**{result.verdict}**"
        lines.append(f"| {mutation.name} | {mutation.breaks} | {by} |")
    return "\n".join(lines)


def main() -> int:
    """Try the mutations; return 1 unless every one was caught."""
    mutations = load_mutations()
    parser = argparse.ArgumentParser(prog="python -m chaos.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="all mutations by default")
    names = parser.parse_args().names
    unknown = sorted(set(names) - {mutation.name for mutation in mutations})
    if unknown:
        parser.error(f"no such mutation: {', '.join(unknown)}")
    chosen = [mutation for mutation in mutations if not names or mutation.name in names]
    os.nice(max(0, NICE - os.nice(0)))
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # So that started processes end as well.
    with tempfile.TemporaryDirectory(prefix="genhook-mutants-") as scratch:
        unmutated = Path(scratch).resolve() / "unmutated"
        copy_project(ROOT, unmutated)
        if not check_unmutated(unmutated, chosen):
            return 1
        results = list(try_all(unmutated, chosen))
    missed = [(mutation, result) for mutation, result in results if result.verdict != "caught"]
    print(f"{len(results) - len(missed)} of {len(results)} caught")
    for mutation, result in missed:
        print(f"{result.verdict.upper()} {mutation.name}: {mutation.breaks} {result.reason}")
    if not names:
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        fill(DOCUMENT, "mutations", table(results, today))
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
