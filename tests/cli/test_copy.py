"""`genhook copy`: every row of a stopped service arrives, and an interrupted copy goes on."""

import asyncio
import fcntl
import json
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from unittest.mock import patch

import asyncpg
import pytest

from service.cli import main, transfer
from service.store import copying
from service.store.sqlite.side import SqliteSide
from tests import engine
from tests.cli.test_serve import KEYS, start
from tests.harness import opened


async def fill(folder: Path) -> Path:
    """Make a database with rows of most kinds; return its path."""
    async with opened(folder, callback_trust="body") as world:
        await world.subscribe()
        for team in ("a", "b"):
            await world.generate(metadata={"team": team})
            await world.call_back()
        await world.run()
        return Path(world.settings.database_path)


def copy(source: Path, target: Path, *more: str) -> int:
    urls = [f"sqlite:///{path}" for path in (source, target)]
    return main.main(["copy", "--from", urls[0], "--to", urls[1], *more])


def rows(path: Path) -> dict[str, list[object]]:
    with closing(sqlite3.connect(path)) as connection:
        names = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        return {
            name: sorted(connection.execute("SELECT * FROM " + name), key=repr)  # noqa: S608  a table
            for (name,) in names.fetchall()
            if not name.startswith("sqlite")
        }


def change(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(sql)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return asyncio.run(fill(tmp_path))


def test_every_row_arrives_and_is_counted(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "target.db"
    assert copy(source, target) == 0
    assert rows(target) == rows(source)
    said = capsys.readouterr().out
    assert " rows are equal on both sides" in said
    assert re.search(r"^generations +2$", said, re.MULTILINE)
    assert rows(source)["attempts"]


def test_with_json_a_copy_prints_one_object_and_its_progress_beside_it(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(transfer, "_REPORT_SECONDS", 0.0)
    target = tmp_path / "target.db"
    assert copy(source, target, "--json") == 0
    printed = capsys.readouterr()
    said = json.loads(printed.out)
    assert said["tables"] == {table: len(found) for table, found in rows(target).items()}
    assert said["rows"] == sum(said["tables"].values())
    assert said["seconds"] > 0
    assert "generations: 2 rows copied" in printed.err


def interrupt(source: Path, target: Path) -> None:
    """Copy until one generation has arrived."""
    insert = SqliteSide.insert
    inserted: list[str] = []

    async def insert_some(
        side: SqliteSide, table: copying.Table, batch: list[copying.Values]
    ) -> None:
        if table.name == "generations" and inserted.count("generations") == 1:
            raise KeyboardInterrupt
        inserted.append(table.name)
        await insert(side, table, batch)

    with (
        patch.object(copying, "BATCH_ROWS", 1),
        patch.object(SqliteSide, "insert", insert_some),
        pytest.raises(KeyboardInterrupt),
    ):
        copy(source, target)
    assert len(rows(target)["generations"]) == 1


def test_an_interrupted_copy_goes_on_where_it_ended(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.db"
    interrupt(source, target)
    assert copy(source, target) == 0
    assert rows(target) == rows(source)
    assert copy(source, target) == 1, "the copy has ended, so the target is no longer its own"


COPY_AND_DIE = """
import os, signal, sys
from service.cli import main
from service.store import copying
from service.store.postgres.side import PostgresSide

insert, inserted = PostgresSide.insert, []

async def insert_some(side, table, rows):
    if inserted.count("generations") == 1 and table.name == "generations":
        os.kill(os.getpid(), signal.SIGKILL)
    inserted.append(table.name)
    await insert(side, table, rows)

copying.BATCH_ROWS, PostgresSide.insert = 1, insert_some
main.main(sys.argv[1:])
"""


def test_a_copy_to_postgresql_that_is_killed_halfway_goes_on(
    tmp_path: Path, postgres: engine.Schemas, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(engine, "schemas", None)
        source = asyncio.run(fill(tmp_path))  # A file.
    url = postgres.database_of(tmp_path / "target", is_new=True)
    postgres.use_up(tmp_path / "target")
    line = ["copy", "--from", f"sqlite:///{source}", "--to", url]
    died = subprocess.run([sys.executable, "-c", COPY_AND_DIE, *line], check=False)  # noqa: S603
    assert died.returncode == -signal.SIGKILL
    assert asyncio.run(count_generations(url)) == 1, "halfway"
    assert main.main(line) == 0
    back = tmp_path / "back.db"
    assert main.main(["copy", "--from", url, "--to", f"sqlite:///{back}"]) == 0
    assert rows(back) == rows(source)


async def count_generations(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM generations"))
    finally:
        await connection.close()


@pytest.mark.parametrize(
    "line",
    [
        *("serve --port 0", "work", "migrate", "backup kept.db", "copy", "doctor"),
        "keys list --offline",
    ],
)
def test_nothing_uses_a_database_to_which_a_copy_has_not_ended(
    source: Path, tmp_path: Path, line: str
) -> None:
    target = tmp_path / "target.db"
    interrupt(source, target)
    words = line.split()
    if line == "copy":
        words += ["--from", f"sqlite:///{target}", "--to", f"sqlite:///{tmp_path / 'third.db'}"]
    environ = {**KEYS, "GENHOOK_DATABASE_URL": f"sqlite:///{target}"}
    before = rows(target)
    with start(tmp_path, *words, **environ) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    said = (out + err).lower()
    assert "a copy to the database has not ended: run genhook copy again" in said
    assert "Traceback" not in err
    assert rows(target) == before
    assert not (tmp_path / "kept.db").exists()


def test_rows_of_the_target_are_never_mixed_with_others(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    other = asyncio.run(fill(tmp_path / "other"))
    before = rows(other)
    assert copy(source, other) == 1
    assert "is not empty" in capsys.readouterr().err
    assert rows(other) == before


def test_a_source_that_changes_meanwhile_is_found_out(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    compare = copying._compare

    async def change_then_compare(
        one: copying.Side, other: copying.Side, table: copying.Table
    ) -> int:
        if table.name == "usage":
            change(source, "UPDATE usage SET credits = credits + 1")
        return await compare(one, other, table)

    monkeypatch.setattr(copying, "_compare", change_then_compare)
    assert copy(source, tmp_path / "target.db") == 1
    assert "the table usage differs after the copy" in capsys.readouterr().err


def test_a_database_with_a_worker_is_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with source.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert copy(source, tmp_path / "target.db") == 1
    assert "a worker uses it" in capsys.readouterr().err


def test_text_that_postgresql_cannot_hold_is_copied_with_a_sign_for_it(
    source: Path, tmp_path: Path
) -> None:
    change(source, "UPDATE generations SET model = 'a' || char(0) || 'b'")
    target = tmp_path / "target.db"
    assert copy(source, target) == 0
    with closing(sqlite3.connect(target)) as connection:
        models = connection.execute("SELECT DISTINCT model FROM generations").fetchall()
    assert models == [("a\ufffdb",)]


async def run_sql(url: str, sql: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(sql)
    await connection.close()


def test_a_service_moves_from_postgresql_to_a_file_and_back(
    tmp_path: Path, postgres: engine.Schemas, capsys: pytest.CaptureFixture[str]
) -> None:
    server = postgres.database_of(tmp_path)
    asyncio.run(fill(tmp_path))  # On that server.
    other, files = postgres.database_of(tmp_path / "other", is_new=True), ["a.db", "b.db"]
    first, second = [tmp_path / name for name in files]
    for url in (server, other):  # Tables of another program stay where they are.
        asyncio.run(run_sql(url, "CREATE TABLE songs (title TEXT)"))
    assert main.main(["copy", "--from", server, "--to", f"sqlite:///{first}"]) == 0
    assert main.main(["copy", "--from", f"sqlite:///{first}", "--to", other]) == 0
    assert main.main(["copy", "--from", other, "--to", f"sqlite:///{second}"]) == 0
    assert rows(second) == rows(first)
    assert rows(first)["attempts"]
    assert main.main(["copy", "--from", f"sqlite:///{first}", "--to", server]) == 1
    assert "the PostgreSQL database is not empty" in capsys.readouterr().err


def test_wrong_names_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "none.db"
    link = tmp_path / "link.db"
    link.symlink_to(path)
    for same in (path, link, tmp_path / "folder" / ".." / "none.db"):
        assert copy(path, same) == 2
        assert "the same database" in capsys.readouterr().err
    assert copy(path, tmp_path / "target.db") == 1
    assert f"cannot open {path}: No such file" in capsys.readouterr().err
