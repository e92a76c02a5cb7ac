"""Prints the outcomes, and writes them to report.json and docs/reliability.md."""

import importlib.metadata
import json
import platform
import sqlite3
from pathlib import Path
from typing import Any

from bench.machine import ROOT, describe_processor
from bench.report import fill
from chaos.outcome import Outcome

REPORT = Path(__file__).with_name("report.json")
DOCUMENT = ROOT / "docs" / "reliability.md"
SHOWN_MAX = 20

PACKAGES = (
    "genhook",
    "aiosqlite",
    "httptools",
    "httpx",
    "msgspec",
    "starlette",
    "uvicorn",
    "uvloop",
)

Report = dict[str, Any]


def list_versions() -> dict[str, str]:
    """Return the versions of Python, SQLite and the packages that were attacked."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version, **packages}


def new_report(date: str, seed: int, *, quick: bool) -> Report:
    """Return the report of a run without suites yet."""
    return {
        "date": date,
        "seed": seed,
        "quick": quick,
        "processor": describe_processor(),
        "versions": list_versions(),
        "suites": {},
    }


def summarize(outcome: Outcome, seconds: float) -> dict[str, Any]:
    """Return the part of the report about one suite."""
    return {
        "seconds": round(seconds, 1),
        "tries": outcome.tries,
        "checks": outcome.checks,
        "faults": dict(sorted((+outcome.faults).items())),
        "broken": [vars(broken) for broken in outcome.broken],
        "notes": outcome.notes,
        "not_run": outcome.not_run,
    }


def show(report: Report) -> None:
    """Print the table, then every broken promise with the command that repeats it."""
    print(f"{'suite':14}{'tries':>8}{'faults':>9}{'checks':>9}{'broken':>8}{'seconds':>9}")
    for name, suite in report["suites"].items():
        if suite["not_run"]:
            print(f"{name:14}not run: {suite['not_run']}")
            continue
        faults = sum(suite["faults"].values())
        counts = f"{suite['tries']:>8}{faults:>9}{suite['checks']:>9}{len(suite['broken']):>8}"
        print(f"{name:14}{counts}{suite['seconds']:>9.0f}")
    for name, suite in report["suites"].items():
        for broken in suite["broken"][:SHOWN_MAX]:
            print(f"BROKEN {name}: {broken['promise']}: {broken['detail']}")
            if broken["repeat"]:
                print(f"    repeat: {broken['repeat']}")
        more = len(suite["broken"]) - SHOWN_MAX
        if more > 0:
            print(f"    and {more} more in {REPORT.name}")


def is_broken(report: Report) -> bool:
    """Return whether any promise was broken."""
    return any(suite["broken"] for suite in report["suites"].values())


def write(report: Report) -> None:
    """Write report.json."""
    REPORT.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")


def write_document(report: Report) -> None:
    """Write the table in docs/reliability.md."""
    fill(DOCUMENT, "chaos", table(report))


def table(report: Report) -> str:
    """Return the suites as a Markdown table, and the faults of each suite by kind."""
    packages = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    run = f"Attacked {report['date']} with seed {report['seed']} on {report['processor']}"
    lines = [
        f"{run}; {packages}.",
        "",
        "| suite | tries | faults injected | checks | promises broken | seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, suite in report["suites"].items():
        if suite["not_run"]:
            lines.append(f"| {name} | not run: {suite['not_run']} | | | | |")
            continue
        counts = (suite["tries"], sum(suite["faults"].values()), suite["checks"])
        cells = " | ".join(f"{number:,}" for number in (*counts, len(suite["broken"])))
        lines.append(f"| {name} | {cells} | {suite['seconds']:,.0f} |")
    lines += ["", *_list_faults(report)]
    return "\n".join(lines)


def _list_faults(report: Report) -> list[str]:
    """List the faults of each suite and how often each was injected."""
    lines = []
    for name, suite in report["suites"].items():
        if suite["faults"]:
            kinds = ", ".join(f"{kind} ({n:,})" for kind, n in suite["faults"].items())
            lines.append(f"- **{name}**: {kinds}.")
        if suite["notes"]:
            notes = ", ".join(f"{label}: {_format(n)}" for label, n in suite["notes"].items())
            lines.append(f"  Measured: {notes}.")
    return lines


def _format(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.3g}" if value < 100 else f"{value:,.0f}"
