"""Commands that open the database themselves, beside a running service or without one."""

import argparse
import os
import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from service.cli import interrupts, output, streams
from service.cli.arguments import add_json, define
from service.cli.environment import require_database
from service.model.clock import now_ms
from service.model.errors import CommandError, MissingError, StorageError, UsageError
from service.model.ids import new_id
from service.model.key import DEFAULT_TENANT, TENANT_NAME, TENANT_NAME_RULE, Key, new_key
from service.settings import Settings, read_database_settings, read_settings

if TYPE_CHECKING:  # They take most of a second to import, and `--help` needs none of them.
    from service.context import Context
    from service.store.database import Transaction
    from service.store.pages import Page

Show = Callable[[dict[str, Any]], None]  # Prints an answer of the API.


def add_migrate(parser: argparse.ArgumentParser) -> None:
    """Add the options of `genhook migrate`."""
    define(parser, migrate, "GENHOOK_DATABASE_URL=sqlite:////var/lib/genhook.db genhook migrate")
    add_json(parser)


def migrate(options: argparse.Namespace) -> int:
    """Bring the database to the schema of this version, and print each step."""
    from service.telemetry import log

    settings = read_database_settings()
    log.configure("warning")
    steps, version = interrupts.run(_migrate(settings))
    name = settings.database_name
    done = {"database": name, "applied": steps, "schema_version": version}
    lines = [f"applied {step}" for step in steps]
    lines.append(f"{name} has schema {version}, the one that this genhook needs.")
    output.show(options, done, lines)
    return 0


async def _migrate(settings: Settings) -> tuple[list[str], int]:
    """Apply the missing migrations; return their names, and the version of the schema."""
    from service.app import new_store

    database, _ = new_store(settings, now_ms)
    await database.open()
    try:
        return await database.migrate(), database.schema_version
    finally:
        await database.close()


def create_key(options: argparse.Namespace, show: Show) -> None:
    """Create an API key and show it, as the API would."""
    tenant = options.tenant or DEFAULT_TENANT
    if not TENANT_NAME.fullmatch(tenant):
        raise UsageError(f"a tenant's name is {TENANT_NAME_RULE}.")
    streams.require_output("the key")
    now = now_ms()
    key = Key(
        id=new_id("key", now),
        name=options.name,
        tenant=tenant,
        scopes=options.scopes,
        created_at=now,
    )
    secret = new_key(os.urandom)
    # The key is shown before it is stored: a key that nobody has seen must not be valid.
    before = partial(show, {**key.view(), "key": secret})
    try:
        _audit("key.create", _write(read_settings(), _insert, key, secret, before=before))
    except StorageError as error:
        raise CommandError(f"the key was not created: {error}") from error


def list_keys(options: argparse.Namespace) -> dict[str, Any]:
    """Return a page of the keys of every tenant, or of one."""
    from service.api.call import AFTER_RULE, ID, LIMIT_DEFAULT, LIMIT_MAX
    from service.store.pages import Page

    limit = LIMIT_DEFAULT if options.limit is None else options.limit
    if not 1 <= limit <= LIMIT_MAX:
        raise UsageError(f"--limit must be a whole number from 1 to {LIMIT_MAX}.")
    if options.after and not re.fullmatch(f"key{ID}", options.after):
        raise UsageError(f"--after {AFTER_RULE}.")
    page = Page(limit=limit, after=options.after, ascending=options.order == "asc")
    settings = require_database(read_settings())
    keys, after = _write(settings, _list, page, options.tenant)
    return {"data": [key.view() for key in keys], "next": after}


def revoke_key(options: argparse.Namespace) -> dict[str, Any]:
    """Revoke a key of any tenant: every request with it is refused."""
    settings = require_database(read_settings())
    _audit("key.revoke", _write(settings, _revoke, options.id))
    return {"id": options.id}


def _audit(act: str, key: Key) -> None:
    """Log the same line of an act on a key as the API."""
    from service.telemetry import log

    log.get().info("audit", act=act, id=key.id, of_tenant=key.tenant, of_scopes=key.scopes)


def _write(
    settings: Settings,
    unit: Callable[..., Any],
    *arguments: object,
    before: Callable[[], None] | None = None,
) -> Any:
    """Run one unit of work over the database of the settings, after `before` once it is open."""
    import msgspec

    from service.app import App
    from service.telemetry import log

    async def write() -> Any:
        app = App(msgspec.structs.replace(settings, max_in_flight=1))  # It sends nothing.
        await app.start(worker=False)
        try:
            if before:
                before()
            return await app.database.write(unit, app.context, *arguments)
        finally:
            await app.stop()

    log.configure("info")
    return interrupts.run(write())


async def _insert(tx: "Transaction", context: "Context", key: Key, secret: str) -> Key:
    from service.delivery import tenants
    from service.store import keys, rows

    await tenants.ensure(tx, context, key.tenant)
    await rows.insert(tx, key, key_sha256=keys.digest(secret))
    return key


async def _list(
    tx: "Transaction", _context: "Context", page: "Page", tenant: str | None
) -> tuple[list[Key], str | None]:
    from service.store import pages, rows

    source = pages.Source(table="keys", where=["tenant = :tenant"] if tenant else [])
    items, after = await pages.read(tx, source, page, {"tenant": tenant})
    return rows.decode_rows(Key, items), after


async def _revoke(tx: "Transaction", _context: "Context", key_id: str) -> Key:
    from service.store import keys, rows

    key = await rows.read_by_id(tx, Key, key_id)
    if key is None:
        raise MissingError(f"there is no key {key_id}: genhook keys list --offline lists them.")
    await keys.revoke(tx, key_id)
    return key
