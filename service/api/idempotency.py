"""`Idempotency-Key`: a repeated request gets the stored answer. Answers are sealed at rest."""

import contextlib
import hashlib
import re
from collections.abc import Awaitable, Callable

import msgspec

from service.api.call import Answer, Call
from service.api.problem import Problem
from service.model.clock import DAY, MINUTE
from service.model.errors import StorageError
from service.model.ids import new_id
from service.store import idempotency
from service.store.database import Transaction

RETENTION_MS = DAY
ABANDONED_MS = 5 * MINUTE  # No request runs for so long: its process has died.
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


class _StoredAnswer(msgspec.Struct, frozen=True):
    """An answer as it is sealed."""

    status: int
    media_type: str
    body: bytes
    headers: dict[str, str] = {}


async def once(
    call: Call, operation: str, prefix: str, create: Callable[[Call], Awaitable[Answer]]
) -> Answer:
    """Answer with what `create` returns, or with its stored answer if the request is a repeat.

    The id of the new resource is stored with the key, before `create` runs. A request that is
    repeated after a crash gets the same id, and `create` finds what the first one created.
    """
    fresh_id = new_id(prefix, call.context.clock())
    key = call.headers.get("idempotency-key")
    if key is None:
        return await create(msgspec.structs.replace(call, resource_id=fresh_id))
    if not _KEY.fullmatch(key):
        detail = "Idempotency-Key must be 1 to 255 visible ASCII characters."
        raise Problem(400, "invalid_header", detail)
    scoped = f"{call.key.id}:{key}"
    fingerprint = hashlib.sha256(operation.encode() + b"\0" + call.body).digest()
    database = call.database
    claimed = await database.write(_claim, call, scoped, fingerprint, fresh_id)
    if isinstance(claimed, Answer):
        return claimed
    try:
        answer = await create(msgspec.structs.replace(call, resource_id=claimed))
        sealed = _seal(call, scoped, answer)
        await database.write(idempotency.store_answer, call.tenant, scoped, answer.status, sealed)
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
        return _unseal(call, scoped, row["sealed_answer"])
    if row["created_at"] > tx.now - ABANDONED_MS:
        detail = "The first request with this key is still running."
        raise Problem(409, "idempotency_key_in_use", detail, headers={"retry-after": "1"})
    resource_id: str = row["resource_id"]
    await idempotency.claim(tx, call.tenant, scoped, fingerprint, resource_id)
    return resource_id


def _seal(call: Call, scoped: str, answer: Answer) -> bytes:
    body, headers = answer.encoded(), dict(answer.headers)
    stored = _StoredAnswer(answer.status, answer.media_type, body, headers)
    return call.context.vault.seal(msgspec.json.encode(stored), f"answer:{scoped}")


def _unseal(call: Call, scoped: str, sealed: bytes) -> Answer:
    plain = call.context.vault.open(sealed, f"answer:{scoped}")
    stored = msgspec.json.decode(plain, type=_StoredAnswer)
    return Answer(
        status=stored.status,
        media_type=stored.media_type,
        body=stored.body,
        headers={**stored.headers, "Idempotency-Replayed": "true"},
    )
