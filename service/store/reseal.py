"""After a rotation of GENHOOK_SECRET_KEYS, seal every stored secret anew under the newest key."""

from collections.abc import Mapping
from typing import Any

from service.store import subscribers
from service.store.database import Database, Row, Transaction
from service.store.vault import Vault, VaultError
from service.telemetry import log

_log = log.get()
PAGE = 100


async def run(database: Database, vault: Vault) -> int:
    """Seal anew what an older key sealed; how many rows. Then that key may be taken away."""
    count = await database.write(_tenants, vault)
    after: str | None = ""
    while after is not None:
        done, after = await database.write(_page, vault, after)
        count += done
    if count:
        _log.info("secrets.resealed", rows=count)
    return count


async def _tenants(tx: Transaction, vault: Vault) -> int:
    count = 0
    for row in await subscribers.all_tenants(tx):
        changes = _changes(vault, row, {"sealed_secrets": f"secrets:{row['id']}"})
        if changes:
            await subscribers.change_tenant(tx, row["id"], changes["sealed_secrets"])
            count += 1
    return count


async def _page(tx: Transaction, vault: Vault, after: str) -> tuple[int, str | None]:
    """One page of subscribers: how many were sealed anew, and where the next page starts."""
    rows = await subscribers.sealed_page(tx, after, PAGE)
    count = 0
    for row in rows:
        owners = {
            "sealed_secrets": f"secrets:{row['id']}",
            "sealed_headers": f"headers:{row['id']}",
        }
        changes = _changes(vault, row, owners)
        if changes:
            await subscribers.reseal(tx, row, changes)
            count += 1
    return count, rows[-1]["id"] if len(rows) == PAGE else None


def _changes(vault: Vault, row: Row, owners: Mapping[str, str]) -> dict[str, Any]:
    """The sealed columns of a row that an older key sealed, sealed by the newest."""
    changes: dict[str, Any] = {}
    for column, owner in owners.items():
        sealed = row[column]
        if sealed is None or vault.is_current(sealed):
            continue
        try:
            changes[column] = vault.seal(vault.open(sealed, owner), owner)
        except VaultError as error:
            _log.error("secret.unreadable", id=row["id"], column=column, error=str(error))
    return changes
