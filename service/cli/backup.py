"""`genhook backup`: a copy of the database in one file, while the service runs."""

import argparse
import contextlib
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from service.cli import interrupts, new_file, output
from service.cli.arguments import add_json, define
from service.cli.environment import require_database
from service.model.errors import CommandError
from service.settings import read_database_settings
from service.store.migrations import Newer, Older
from service.store.sqlite import schema
from service.store.sqlite.connection import code_of, describe_failure


def add_backup(parser: argparse.ArgumentParser) -> None:
    """Add the options of `genhook backup`."""
    define(parser, backup, "genhook backup /backup/genhook-$(date +%F).db")
    parser.add_argument(
        "file", metavar="FILE", type=Path, help="the file to write; it must not exist"
    )
    add_json(parser)


def backup(options: argparse.Namespace) -> int:
    """Copy the database to FILE and check the copy; never overwrite a file."""
    settings = require_database(read_database_settings())
    if settings.is_postgres:
        raise CommandError(f"{settings.database_name} is PostgreSQL: use its own pg_dump")
    source, target = Path(settings.database_path), options.file
    exists_already = CommandError(f"{target} exists already: a backup overwrites nothing")
    if os.path.lexists(target):  # Where this cannot be seen, it cannot be created.
        raise exists_already
    for beside in (f"{target}{suffix}" for suffix in ("-wal", "-shm", "-journal")):
        if os.path.lexists(beside):  # SQLite would take it for the copy's, and destroy the copy.
            raise CommandError(f"{beside} is left of another database: remove it, or name another")
    try:
        with interrupts.cleaned_up(), new_file.create(target) as partial:
            _copy(source, partial)
            size_bytes = partial.stat().st_size
    except FileExistsError:
        raise exists_already from None
    except (OSError, sqlite3.Error) as error:
        raise CommandError(f"the backup to {target} failed: {_reason(error, target)}") from error
    done = {"database": str(source), "file": str(target), "size_bytes": size_bytes}
    line = f"{target} is a complete copy of {source}, of {size_bytes >> 10} KiB."
    output.show(options, done, [line])
    return 0


def _reason(error: OSError | sqlite3.Error, path: Path) -> str:
    """Say why a backup failed at this file, without the name of our own file."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # VACUUM says of a damaged database that it cannot open the copy.
    if code_of(error) & 0xFF == sqlite3.SQLITE_CORRUPT:
        return "the database is damaged: genhook doctor says how"
    return describe_failure(error, str(path))


def _execute(connection: sqlite3.Connection, statement: str, *values: str) -> list[Any]:
    """Run a statement that takes long, and end it at Ctrl-C; return its rows.

    The main thread could not see a signal as long as it is inside of SQLite.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        running = pool.submit(lambda: connection.execute(statement, values).fetchall())
        try:
            return running.result()
        except KeyboardInterrupt:
            while wait([running], timeout=0.1).not_done:  # It may not have begun yet.
                connection.interrupt()
            raise


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False)


def _copy(source: Path, target: Path) -> None:
    """Copy one snapshot in one step; the steps of SQLite's backup API start anew at each commit."""
    with contextlib.ExitStack() as stack:
        # VACUUM leaves it where it fails.
        stack.callback(Path(f"{target}-journal").unlink, missing_ok=True)
        try:
            connection = stack.enter_context(contextlib.closing(_open(source)))
            connection.execute("PRAGMA busy_timeout=5000")
            problem = schema.problem(connection)
            may_be_copied = problem is None or isinstance(problem, (Older, Newer))
            if schema.version(connection) == 0 or not may_be_copied:  # It may be nobody's yet.
                raise CommandError(f"the backup failed: {problem}")
        except sqlite3.Error as error:
            reason = f"{source} cannot be read: {_reason(error, source)}"
            raise CommandError(f"the backup failed: {reason}") from error
        _execute(connection, "VACUUM INTO ?", str(target))
    with contextlib.closing(_open(target)) as connection:
        [[verdict]] = _execute(connection, "PRAGMA quick_check(1)")
    if verdict != "ok":
        raise CommandError(f"the backup failed: {verdict}")
    with target.open("rb") as copied:
        os.fsync(copied.fileno())
