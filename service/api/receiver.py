"""Receives callbacks from upstream: verify, store, then answer."""

import asyncio
from bisect import bisect_right
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import accumulate, chain

import msgspec
from starlette.types import Receive, Scope, Send

from service.api import signatures
from service.api.asgi import NOSNIFF, DisconnectedError, read_body, send_problem
from service.api.problem import Problem, internal_error, stopping, unavailable
from service.api.signatures import SignatureError
from service.context import UPSTREAM, Context
from service.generations import ingest, proofs
from service.model.errors import StorageError
from service.model.ids import new_id
from service.store import callbacks
from service.store.callbacks import Arrival, StoredCallback
from service.store.database import T
from service.store.turns import Turns
from service.telemetry import log, metrics
from service.telemetry.brake import Limiter
from service.upstream import reading

PREFIX = f"/callbacks/{UPSTREAM}/"
# Rejected callbacks beyond this are answered but not stored, so that forgers cannot fill the disk.
# Those with a valid token are counted apart, so that strangers cannot use up their number.
REJECTIONS_PER_SECOND = 20
REJECTIONS_OF_GENERATION_PER_SECOND = 5
HEADERS_MAX = 100  # Further headers are not stored.
REJECTED_HEADERS_BYTES = 4_096

_log = log.get()
_OK, _OK_NOT_KEPT = b'{"status":"ok"}', b'{"status":"ok","kept":false}'
_OK_TYPE = (b"content-type", b"application/json")
_token_invalid = partial(Problem, 404, "token_invalid", "There is nothing at this address.")
_validate = msgspec.json.Decoder(msgspec.Raw).decode


