"""Idempotency keys of tenants: each with what it created, and with the sealed answer."""

from service.model.ids import time_of
from service.store.database import Row, Transaction


async def get(tx: Transaction, tenant: str, key: str) -> Row | None:
    """Return the row of an idempotency key, or None."""
    return await tx.one("idempotency_by_key", tenant=tenant, key=key)


async def claim(
    tx: Transaction,
    tenant: str,
    key: str,
    request_sha256: bytes,
    resource_id: str,
    answer: tuple[int, bytes] | None,
) -> None:
    """Store that the request with this key created the resource; its answer if it is known."""
    status_code, sealed_answer = answer or (None, None)
    await tx.run(
        "idempotency_claim",
        tenant=tenant,
        key=key,
        request_sha256=request_sha256,
        resource_id=resource_id,
        status_code=status_code,
        sealed_answer=sealed_answer,
        created_at=time_of(resource_id),  # By it, an erasure finds the key.
    )


async def store_answer(
    tx: Transaction, tenant: str, key: str, resource_id: str, answer: tuple[int, bytes]
) -> None:
    """Store the answer of the request, for repeats."""
    status_code, sealed_answer = answer
    values = {"status_code": status_code, "sealed_answer": sealed_answer}
    await tx.run(
        "idempotency_store_answer", tenant=tenant, key=key, resource_id=resource_id, **values
    )
