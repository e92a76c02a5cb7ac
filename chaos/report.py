"""What came of the attacks: on the terminal, in report.json, and as a table in the documents."""

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


def versions() -> dict[str, str]:
    """What was attacked."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version, **found}


def fresh(date: str, seed: int, *, quick: bool) -> Report:
    """The report of a run that has attacked nothing yet."""
    return {
        "date": date,
        "seed": seed,
        "quick": quick,
        "processor": describe_processor(),
        "versions": versions(),
        "suites": {},
    }


def of(outcome: Outcome, seconds: float) -> dict[str, Any]:
    """One suite of the report."""
    return {
        "seconds": round(seconds, 1),
        "tries": outcome.tries,
        "checks": outcome.checks,
        "faults": dict(sorted((+outcome.faults).items())),
        "broken": [vars(one) for one in outcome.broken],
        "notes": outcome.notes,
        "not_run": outcome.not_run,
    }


def show(report: Report) -> None:
    """The table, then every broken promise with what shows it again."""
    print(f"{'suite':14}{'tries':>8}{'faults':>9}{'checks':>9}{'broken':>8}{'seconds':>9}")
    for name, found in report["suites"].items():
        if found["not_run"]:
            print(f"{name:14}not run: {found['not_run']}")
            continue
        faults = sum(found["faults"].values())
        counts = f"{found['tries']:>8}{faults:>9}{found['checks']:>9}{len(found['broken']):>8}"
        print(f"{name:14}{counts}{found['seconds']:>9.0f}")
    for name, found in report["suites"].items():
        for one in found["broken"][:SHOWN_MAX]:
            print(f"BROKEN {name}: {one['promise']}: {one['seen']}")
            if one["again"]:
                print(f"    again: {one['again']}")
        more = len(found["broken"]) - SHOWN_MAX
        if more > 0:
            print(f"    and {more} more in {REPORT.name}")


def is_broken(report: Report) -> bool:
    """True if any promise did not hold."""
    return any(found["broken"] for found in report["suites"].values())


def write(report: Report) -> None:
    """report.json; and after a full run of every suite, the table in docs/reliability.md."""
    REPORT.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")


def write_document(report: Report) -> None:
    """The table in docs/reliability.md."""
    fill(DOCUMENT, "chaos", table(report))


def table(report: Report) -> str:
    """The suites as Markdown, and the faults of each by kind."""
    said = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [
        f"Attacked {report['date']} with seed {report['seed']} on {report['processor']}; {said}.",
        "",
        "| suite | tries | faults injected | checks | promises broken | seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, found in report["suites"].items():
        if found["not_run"]:
            lines.append(f"| {name} | not run: {found['not_run']} | | | | |")
            continue
        counts = (found["tries"], sum(found["faults"].values()), found["checks"])
        cells = " | ".join(f"{number:,}" for number in (*counts, len(found["broken"])))
        lines.append(f"| {name} | {cells} | {found['seconds']:,.0f} |")
    lines += ["", *_kinds(report)]
    return "\n".join(lines)


def _kinds(report: Report) -> list[str]:
    """For each suite what was done to the service, and how often."""
    lines = []
    for name, found in report["suites"].items():
        if found["faults"]:
            kinds = ", ".join(f"{kind} ({n:,})" for kind, n in found["faults"].items())
            lines.append(f"- **{name}**: {kinds}.")
        if found["notes"]:
            notes = ", ".join(f"{what}: {_said(of)}" for what, of in found["notes"].items())
            lines.append(f"  Measured: {notes}.")
    return lines


def _said(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.3g}" if value < 100 else f"{value:,.0f}"
