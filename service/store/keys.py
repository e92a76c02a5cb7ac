"""API keys. Only the SHA-256 of a key is stored."""

import hashlib
from collections.abc import Sequence

import msgspec

from service.model.key import Key
from service.store.database import Row, Transaction
from service.store.rows import convert, json_text


def digest(secret: str) -> bytes:
    """Return the SHA-256 of a key, which is stored instead of the key."""
    return hashlib.sha256(secret.encode()).digest()


def from_row(row: Row) -> Key:
    """Return the key in a row."""
    return convert(Key, row, json=frozenset({"scopes"}))


async def insert(tx: Transaction, new: Key, secret: str) -> None:
    """Store a new key."""
    row = {**msgspec.structs.asdict(new), "scopes": json_text(new.scopes)}
    await tx.run("key_insert", **row, key_sha256=digest(secret))


async def get_by_secret(tx: Transaction, secret: str) -> Key | None:
    """Return the key with this secret, unless it is revoked."""
    row = await tx.one("key_by_sha256", key_sha256=digest(secret))
    return from_row(row) if row else None


async def get(tx: Transaction, tenant: str, key_id: str) -> Key | None:
    """Return the key with this id, if it is the tenant's."""
    row = await tx.one("key_by_id", tenant=tenant, id=key_id)
    return from_row(row) if row else None


async def revoke(tx: Transaction, key_id: str) -> None:
    """Revoke a key."""
    await tx.run("key_revoke", id=key_id, now=tx.now)


async def record_uses(tx: Transaction, uses: Sequence[tuple[str, int]]) -> list[None]:
    """Store when keys were last used, each as (key id, time)."""
    await tx.many("key_record_use", [{"id": key_id, "at": at} for key_id, at in uses])
    return [None] * len(uses)
