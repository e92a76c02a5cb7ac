"""`genhook copy`: move a stopped service to another database."""

import argparse
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from service.cli import interrupts, output, streams
from service.cli.arguments import add_json, check, define
from service.model.errors import CommandError, SettingsError, UsageError
from service.settings import POSTGRES, Settings, read_variable
from service.store import copying

_VARIABLE = "GENHOOK_DATABASE_URL"
_REPORT_SECONDS = 5.0


def add_copy(parser: argparse.ArgumentParser) -> None:
    """Add the options of `genhook copy`."""
    example = "genhook copy --from sqlite:////var/lib/genhook.db --to postgresql://app@db/genhook"
    define(parser, copy, example)
    parser.add_argument(
        "--from",
        dest="source",
        metavar="URL",
        required=True,
        type=_parse_url,
        help="the database to copy; stop every process that uses it",
    )
    parser.add_argument(
        "--to",
        dest="target",
        metavar="URL",
        required=True,
        type=_parse_url,
        help="a new or empty database, or one to which a copy was interrupted",
    )
    add_json(parser)


def _parse_url(text: str) -> str:
    try:
        path = read_variable(_VARIABLE, {_VARIABLE: text})
    except SettingsError as error:
        rule = str(error).removeprefix(f"{_VARIABLE} ")
        raise argparse.ArgumentTypeError(rule.rstrip(".")) from error
    check(path is not None, "must not be empty")  # A setting may be: it is not set then.
    return str(path)


def _identify(source: str) -> str:
    """Return the URL of a server, or the one path of a file that may have several."""
    return source if source.startswith(POSTGRES) else os.path.realpath(source)


def copy(options: argparse.Namespace) -> int:
    """Copy every row and compare counts and digests of both sides; an interrupted copy goes on."""
    if _identify(options.source) == _identify(options.target):
        raise UsageError("--from and --to are the same database.")
    try:
        _ = options.source.startswith(POSTGRES) or Path(options.source).stat()
    except OSError as error:
        raise CommandError(f"cannot open {options.source}: {error.strerror}") from error
    began = time.monotonic()
    counts = interrupts.run(_copy(options.source, options.target))
    seconds = time.monotonic() - began
    total, width = sum(counts.values()), max(map(len, counts))
    done = {"tables": counts, "rows": total, "seconds": round(seconds, 3)}
    lines = [f"{table:{width}}  {count:>12,}" for table, count in counts.items()]
    lines.append(f"All {total:,} rows are equal on both sides. It took {seconds:.1f} s.")
    output.show(options, done, lines)
    return 0


async def _copy(source: str, target: str) -> dict[str, int]:
    reported_at = time.monotonic()

    def report(table: str, count: int) -> None:
        nonlocal reported_at
        if time.monotonic() - reported_at >= _REPORT_SECONDS:
            reported_at = time.monotonic()
            streams.note(f"{table}: {count:,} rows copied")

    async with _opened(source) as one, _opened(target, is_new=True) as other:
        return await copying.copy(one, other, report)


@contextlib.asynccontextmanager
async def _opened(path: str, *, is_new: bool = False) -> AsyncIterator[copying.Side]:
    """Open a database that no worker uses; a new one is migrated."""
    from service.app import new_store
    from service.model.clock import now_ms
    from service.store.shards import ALL

    settings = Settings(database_path=path)
    database, ownership = new_store(settings, now_ms)
    async with contextlib.AsyncExitStack() as stack:
        await database.open()
        stack.push_async_callback(database.close)
        if refusal := ownership.refusal:  # Before `_side_of`, whose settings a pooler refuses.
            raise CommandError(refusal)
        side = await _side_of(settings, database, stack)
        if is_new:
            if not await side.is_marked():
                await database.migrate()
        elif problem := await database.schema_problem():
            raise CommandError(f"{side.name}: {problem}")
        if not await ownership.acquire(ALL) or ownership.shards != ALL:
            raise CommandError(f"{side.name}: a worker uses it; stop every process that does")
        stack.push_async_callback(ownership.release)
        yield side


async def _side_of(
    settings: Settings, database: Any, stack: contextlib.AsyncExitStack
) -> copying.Side:
    """Return the side of an open database; what it opens itself is closed by the stack."""
    if not settings.is_postgres:
        from service.store.sqlite.side import SqliteSide

        return SqliteSide(settings.database_path, database)
    from service.store.postgres.connection import connect
    from service.store.postgres.side import PostgresSide

    connection = await connect(settings.database_path)
    stack.push_async_callback(connection.close)
    return PostgresSide("the PostgreSQL database", connection, database)
