"""What came out: on the terminal, in results.json, and as a table in docs/performance.md."""

import json
import math
from pathlib import Path
from typing import Any

from bench.floors import FLOORS, Floor
from bench.machine import ROOT, processor, versions
from bench.plan import Figures

RESULTS = Path(__file__).with_name("results.json")
DOCUMENT = ROOT / "docs" / "performance.md"

NOISE_PERCENT = 10

Results = dict[str, Any]


def number(value: float) -> str:
    """Three figures that count, and no more."""
    if math.isnan(value):
        return "none"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def summed_up(figures: Figures) -> dict[str, Any]:
    """Median, lowest and highest of every figure."""
    return {
        name: {
            "median": round(figures.median(name), 4),
            "low": round(min(rounds), 4),
            "high": round(max(rounds), 4),
            "rounds": len(rounds),
        }
        for name, rounds in figures.rounds.items()
    }


def show(name: str, found: dict[str, Any]) -> None:
    """Every figure of a measurement, a line each."""
    print(f"{name}")
    for figure, of in found.items():
        spread = f"({number(of['low'])} to {number(of['high'])})"
        print(f"    {figure:34}{number(of['median']):>12}  {spread}")


def missed(results: Results, names: list[str]) -> list[str]:
    """A line for each floor of these measurements that does not hold."""
    return [
        f"{floor.measurement}: {floor.says}: {number(_value(results, floor))}{floor.unit}, "
        f"must be {floor.sign} {floor.limit:g}{floor.unit}"
        for floor in FLOORS
        if floor.measurement in names and not floor.holds(_value(results, floor))
    ]


def _value(results: Results, floor: Floor) -> float:
    found = results["measurements"].get(floor.measurement, {}).get(floor.figure, {})
    return float(found.get("median", math.nan))


def fresh(date: str) -> Results:
    """Results of a run that has measured nothing yet."""
    return {"date": date, "processor": processor(), "versions": versions(), "measurements": {}}


def with_older(results: Results) -> Results:
    """What an older run measured and this one did not stays, as long as it is the same machine."""
    if RESULTS.exists():
        older = json.loads(RESULTS.read_text("utf-8"))
        same = ("processor", "versions")
        if all(older[name] == results[name] for name in same):
            kept = {**older["measurements"], **results["measurements"]}
            return {**results, "measurements": kept}
    return results


def write(results: Results) -> None:
    """results.json, and the table in docs/performance.md."""
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
    fill(DOCUMENT, "bench", table(results))


def fill(document: Path, name: str, text: str) -> None:
    """Put `text` between the document's marks of that name."""
    begins, ends = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, begin, rest = document.read_text("utf-8").partition(begins)
    _, end, after = rest.partition(ends)
    assert begin, f"{document.name} has lost its marks for {name}"
    assert end, f"{document.name} has lost its marks for {name}"
    document.write_text(f"{before}{begins}\n{text}\n{ends}{after}", "utf-8")


def _noise(results: Results) -> str:
    busy = {
        name: found["others_percent_of_core"]["median"]
        for name, found in results["measurements"].items()
        if found.get("others_percent_of_core", {}).get("median", 0) > NOISE_PERCENT
    }
    if not busy:
        return ""
    return f" Other programs kept the cores busy before {', '.join(busy)}: doubt those figures."


def table(results: Results) -> str:
    """The floors as Markdown, with what was measured."""
    said = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [
        f"Measured {results['date']} on {results['processor']}; {said}.{_noise(results)}",
        "",
        "| what | measured | lowest to highest round | must be | |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for floor in FLOORS:
        found = results["measurements"].get(floor.measurement, {}).get(floor.figure)
        if found is None:
            continue
        spread = f"{number(found['low'])} to {number(found['high'])}"
        verdict = "" if floor.holds(found["median"]) else "**missed**"
        limit = f"{floor.sign} {floor.limit:g} {floor.unit}".strip()
        shown = f"{number(found['median'])} {floor.unit}".strip()
        lines.append(f"| {floor.says} | {shown} | {spread} | {limit} | {verdict} |")
    return "\n".join(lines)
