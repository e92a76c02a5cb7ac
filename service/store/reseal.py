"""After a rotation of GENHOOK_SECRET_KEYS, reseal every stored secret under the newest key."""

from service.store import subscribers
from service.store.database import Row, Transaction
from service.store.vault import Vault, VaultError
from service.store.writes import Database
from service.telemetry import log

_log = log.get()
PAGE = 100
# The statements that list sealed columns, and those that replace them.
_STATEMENTS = {"tenants_sealed": "tenant_update", "subscribers_sealed": "subscriber_reseal"}


async def run(database: Database, vault: Vault) -> int:
    """Reseal what an older key sealed; return how many rows. The older key can then be removed."""
    count = 0
    for name in _STATEMENTS:
        after: str | None = ""
        while after is not None:
            page_count, after = await database.write(_reseal_page, vault, name, after)
            count += page_count
    if count:
        _log.info("secrets.resealed", rows=count)
    return count


async def _reseal_page(
    tx: Transaction, vault: Vault, name: str, after: str
) -> tuple[int, str | None]:
    """Reseal the next rows; return how many, and the id to continue after, or None."""
    rows = await tx.lock(name, after=after, limit=PAGE)
    resealed = [{**dict(row), **changes} for row in rows if (changes := _changes(vault, row))]
    await tx.many(_STATEMENTS[name], resealed)
    if resealed:
        await subscribers.bump_revision(tx)
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
