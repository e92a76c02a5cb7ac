"""API keys, of which only the SHA-256 is stored, and the answers kept for `Idempotency-Key`."""

import hashlib
from collections.abc import Sequence

import msgspec

from service.model.key import Key
from service.store.database import Row, Transaction
from service.store.rows import noun, text


def digest(key: str) -> bytes:
    """What is stored of a key."""
    return hashlib.sha256(key.encode()).digest()


def key(row: Row) -> Key:
    """The key in a row."""
    return noun(Key, row, json=frozenset({"scopes"}))


async def insert(tx: Transaction, new: Key, secret: str) -> None:
    """Store a new key."""
    row = msgspec.structs.asdict(new)
    await tx.run("key_insert", **{**row, "scopes": text(new.scopes), "key_sha256": digest(secret)})


async def find(tx: Transaction, secret: str) -> Key | None:
    """The live key that is `secret`."""
    row = await tx.one("key_by_sha256", key_sha256=digest(secret))
    return key(row) if row else None


async def get(tx: Transaction, tenant: str, key_id: str) -> Key | None:
    """The key with this id, if it is the tenant's."""
    row = await tx.one("key_by_id", tenant=tenant, id=key_id)
    return key(row) if row else None


async def revoke(tx: Transaction, key_id: str) -> None:
    """From now on the key opens nothing."""
    await tx.run("key_revoke", id=key_id, now=tx.now)


async def used(tx: Transaction, uses: Sequence[tuple[str, int]]) -> list[None]:
    """Note when keys were last used."""
    await tx.many("keys_used", [{"id": key_id, "at": at} for key_id, at in uses])
    return [None] * len(uses)


async def find_answer(tx: Transaction, tenant: str, name: str) -> Row | None:
    """What is kept for an idempotency key."""
    return await tx.one("idempotency_find", tenant=tenant, key=name)


async def claim(
    tx: Transaction, tenant: str, name: str, request_sha256: bytes, resource_id: str
) -> None:
    """Note that a request with this idempotency key is running, and the id of what it makes."""
    await tx.run(
        "idempotency_claim",
        tenant=tenant,
        key=name,
        request_sha256=request_sha256,
        resource_id=resource_id,
        created_at=tx.now,
    )


async def finish(
    tx: Transaction, tenant: str, name: str, status_code: int, sealed_answer: bytes
) -> None:
    """Keep the answer of a request that has ended."""
    await tx.run(
        "idempotency_finish",
        tenant=tenant,
        key=name,
        status_code=status_code,
        sealed_answer=sealed_answer,
    )


async def release(tx: Transaction, tenant: str, name: str) -> None:
    """Forget a request that created nothing."""
    await tx.run("idempotency_release", tenant=tenant, key=name)


async def abandon(tx: Transaction, tenant: str, name: str, age_ms: int) -> None:
    """Make a claim `age_ms` older: its request has ended, and nobody knows how far it came."""
    await tx.run("idempotency_abandon", tenant=tenant, key=name, age_ms=age_ms)


async def delete_past_answers(tx: Transaction, before: int, limit: int) -> int:
    """Forget idempotency keys that came before a time, a batch; how many went."""
    return await tx.run("idempotency_delete_past", before=before, limit=limit)
