"""Idempotency keys: claimed before their request runs, then stored with its sealed answer."""

from service.store.database import Row, Transaction


async def get(tx: Transaction, tenant: str, key: str) -> Row | None:
    """Return the row of an idempotency key."""
    return await tx.one("idempotency_by_key", tenant=tenant, key=key)


async def claim(
    tx: Transaction, tenant: str, key: str, request_sha256: bytes, resource_id: str
) -> None:
    """Store that a request with this key is running, and the id of the resource it creates."""
    request = {"request_sha256": request_sha256, "resource_id": resource_id, "created_at": tx.now}
    await tx.run("idempotency_claim", tenant=tenant, key=key, **request)


async def store_answer(
    tx: Transaction, tenant: str, key: str, status_code: int, sealed_answer: bytes
) -> None:
    """Store the answer of the request, for repeats."""
    answer = {"status_code": status_code, "sealed_answer": sealed_answer}
    await tx.run("idempotency_store_answer", tenant=tenant, key=key, **answer)


async def release(tx: Transaction, tenant: str, key: str) -> None:
    """Delete the claim of a request that created nothing."""
    await tx.run("idempotency_release", tenant=tenant, key=key)


async def age(tx: Transaction, tenant: str, key: str, age_ms: int) -> None:
    """Make a claim `age_ms` older, so that a repeated request may take it over at once."""
    await tx.run("idempotency_age", tenant=tenant, key=key, age_ms=age_ms)
