"""`Idempotency-Key`: a repeated request gets the stored answer. Answers are sealed at rest."""

import contextlib
import hashlib
import re

import msgspec

from service.api.call import Answer, Call
from service.api.problem import Problem
from service.api.routes import Operation
from service.model.clock import DAY, MINUTE
from service.model.errors import StorageError
from service.model.ids import new_id
from service.store import idempotency
from service.store.database import Transaction, Unit

RETENTION_MS = DAY
ABANDONED_MS = 5 * MINUTE  # No request runs for so long: its process has died.
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


class _StoredAnswer(msgspec.Struct, frozen=True):
    """An answer as it is sealed."""

    status: int
    media_type: str
    body: bytes


async def once(call: Call, operation: Operation) -> Answer:
    """Answer with what the operation returns, or its stored answer if the request is a repeat.

    The id of the new resource is stored with the key, before the operation runs. A request that
    is repeated after a crash gets the same id, and the operation finds what the first one created.
    """
    fresh_id = new_id(operation.creates, call.context.clock())
    key = call.headers.get("idempotency-key")
    run: Unit[Answer] = operation.run
    if key is None:
        return await run(msgspec.structs.replace(call, resource_id=fresh_id))
    if not _KEY.fullmatch(key):
        detail = "Idempotency-Key must be 1 to 255 visible ASCII characters."
        raise Problem(400, "invalid_header", detail)
    database, scoped = call.database, f"{call.key.id}:{key}"
    request = f"{operation.method} {operation.path}\0".encode() + call.body
    fingerprint = hashlib.sha256(request).digest()
    claimed = await database.write(_claim, call, scoped, fingerprint, fresh_id)
    if isinstance(claimed, Answer):
        return claimed
    try:
        answer = await run(msgspec.structs.replace(call, resource_id=claimed))
        stored = _StoredAnswer(answer.status_code, str(answer.media_type), bytes(answer.body))
        sealed = call.context.vault.seal(msgspec.json.encode(stored), f"answer:{scoped}")
        await database.write(idempotency.store_answer, call.tenant, scoped, stored.status, sealed)
    except Problem:
        await database.write(idempotency.release, call.tenant, scoped)
        raise
    except StorageError:
        # The request has ended: a repeat need not wait, and finds what was created by its id.
        with contextlib.suppress(StorageError):
            await database.write(idempotency.age, call.tenant, scoped, ABANDONED_MS)
        raise
    return answer


async def _claim(
    tx: Transaction, call: Call, scoped: str, fingerprint: bytes, fresh_id: str
) -> Answer | str:
    """Return the stored answer, or the id of what to create; Problem if the key is in use."""
    row = await idempotency.get(tx, call.tenant, scoped)
    if row is None or row["created_at"] <= tx.now - RETENTION_MS:
        await idempotency.claim(tx, call.tenant, scoped, fingerprint, fresh_id)
        return fresh_id
    if row["request_sha256"] != fingerprint:
        detail = "This Idempotency-Key was used for another request."
        raise Problem(422, "idempotency_key_reused", detail)
    if row["sealed_answer"] is not None:
        plain = call.context.vault.open(row["sealed_answer"], f"answer:{scoped}")
        stored = msgspec.json.decode(plain, type=_StoredAnswer)
        headers = {"Idempotency-Replayed": "true"}
        return Answer(stored.body, stored.status, headers, stored.media_type)
    if row["created_at"] > tx.now - ABANDONED_MS:
        detail = "The first request with this key is still running."
        raise Problem(409, "idempotency_key_in_use", detail, headers={"retry-after": "1"})
    resource_id: str = row["resource_id"]
    await idempotency.claim(tx, call.tenant, scoped, fingerprint, resource_id)
    return resource_id
