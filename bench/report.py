"""Prints the results, and writes them to results.json and docs/performance.md."""

import json
import math
from pathlib import Path
from typing import Any

from bench.floors import FLOORS, Floor
from bench.machine import ROOT, describe_processor, list_versions
from bench.plan import Figures

RESULTS = Path(__file__).with_name("results.json")
DOCUMENT = ROOT / "docs" / "performance.md"

NOISE_PERCENT = 10

Results = dict[str, Any]


def format_number(value: float) -> str:
    """Format with three significant digits."""
    if math.isnan(value):
        return "none"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def summarize(figures: Figures) -> dict[str, Any]:
    """Return the median, lowest and highest value of every figure."""
    return {
        name: {
            "median": round(figures.median(name), 4),
            "low": round(min(rounds), 4),
            "high": round(max(rounds), 4),
            "rounds": len(rounds),
        }
        for name, rounds in figures.rounds.items()
    }


def show(title: str, summary: dict[str, Any]) -> None:
    """Print a line for every figure of a measurement."""
    print(title)
    for name, figure in summary.items():
        spread = f"({format_number(figure['low'])} to {format_number(figure['high'])})"
        print(f"    {name:34}{format_number(figure['median']):>12}  {spread}")


def list_missed(results: Results, names: list[str]) -> list[str]:
    """Return a line for each floor of these measurements that is missed."""
    return [
        f"{floor.measurement}: {floor.label}: {format_number(_value(results, floor))}{floor.unit}, "
        f"must be {floor.sign} {floor.limit:g}{floor.unit}"
        for floor in FLOORS
        if floor.measurement in names and not floor.holds(_value(results, floor))
    ]


def _value(results: Results, floor: Floor) -> float:
    figure = results["measurements"].get(floor.measurement, {}).get(floor.figure, {})
    return float(figure.get("median", math.nan))


def new_results(date: str) -> Results:
    """Return the results of a run that has not measured anything yet."""
    return {
        "date": date,
        "processor": describe_processor(),
        "versions": list_versions(),
        "measurements": {},
    }


def merge_earlier(results: Results) -> Results:
    """Add what an earlier run measured and this one did not, if machine and versions are equal."""
    if RESULTS.exists():
        earlier = json.loads(RESULTS.read_text("utf-8"))
        if all(earlier[name] == results[name] for name in ("processor", "versions")):
            measurements = {**earlier["measurements"], **results["measurements"]}
            return {**results, "measurements": measurements}
    return results


def write(results: Results) -> None:
    """Write results.json and the table in docs/performance.md."""
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
    fill(DOCUMENT, "bench", table(results))


def fill(document: Path, name: str, text: str) -> None:
    """Replace what stands between the document's `name` marks by `text`."""
    begins, ends = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, begin, rest = document.read_text("utf-8").partition(begins)
    _, end, after = rest.partition(ends)
    assert begin, f"{document.name} has lost its marks for {name}"
    assert end, f"{document.name} has lost its marks for {name}"
    document.write_text(f"{before}{begins}\n{text}\n{ends}{after}", "utf-8")


def _noise(results: Results) -> str:
    noisy = [
        name
        for name, summary in results["measurements"].items()
        if summary.get("others_percent_of_core", {}).get("median", 0) > NOISE_PERCENT
    ]
    if not noisy:
        return ""
    return f" Other programs used the cores before {', '.join(noisy)}: expect noise there."


def table(results: Results) -> str:
    """Return the floors and the measured figures as a Markdown table."""
    packages = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [
        f"Measured {results['date']} on {results['processor']}; {packages}.{_noise(results)}",
        "",
        "| figure | median | lowest to highest round | must be | |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for floor in FLOORS:
        figure = results["measurements"].get(floor.measurement, {}).get(floor.figure)
        if figure is None:
            continue
        spread = f"{format_number(figure['low'])} to {format_number(figure['high'])}"
        note = "" if floor.holds(figure["median"]) else "**missed**"
        limit = f"{floor.sign} {floor.limit:g} {floor.unit}".strip()
        median = f"{format_number(figure['median'])} {floor.unit}".strip()
        lines.append(f"| {floor.label} | {median} | {spread} | {limit} | {note} |")
    return "\n".join(lines)