class CallbackReceiver:
    """A plain ASGI application for `POST /callbacks/{upstream}/{token}`.

    drive: given where no worker runs; does the work that a stored callback made due.
    """

    def __init__(
        self, context: Context, drive: Callable[[str], Awaitable[None]] | None = None
    ) -> None:
        self._context = context
        self._drive = drive
        # Always the same object: only items of the same unit share a batch.
        self._write_proofs = partial(proofs.write_proofs, context=context)
        self._rejections = Limiter()
        self._signature = signatures.configured(context.settings)
        self._turns = Turns(1)  # To read large bodies.

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 200 after the callback is committed, else a problem."""
        now = self._context.clock()
        arrival = Arrival(
            id=new_id("cb", now),
            upstream=UPSTREAM,
            received_at=now,
            headers=scope["headers"][:HEADERS_MAX],
        )
        request_id = "req" + arrival.id[2:]
        try:
            await self._verify(arrival, scope, receive)
            stored = await self._store(arrival)
        except Problem as error:
            await send_problem(send, error, request_id)
        except StorageError as error:
            problem = unavailable("The callback is not known to be stored: send it again.")
            await _answer_not_stored(send, problem, request_id, str(error))
        except DisconnectedError:
            return
        except asyncio.CancelledError:
            if not self._context.stopping.is_set():
                raise
            await _answer_not_stored(send, stopping(), request_id, "the process stops")
        except Exception:  # noqa: BLE001  upstream sends the callback again after a 500
            metrics.callbacks.add(1, "not_stored")
            _log.exception("callback.failed", request_id=request_id)
            await send_problem(send, internal_error(), request_id)
        else:
            metrics.callbacks.add(1, stored.verdict if stored.is_kept else "not_kept")
            await self._do_due_work(arrival.generation_id)
            await _answer_ok(send, request_id, is_kept=bool(stored.is_kept))
            _log_stored(arrival, stored, request_id)

    async def _do_due_work(self, generation_id: str) -> None:
        """Drive, where no worker runs. The callback is stored, though a stop cuts this off."""
        if self._drive is None:
            return
        try:
            await self._drive(generation_id)
        except asyncio.CancelledError:
            if not self._context.stopping.is_set():
                raise

    async def _verify(self, arrival: Arrival, scope: Scope, receive: Receive) -> None:
        """Complete the arrival; Problem if its token, size, duration or signature is refused."""
        path, settings = scope["path"], self._context.settings
        token = path[len(PREFIX) :] if path.startswith(PREFIX) else ""
        claim = self._context.tokens.read(token, arrival.received_at)
        if isinstance(claim, str):
            await self._reject(arrival, f"token_{claim}")
            raise _token_invalid()
        arrival.generation_id, arrival.nonce = claim.generation_id, claim.nonce
        try:
            arrival.body = await read_body(
                scope, receive, settings.callback_body_bytes, settings.body_seconds
            )
        except Problem as error:
            await self._note_unread(arrival, error)
            raise
        arrival.readable = _is_readable(arrival.body)
        proved = False
        if self._signature is not None:
            scheme, key = self._signature
            headers = {n.decode("latin-1"): v.decode("latin-1") for n, v in scope["headers"]}
            try:
                scheme.verify(arrival.body, headers, key, arrival.received_at)
            except SignatureError as error:
                await self._reject(arrival, f"signature_{error.reason}")
                detail = "The callback's signature is not valid."
                raise Problem(401, "signature_invalid", detail) from None
            proved = scheme.proves_body
        if proved or settings.callback_trust == "body":
            arrival.trust = "body"

    async def _note_unread(self, arrival: Arrival, problem: Problem) -> None:
        """Store a callback whose body was not read: as a hint too, if it is too large."""
        if problem.status == 503:  # Upstream sends it again.
            metrics.callbacks.add(1, "not_stored")
            return
        # Without the body, no signature can be verified.
        if problem.status == 413 and self._signature is None:
            tenant = self._context.tokens.owner_of(arrival.generation_id)
            unit = callbacks.plan_confirmation_of_unread
            await self._context.database.write(unit, arrival, tenant=tenant)
            self._context.tell(self._context.signals.poll, arrival.generation_id)
            await self._do_due_work(arrival.generation_id)
        await self._reject(arrival, problem.code)

    async def _reject(self, arrival: Arrival, reason: str) -> None:
        """Store the callback as rejected, unless too many were rejected this second."""
        metrics.callbacks.add(1, "rejected")
        if self._may_store_rejection(arrival):
            _log.info(
                "callback",
                callback_id=arrival.id,
                verdict="rejected",
                reason=reason,
                request_id="req" + arrival.id[2:],
            )
            arrival.reason = reason
            self._cut_headers(arrival, REJECTED_HEADERS_BYTES)
            try:
                await self._context.database.write(callbacks.reject, arrival)
            except StorageError as error:
                _log.error("callback.not_stored", error=str(error))

    def _may_store_rejection(self, arrival: Arrival) -> bool:
        """Count a rejection; return whether the limits of this second allow to store it."""
        limits: dict[str | None, int] = {"strangers": REJECTIONS_PER_SECOND}
        if id_ := arrival.generation_id:  # Empty without a valid token.
            limits = {id_: REJECTIONS_OF_GENERATION_PER_SECOND, "all": REJECTIONS_PER_SECOND}
        # Of now: the body of a request that began long ago may have been late.
        return self._rejections.admit(self._context.clock(), limits)

    def _cut_headers(self, arrival: Arrival, bytes_max: int) -> None:
        """Cut secrets out of the headers, and leave out the lines after `bytes_max`."""
        lines = arrival.headers
        if sum(map(len, chain.from_iterable(lines))) > bytes_max:
            sizes = accumulate(len(name) + len(value) for name, value in lines)
            lines = lines[: bisect_right(list(sizes), bytes_max)]
        arrival.headers = self._context.redactor.headers(lines)

    async def _store(self, arrival: Arrival) -> StoredCallback:
        # The callback is stored in the turn of its tenant, if this process remembers that.
        tenant = self._context.tokens.owner_of(arrival.generation_id)
        database = self._context.database
        write = partial(database.write_batched, tenant=tenant, held_bytes=len(arrival.body))
        stored: StoredCallback | None
        self._cut_headers(arrival, callbacks.HEADERS_BYTES_MAX)
        if arrival.trust == "body":
            read_proof = partial(proofs.read_proof, self._context, arrival)
            proof = await self._read(arrival, tenant, read_proof)
            stored = await write(self._write_proofs, proof)
        else:
            stored = await write(ingest.store_hints, arrival)
            self._context.tell(self._context.signals.poll, arrival.generation_id)
        if stored is not None and stored.is_kept is None:
            # The generation has had many callbacks: only one that reports an outcome is still kept.
            await self._read(arrival, tenant, partial(proofs.read_end, arrival))
            return await self._store(arrival)
        if stored is None:
            self._context.tokens.forget(arrival.generation_id)
            await self._reject(arrival, "token_revoked")
            raise _token_invalid()
        return stored

    async def _read(self, arrival: Arrival, tenant: str | None, read: Callable[[], T]) -> T:
        """Return what `read` makes of the body: of a large one in turn; StorageBusyError."""
        size = len(arrival.body)
        if size <= reading.READ_ON_LOOP_BYTES:
            return read()
        async with self._turns.turn(tenant or "", size):
            return await reading.read(size, read)


def _is_readable(body: bytes) -> bool:
    try:
        _validate(body)
    except (msgspec.DecodeError, RecursionError):
        return False
    return body.lstrip()[:1] in (b"{", b"[")


def _log_stored(arrival: Arrival, stored: StoredCallback, request_id: str) -> None:
    _log.info(
        "callback",
        callback_id=arrival.id,
        generation_id=arrival.generation_id,
        verdict=stored.verdict,
        kept=stored.is_kept,
        trust=arrival.trust,
        bytes=len(arrival.body),
        request_id=request_id,
    )


async def _answer_not_stored(send: Send, problem: Problem, request_id: str, error: str) -> None:
    metrics.callbacks.add(1, "not_stored")
    _log.error("callback.not_stored", error=error, request_id=request_id)
    await send_problem(send, problem, request_id)


async def _answer_ok(send: Send, request_id: str, *, is_kept: bool) -> None:
    body = _OK if is_kept else _OK_NOT_KEPT
    length = (b"content-length", b"%d" % len(body))
    headers = [_OK_TYPE, length, NOSNIFF, (b"x-request-id", request_id.encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
