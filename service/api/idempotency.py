"""`Idempotency-Key`: a repeated request gets the stored answer. Answers are sealed at rest.

A key belongs to the tenant, so that a client may change its API key between two tries. The claim
of a key is stored in the transaction that creates the resource: there is never one without the
other, whenever a process dies.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from service.api.call import Answer, Call, Claim, answer, read_header
from service.api.problem import PROBLEM_TYPE, Problem, require
from service.model.clock import DAY
from service.model.errors import StorageError
from service.model.generation import Generation
from service.model.ids import new_id
from service.store import idempotency, rows
from service.store.database import Row, T, Transaction, Unit
from service.telemetry import log

RETENTION_MS = DAY
ANSWER_BYTES_MAX = 64 * 1024  # Of a stored answer: an input may have many times as much.
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_log = log.get()


class _StoredAnswer(msgspec.Struct, frozen=True):
    """An answer in the form that is sealed and stored."""

    status: int
    media_type: str
    body: bytes


class _ClaimedError(Exception):
    """Another process stored the claim first: roll back, and answer from the row it stored."""

    def __init__(self, row: Row) -> None:
        self.row = row


async def once(call: Call, name: str, prefix: str, run: Unit[Answer]) -> Answer:
    """Return the answer of `run(call)`, or the stored one if the request is a repeat.

    name: of the operation; a key is valid for one only. prefix: of the id that the call creates.
    Problem 400 for a wrong key, 422 if another request had it, 409 if the first still runs.
    """
    fresh_id = new_id(prefix, call.context.clock())
    key = read_header(call.headers, "Idempotency-Key")
    if key is None:
        return await run(msgspec.structs.replace(call, resource_id=fresh_id))
    if not _KEY.fullmatch(key):
        detail = "Idempotency-Key must be 1 to 255 visible ASCII characters."
        raise Problem(400, "invalid_header", detail)
    claim = Claim(key, hashlib.sha256(f"{name}\0".encode() + call.body).digest())
    with _mark_running(call, claim):
        row = await call.database.read(_find, call.tenant, claim)
        if row is not None:
            return await _answer_again(call, claim, row)
        try:
            return await run(msgspec.structs.replace(call, resource_id=fresh_id, claim=claim))
        except _ClaimedError as error:
            return await _answer_again(call, claim, error.row)


async def create(call: Call, unit: Unit[T], *args: object) -> T:
    """Run `unit(tx, *args)`, which creates the resource of the call, and store the claim with it.

    If the unit returns an answer, it is stored too. Otherwise `keep` stores the answer later.
    """
    turn: dict[str, Any] = {"tenant": call.tenant, "held_bytes": len(call.body)}
    return await call.database.write(_create, call, unit, args, **turn)


async def _create(tx: Transaction, call: Call, unit: Unit[T], args: tuple[object, ...]) -> T:
    claim = call.claim
    if claim is not None:
        await tx.lock_names(f"idempotency {call.tenant} {claim.key}")
        if (row := await _find(tx, call.tenant, claim)) is not None:
            raise _ClaimedError(row)
    result = await unit(tx, *args)
    if claim is not None:
        sealed = _seal(call, claim, result) if isinstance(result, Answer) else None
        request = claim.key, claim.request_sha256, call.resource_id
        await idempotency.claim(tx, call.tenant, *request, sealed)
    return result


async def keep(call: Call, response: Answer) -> Answer:
    """Store the answer of a request whose resource is already stored; return the answer.

    If it is over ANSWER_BYTES_MAX or storage fails, a repeat gets the resource as it then is.
    """
    if call.claim is not None and len(response.body) <= ANSWER_BYTES_MAX:
        answered = call.claim.key, call.resource_id, _seal(call, call.claim, response)
        store = idempotency.store_answer
        try:
            await call.database.write(store, call.tenant, *answered, tenant=call.tenant)
        except StorageError as error:
            _log.warning("answer.not_kept", error=str(error))
    return response


@contextlib.contextmanager
def _mark_running(call: Call, claim: Claim) -> Iterator[None]:
    """Refuse a request while this process answers another one with the same key.

    The process remembers which requests run: a mark in a row would outlive a process that dies.
    """
    name, running = (call.tenant, claim.key), call.context.claims
    if name in running:
        _require_same(claim, running[name])
        detail = "The first request with this key is still running."
        raise Problem(409, "idempotency_key_in_use", detail, headers={"retry-after": "1"})
    running[name] = claim.request_sha256
    try:
        yield
    finally:
        del running[name]


def _require_same(claim: Claim, request_sha256: bytes) -> None:
    if claim.request_sha256 != request_sha256:
        detail = "This Idempotency-Key was used for another request."
        raise Problem(422, "idempotency_key_reused", detail)


async def _find(tx: Transaction, tenant: str, claim: Claim) -> Row | None:
    """Return the row of the claim's key unless it is too old; Problem 422 for another request."""
    row = await idempotency.get(tx, tenant, claim.key)
    if row is None or row["created_at"] <= tx.now - RETENTION_MS:
        return None
    _require_same(claim, row["request_sha256"])
    return row


async def _answer_again(call: Call, claim: Claim, row: Row) -> Answer:
    """Return the stored answer; without one, the resource, a generation, as it is now."""
    sealed = row["sealed_answer"]
    if sealed is None:
        generation = await call.database.read(rows.read_by_id, Generation, row["resource_id"])
        response = answer(require("generation", generation).view(), 202)
    else:
        plain = call.context.vault.open(sealed, _owner_of(call, claim))
        stored = msgspec.json.decode(plain, type=_StoredAnswer)
        body = stored.body
        if stored.media_type == PROBLEM_TYPE:  # It has the id of its request.
            body = msgspec.json.encode({**msgspec.json.decode(body), "request_id": call.request_id})
        response = Answer(body, stored.status, media_type=stored.media_type)
    response.headers["Idempotency-Replayed"] = "true"
    return response


def _seal(call: Call, claim: Claim, response: Answer) -> tuple[int, bytes]:
    body = bytes(response.body)
    stored = _StoredAnswer(response.status_code, str(response.media_type), body)
    sealed = call.context.vault.seal(msgspec.json.encode(stored), _owner_of(call, claim))
    return stored.status, sealed


def _owner_of(call: Call, claim: Claim) -> str:
    return f"answer:{call.tenant}:{claim.key}"
