"""Sign-ins to the pages. Only the SHA-256 of a sign-in's id is stored, and that of its key."""

import hashlib

from service.model.clock import HOUR
from service.store.database import Transaction

LIFE_MS = 12 * HOUR
PER_KEY_MAX = 10  # The oldest of a key ends when one more begins.


async def begin(tx: Transaction, id_: bytes, key_sha256: bytes) -> None:
    """Store a sign-in with a key; delete expired ones, and the oldest beyond PER_KEY_MAX."""
    await tx.lock_names(f"sign-ins {key_sha256.hex()}")
    await tx.run("sign_ins_delete_expired", now=tx.now)
    await tx.run("sign_ins_keep_newest", key_sha256=key_sha256, keep=PER_KEY_MAX - 1)
    digest, expires_at = hashlib.sha256(id_).digest(), tx.now + LIFE_MS
    await tx.run("sign_in_insert", id_sha256=digest, key_sha256=key_sha256, expires_at=expires_at)


async def find_key(tx: Transaction, id_: bytes) -> bytes | None:
    """Return the digest of the key of a sign-in; None if the sign-in is expired or unknown."""
    digest = hashlib.sha256(id_).digest()
    row = await tx.one("sign_in_get", id_sha256=digest, now=tx.now)
    return row["key_sha256"] if row else None


async def end(tx: Transaction, id_: bytes) -> None:
    """Delete a sign-in."""
    await tx.run("sign_in_delete", id_sha256=hashlib.sha256(id_).digest())
