"""Commands that open the database themselves, beside a running service or without one."""

import argparse
import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from service.app import App
from service.cli import output
from service.context import Context
from service.delivery import tenants
from service.model.clock import now_ms
from service.model.errors import CommandError
from service.model.ids import new_id
from service.model.key import Key
from service.settings import Settings, read_settings
from service.store import keys, pages
from service.store.sqlite import schema
from service.store.sqlite.database import Database, Transaction
from service.telemetry import log
from service.telemetry.redact import Redactor
from service.worker import Done

Say = Callable[[str], None]

KEYS_MAX = 1_000
_TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def migrate(_options: argparse.Namespace, say: Say) -> int:
    """Bring the database to the schema of this version, and say what that took."""
    settings = read_settings()
    log.configure("warning")
    for name in asyncio.run(_migrate(settings)):
        say(f"applied {name}")
    say(f"{settings.database_path} has schema {schema.latest()}, the one that this genhook needs.")
    return 0


async def _migrate(settings: Settings) -> list[str]:
    database = Database(settings.database_path)
    await database.open()
    try:
        return await schema.migrate(database)
    finally:
        await database.close()


def tick(options: argparse.Namespace, say: Say) -> int:
    """Do what is due, once, for at most the given seconds."""
    settings = read_settings()
    log.configure(settings.log_level, redactor=Redactor(settings.secrets, settings.public_url))
    done = asyncio.run(_tick(settings, options.seconds))
    if options.json:
        say(msgspec.json.encode(done).decode())
        return 0
    counts = {n: v for n, v in msgspec.structs.asdict(done).items() if n != "more" and v}
    said = ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing was due"
    say(f"{said}; more is due, or another process works on it" if done.more else said)
    return 0


async def _tick(settings: Settings, seconds: float) -> Done:
    async with _started(settings) as app:
        assert app.worker is not None
        return await app.worker.tick(seconds)


@contextlib.asynccontextmanager
async def _started(settings: Settings) -> AsyncIterator[App]:
    """The application with its database open, and nothing running."""
    app = App(settings)
    await app.start(worker=False)
    try:
        yield app
    finally:
        await app.stop()


def create_key(options: argparse.Namespace, say: Say) -> int:
    """Make an API key and show it, this once."""
    log.configure("warning")
    if not _TENANT.fullmatch(options.tenant):
        raise CommandError("a tenant's name is 1 to 63 of a-z, 0-9, - and _.")
    now = now_ms()
    new = Key(
        id=new_id("key", now),
        name=options.name,
        tenant=options.tenant,
        scopes=options.scopes,
        created_at=now,
        last_used_at=None,
        revoked_at=None,
    )
    secret = "ghk_" + secrets.token_urlsafe(32)
    asyncio.run(_write(read_settings(), _insert, new, secret))
    view = {**new.view(), "key": secret}
    if options.json:
        say(msgspec.json.encode(view).decode())
        return 0
    for line in output.fields({**view, "scopes": ", ".join(new.scopes)}):
        say(line)
    say("The key is shown this once: what is stored is its SHA-256.")
    return 0


def list_keys(options: argparse.Namespace, say: Say) -> int:
    """Every key of every tenant, newest first."""
    log.configure("warning")
    found: list[Key] = asyncio.run(_write(read_settings(), _list))
    if options.json:
        say(msgspec.json.encode({"data": [key.view() for key in found]}).decode())
        return 0
    for line in output.table([_row(key) for key in found]):
        say(line)
    return 0


def revoke_key(options: argparse.Namespace, say: Say) -> int:
    """From now on the key opens nothing, whoever's it is."""
    log.configure("warning")
    asyncio.run(_write(read_settings(), _revoke, options.id))
    say(f"{options.id} is revoked.")
    return 0


async def _write(settings: Settings, unit: Callable[..., Any], *args: object) -> Any:
    async with _started(settings) as app:
        context = app.parts.context
        return await context.database.write(unit, context, *args)


async def _insert(tx: Transaction, context: Context, new: Key, secret: str) -> None:
    await tenants.ensure(tx, context, new.tenant)
    await keys.insert(tx, new, secret)


async def _list(tx: Transaction, _context: Context) -> list[Key]:
    rows, _ = await pages.page(tx, pages.KEYS, pages.Page(limit=KEYS_MAX), [], {})
    return [keys.key(row) for row in rows]


async def _revoke(tx: Transaction, _context: Context, key_id: str) -> None:
    if key_id not in {key.id for key in await _list(tx, _context)}:
        raise CommandError(f"there is no key {key_id}: genhook keys list shows all.")
    await keys.revoke(tx, key_id)


def _row(key: Key) -> tuple[str, ...]:
    state = "revoked" if key.revoked_at else "live"
    return key.id, state, key.tenant, ",".join(key.scopes), key.name
