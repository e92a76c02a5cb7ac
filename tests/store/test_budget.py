"""The budget of a commit: how many statements and trees each kind of unit may cost."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from bench.counts import Times, count
from bench.floors import FLOORS

GENERATIONS = 20  # Statements and trees do not depend on them, as pages do.


def has_dbstat() -> bool:
    with closing(sqlite3.connect(":memory:")) as connection:
        options = [row[0] for row in connection.execute("PRAGMA compile_options")]
    return "ENABLE_DBSTAT_VTAB" in options


@pytest.mark.skipif(not has_dbstat(), reason="this SQLite cannot tell the tree of a page")
async def test_no_unit_costs_more_statements_or_trees_than_its_floor(tmp_path: Path) -> None:
    counts = await count(tmp_path, GENERATIONS, Times(alone=1, batches=1))
    figures = {
        f"{name}_{figure}": value
        for name, unit in counts.items()
        for figure, value in unit.figures().items()
    }
    floors = [
        floor
        for floor in FLOORS
        if floor.measurement == "counts" and floor.figure.endswith(("_statements", "_trees"))
    ]
    assert len(floors) > 5
    over = [
        f"{floor.label}: {figures[floor.figure]:g}, at most {floor.limit:g}"
        for floor in floors
        if not floor.holds(figures[floor.figure])
    ]
    assert not over, "\n".join(["", *over])
