"""`python -m chaos.mutants [NAME …]`: breaks the service one way at a time, and sees a test fail.

Each mutation of mutants.toml is made in a copy outside this folder, where the tests that guard the
promise must fail. It fails where they pass, or where the text to change is no longer there.
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
    *("service", "tests", "chaos", "bench", "docs"),
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
    """`old` stands in `file` exactly once, and becomes `new`."""

    file: str
    old: str
    new: str


class Mutation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way to break the service; `breaks` says what is no longer true, `tests` who guards it."""

    name: str
    breaks: str
    tests: list[str]
    edits: list[Edit]


class Found(msgspec.Struct, frozen=True):
    """What came of one: the test that failed first and its reason, or why none can be named."""

    verdict: Literal["caught", "survived", "unfit"]
    test: str = ""
    reason: str = ""


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file mutants.toml."""

    mutation: list[Mutation]


def table() -> list[Mutation]:
    """Every mutation there is, each under a name of its own."""
    found = msgspec.toml.decode(Path(__file__).with_suffix(".toml").read_bytes(), type=Table)
    names = [one.name for one in found.mutation]
    assert len(set(names)) == len(names), "two mutations have the same name"
    return found.mutation


def copy(source: Path, to: Path) -> None:
    """What the tests need, and nothing else."""
    to.mkdir()
    for name in COPIED:
        if (source / name).is_dir():
            shutil.copytree(source / name, to / name, ignore=NOT_COPIED)
        else:
            shutil.copy2(source / name, to / name)


def mutate(folder: Path, mutation: Mutation) -> str:
    """Make the edits; why that cannot be done, or nothing."""
    for edit in mutation.edits:
        path = folder / edit.file
        text = path.read_text("utf-8") if path.is_file() else ""
        count = text.count(edit.old)
        if count != 1:
            return f"the text to change is {count} times in {edit.file}"
        if edit.old == edit.new:
            return f"nothing changes in {edit.file}"
        path.write_text(text.replace(edit.old, edit.new), "utf-8")
        if path.suffix == ".py":
            compile(path.read_text("utf-8"), edit.file, "exec")
    return ""


def run(folder: Path, *command: str, seconds: float) -> subprocess.CompletedProcess[str] | None:
    """Run this Python in the copy, which it imports and not the installed service; None: too long.

    What it started goes with it.
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


def pytest(
    folder: Path, tests: Sequence[str], seconds: float
) -> subprocess.CompletedProcess[str] | None:
    """Run the tests up to the first that fails."""
    return run(folder, "-m", "pytest", "-x", *PYTEST, *tests, seconds=seconds)


def judge(process: subprocess.CompletedProcess[str] | None) -> Found:
    """Caught only if a test is named as failed: one that cannot be imported proves nothing."""
    if process is None:
        return Found("unfit", reason=f"the tests took over {SECONDS_MAX} s")
    if process.returncode == 0:
        return Found("survived")
    failed = _FAILED.search(process.stdout)
    if process.returncode != 1 or failed is None:
        return Found("unfit", reason=process.stdout[-2_000:])
    reason = _REASON.search(process.stdout)
    return Found("caught", test=failed[1], reason=reason[1][:REASON_CHARACTERS] if reason else "")


def attempt(unmutated: Path, scratch: Path, mutation: Mutation) -> Found:
    """One mutation in a copy of its own."""
    folder = scratch / mutation.name
    copy(unmutated, folder)
    try:
        if unfit := mutate(folder, mutation):
            return Found("unfit", reason=unfit)
        return judge(pytest(folder, mutation.tests, SECONDS_MAX))
    finally:
        shutil.rmtree(folder)


def unmutated_passes(folder: Path, mutations: Sequence[Mutation]) -> bool:
    """True if the copy imports itself, and its tests pass as long as nothing is broken."""
    where = run(folder, "-c", "import service; print(service.__file__)", seconds=60)
    assert where is not None
    print(f"service is {where.stdout.strip()}", flush=True)
    if where.stdout.strip() != str(folder / "service" / "__init__.py"):
        print("That is not the copy: nothing would be mutated.")
        return False
    tests = sorted({test for mutation in mutations for test in mutation.tests})
    process = pytest(folder, tests, UNMUTATED_SECONDS_MAX)
    if process is None or process.returncode != 0:
        print(process.stdout[-4_000:] if process else "They took too long.")
        print("The tests fail though nothing is broken: nothing would be proved.")
        return False
    said = [line for line in process.stdout.splitlines() if " passed" in line]
    print(f"unmutated: {said[-1]}", flush=True)
    return True


def attempt_all(unmutated: Path, mutations: Sequence[Mutation]) -> Iterator[tuple[Mutation, Found]]:
    """Every mutation in turn, said as it ends."""
    for mutation in mutations:
        began = time.perf_counter()
        found = attempt(unmutated, unmutated.parent, mutation)
        seconds = time.perf_counter() - began
        said = f"{found.test}: {found.reason}" if found.test else found.reason
        print(f"{mutation.name}: {found.verdict} in {seconds:.0f} s {said}", flush=True)
        yield mutation, found


def markdown(found: Sequence[tuple[Mutation, Found]], date: str) -> str:
    """The table for docs/reliability.md."""
    caught = sum(one.verdict == "caught" for _, one in found)
    lines = [
        f"{date}: {caught} of {len(found)} caught.",
        "",
        "| mutation | promise it breaks | caught by |",
        "|---|---|---|",
    ]
    for mutation, one in found:
        by = f"`{one.test}`" if one.verdict == "caught" else f"**{one.verdict}**"
        lines.append(f"| {mutation.name} | {mutation.breaks} | {by} |")
    return "\n".join(lines)


def main() -> int:
    """Break and test; 1 unless every mutation was caught."""
    mutations = table()
    parser = argparse.ArgumentParser(prog="python -m chaos.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="some mutations, else all")
    names = parser.parse_args().names
    unknown = sorted(set(names) - {mutation.name for mutation in mutations})
    if unknown:
        parser.error(f"no such mutation: {', '.join(unknown)}")
    chosen = [mutation for mutation in mutations if not names or mutation.name in names]
    os.nice(max(0, NICE - os.nice(0)))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # What was started ends as well.
    with tempfile.TemporaryDirectory(prefix="genhook-mutants-") as scratch:
        unmutated = Path(scratch).resolve() / "unmutated"
        copy(ROOT, unmutated)
        if not unmutated_passes(unmutated, chosen):
            return 1
        found = list(attempt_all(unmutated, chosen))
    missed = [(mutation, one) for mutation, one in found if one.verdict != "caught"]
    print(f"{len(found) - len(missed)} of {len(found)} caught")
    for mutation, one in missed:
        print(f"{one.verdict.upper()} {mutation.name}: {mutation.breaks} {one.reason}")
    if not names:
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        fill(DOCUMENT, "mutations", markdown(found, today))
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
