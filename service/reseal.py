"""After a rotation of GENHOOK_SECRET_KEYS, seal every stored secret anew under the newest key."""

from collections.abc import Mapping
from typing import Any

from service import log
from service.context import Context
from service.store import subscribers
from service.store.database import Row, Transaction
from service.vault import VaultError

_log = log.get()
PAGE = 100


async def run(context: Context) -> int:
    """Seal anew what an older key sealed; how many rows. Then that key may be taken away."""
    count = await context.database.write(_tenants, context)
    after: str | None = ""
    while after is not None:
        done, after = await context.database.write(_page, context, after)
        count += done
    if count:
        _log.info("secrets.resealed", rows=count)
    return count


async def _tenants(tx: Transaction, context: Context) -> int:
    count = 0
    for row in await subscribers.all_tenants(tx):
        changes = _changes(context, row, {"sealed_secrets": f"secrets:{row['id']}"})
        if changes:
            await subscribers.change_tenant(tx, row["id"], changes["sealed_secrets"])
            count += 1
    return count


async def _page(tx: Transaction, context: Context, after: str) -> tuple[int, str | None]:
    """One page of subscribers: how many were sealed anew, and where the next page starts."""
    rows = await subscribers.sealed_page(tx, after, PAGE)
    count = 0
    for row in rows:
        owners = {
            "sealed_secrets": f"secrets:{row['id']}",
            "sealed_headers": f"headers:{row['id']}",
        }
        changes = _changes(context, row, owners)
        if changes:
            await subscribers.reseal(tx, row, changes)
            count += 1
    return count, rows[-1]["id"] if len(rows) == PAGE else None


def _changes(context: Context, row: Row, owners: Mapping[str, str]) -> dict[str, Any]:
    """The sealed columns of a row that an older key sealed, sealed by the newest."""
    changes: dict[str, Any] = {}
    for column, owner in owners.items():
        sealed = row[column]
        if sealed is None or context.vault.is_current(sealed):
            continue
        try:
            changes[column] = context.vault.seal(context.vault.open(sealed, owner), owner)
        except VaultError as error:
            _log.error("secret.unreadable", id=row["id"], column=column, error=str(error))
    return changes
