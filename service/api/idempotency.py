"""`Idempotency-Key`: the same request twice is answered once and stored, secrets sealed."""

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
from service.store import keys
from service.store.database import Transaction

KEPT_MS = DAY
ABANDONED_MS = 5 * MINUTE  # Longer than any request runs: its process has died.
_NAME = re.compile(r"[\x21-\x7e]{1,255}")


class _Kept(msgspec.Struct, frozen=True):
    """An answer as it is sealed."""

    status: int
    media_type: str
    body: bytes
    headers: dict[str, str] = {}


async def once(
    call: Call, operation: str, prefix: str, make: Callable[[Call], Awaitable[Answer]]
) -> Answer:
    """Run `make` unless its answer is stored already.

    The id of what will be created is drawn first and kept with the key, so that a request that is
    repeated after a crash finds what the first one made instead of making another.
    """
    fresh_id = new_id(prefix, call.context.clock())
    name = call.headers.get("idempotency-key")
    if name is None:
        return await make(msgspec.structs.replace(call, resource_id=fresh_id))
    if not _NAME.fullmatch(name):
        raise Problem(
            400, "invalid_header", "Idempotency-Key must be 1 to 255 visible ASCII characters."
        )
    scoped = f"{call.key.id}:{name}"
    fingerprint = hashlib.sha256(operation.encode() + b"\0" + call.body).digest()
    database = call.context.database
    found = await database.write(_begin, call, scoped, fingerprint, fresh_id)
    if isinstance(found, _Kept):
        headers = {**found.headers, "Idempotency-Replayed": "true"}
        return Answer(
            status=found.status, media_type=found.media_type, body=found.body, headers=headers
        )
    try:
        answer = await make(msgspec.structs.replace(call, resource_id=found))
        kept = _Kept(answer.status, answer.media_type, answer.encoded(), dict(answer.headers))
        sealed = call.context.vault.seal(msgspec.json.encode(kept), f"answer:{scoped}")
        await database.write(keys.finish, call.tenant, scoped, answer.status, sealed)
    except Problem:
        await database.write(keys.release, call.tenant, scoped)
        raise
    except StorageError:
        # Nobody runs it any more: who asks again finds what was made, under the same id.
        with contextlib.suppress(StorageError):
            await database.write(keys.abandon, call.tenant, scoped, ABANDONED_MS)
        raise
    return answer


async def _begin(
    tx: Transaction, call: Call, scoped: str, fingerprint: bytes, fresh_id: str
) -> _Kept | str:
    """The kept answer, or the id under which to make it; Problem if the key cannot be used."""
    row = await keys.find_answer(tx, call.tenant, scoped)
    if row is None or row["created_at"] <= tx.now - KEPT_MS:
        await keys.claim(tx, call.tenant, scoped, fingerprint, fresh_id)
        return fresh_id
    if row["request_sha256"] != fingerprint:
        raise Problem(
            422, "idempotency_key_reused", "This Idempotency-Key came with another request before."
        )
    if row["sealed_answer"] is not None:
        plain = call.context.vault.open(row["sealed_answer"], f"answer:{scoped}")
        return msgspec.json.decode(plain, type=_Kept)
    if row["created_at"] > tx.now - ABANDONED_MS:
        raise Problem(
            409,
            "idempotency_key_in_use",
            "The first request with this key is still running.",
            headers={"retry-after": "1"},
        )
    resource_id: str = row["resource_id"]
    await keys.claim(tx, call.tenant, scoped, fingerprint, resource_id)
    return resource_id
