"""After a rotation of GENHOOK_SECRET_KEYS, reseal every stored secret under the newest key."""

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
        if changes := _changes(vault, row):
            await subscribers.update_tenant(tx, row["id"], changes["sealed_secrets"])
            count += 1
    return count


async def _reseal_page(tx: Transaction, vault: Vault, after: str) -> tuple[int, str | None]:
    """Reseal a page of subscribers; return how many, and the id to continue after, or None."""
    rows = await tx.all("subscribers_list_sealed", after=after, limit=PAGE)
    resealed = [{**dict(row), **changes} for row in rows if (changes := _changes(vault, row))]
    await tx.many("subscriber_reseal", resealed)
    return len(resealed), rows[-1]["id"] if len(rows) == PAGE else None


def _changes(vault: Vault, row: Row) -> dict[str, bytes]:
    """Return the `sealed_*` columns of a row that an older key sealed, resealed by the newest."""
    changes: dict[str, bytes] = {}
    for column, sealed in dict(row).items():
        if column == "id" or sealed is None or vault.is_current(sealed):
            continue
        context = f"{column.removeprefix('sealed_')}:{row['id']}"
        try:
            changes[column] = vault.seal(vault.open(sealed, context), context)
        except VaultError as error:
            _log.error("secret.unreadable", id=row["id"], column=column, error=str(error))
    return changes
