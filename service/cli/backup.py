"""`genhook backup`: a copy of the database in one file, while the service runs."""

import argparse
import contextlib
import os
import secrets
import sqlite3
from pathlib import Path

from service.cli.arguments import Echo, define
from service.cli.environment import settings_of_existing
from service.model.errors import CommandError
from service.store.sqlite import schema
from service.store.sqlite.file import problem_of_users


def add_backup(parser: argparse.ArgumentParser) -> None:
    """Add the options of `genhook backup`."""
    define(parser, backup, "genhook backup /backup/genhook-$(date +%F).db")
    parser.add_argument(
        "file", metavar="FILE", type=Path, help="the file to write; it must not exist"
    )


def backup(options: argparse.Namespace, echo: Echo) -> int:
    """Copy the database to FILE and check the copy; never overwrite a file."""
    settings = settings_of_existing()
    if settings.is_postgres:
        raise CommandError(f"{settings.database_name} is PostgreSQL: use its own pg_dump")
    source, target = Path(settings.database_path), options.file
    exists_already = CommandError(f"{target} exists already: a backup overwrites nothing")
    if target.exists():
        raise exists_already
    if problem := problem_of_users(str(source.resolve())):
        raise CommandError(f"the backup failed: {problem}")
    # Its own: another backup to FILE at the same time would write into it, and end with it.
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        _copy(source, partial)
        os.link(partial, target)  # Unlike a rename, it fails if the file exists.
    except FileExistsError:
        raise exists_already from None
    except (OSError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or error  # Without the name of our own file.
        raise CommandError(f"the backup to {target} failed: {reason}") from error
    finally:
        partial.unlink(missing_ok=True)
    echo(f"{target} is a complete copy of {source}, of {target.stat().st_size >> 10} KiB.")
    return 0


def _copy(source: Path, target: Path) -> None:
    """Copy one snapshot in one step; the steps of SQLite's backup API start anew at each commit."""
    with contextlib.closing(sqlite3.connect(source, isolation_level=None)) as connection:
        connection.execute("PRAGMA busy_timeout=5000")
        if schema.version(connection) <= 0:  # A copy that has not ended, or nothing of genhook.
            raise CommandError(f"the backup failed: {schema.problem(connection)}")
        connection.execute("VACUUM INTO ?", (str(target),))
    with contextlib.closing(sqlite3.connect(target, isolation_level=None)) as connection:
        [[verdict]] = connection.execute("PRAGMA quick_check(1)").fetchall()
    if verdict != "ok":
        raise CommandError(f"the backup failed: {verdict}")
    descriptor = os.open(target, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
