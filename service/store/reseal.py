"""After a rotation of GENHOOK_SECRET_KEYS, reseal every stored secret under the newest key."""

from collections.abc import Mapping
from typing import Any

from service.store import subscribers
from service.store.database import Database, Row, Transaction
from service.store.vault import Vault, VaultError
from service.telemetry import log

_log = log.get()
PAGE = 100


async def run(database: Database, vault: Vault) -> int:
    """Reseal what an older key sealed; return how many rows. The older key can then be removed."""
    count = await database.write(_reseal_tenants, vault)
    after: str | None = ""
    while after is not None:
        page_count, after = await database.write(_reseal_page, vault, after)
        count += page_count
    if count:
        _log.info("secrets.resealed", rows=count)
    return count


async def _reseal_tenants(tx: Transaction, vault: Vault) -> int:
    count = 0
    for row in await subscribers.all_tenants(tx):
        changes = _changes(vault, row, {"sealed_secrets": f"secrets:{row['id']}"})
        if changes:
            await subscribers.update_tenant(tx, row["id"], changes["sealed_secrets"])
            count += 1
    return count


async def _reseal_page(tx: Transaction, vault: Vault, after: str) -> tuple[int, str | None]:
    """Reseal a page of subscribers; return how many, and the id to continue after, or None."""
    rows = await subscribers.list_sealed(tx, after, PAGE)
    count = 0
    for row in rows:
        contexts = {
            "sealed_secrets": f"secrets:{row['id']}",
            "sealed_headers": f"headers:{row['id']}",
        }
        changes = _changes(vault, row, contexts)
        if changes:
            await subscribers.reseal(tx, row, changes)
            count += 1
    return count, rows[-1]["id"] if len(rows) == PAGE else None


def _changes(vault: Vault, row: Row, contexts: Mapping[str, str]) -> dict[str, Any]:
    """Return the columns of a row that an older key sealed, resealed by the newest."""
    changes: dict[str, Any] = {}
    for column, context in contexts.items():
        sealed = row[column]
        if sealed is None or vault.is_current(sealed):
            continue
        try:
            changes[column] = vault.seal(vault.open(sealed, context), context)
        except VaultError as error:
            _log.error("secret.unreadable", id=row["id"], column=column, error=str(error))
    return changes
