"""API keys. Only the SHA-256 of a key is stored."""

import hashlib
from collections.abc import Sequence

from service.model.key import Key
from service.store import rows
from service.store.database import Transaction


def digest(secret: str) -> bytes:
    """Return the SHA-256 of a key, which is stored instead of the key."""
    return hashlib.sha256(secret.encode()).digest()


async def get_by_digest(tx: Transaction, key_sha256: bytes) -> Key | None:
    """Return the key with this digest, unless it is revoked."""
    return await rows.read_one(tx, Key, "key_by_sha256", key_sha256=key_sha256)


async def revoke(tx: Transaction, key_id: str) -> None:
    """Revoke a key."""
    await tx.run("key_revoke", id=key_id, now=tx.now)


async def record_uses(tx: Transaction, uses: Sequence[tuple[str, int]]) -> list[None]:
    """Store when keys were last used, each as (key id, time)."""
    await tx.many("key_record_use", [{"id": key_id, "at": at} for key_id, at in sorted(uses)])
    return [None] * len(uses)
