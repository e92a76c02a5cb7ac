"""Receives callbacks from upstream: verify, store, then answer."""

from functools import partial
from typing import NoReturn

import msgspec
from starlette.types import Receive, Scope, Send

from service.api.asgi import NOSNIFF, DisconnectedError, read_body, send_problem
from service.api.problem import Problem, internal_error, unavailable
from service.api.signatures import SCHEMES, SignatureError
from service.context import UPSTREAM, Context
from service.generations import ingest
from service.model.clock import SECOND
from service.model.errors import SettingsError, StorageError
from service.model.ids import new_id
from service.store import callbacks
from service.store.callbacks import Arrival
from service.telemetry import log, metrics
from service.upstream import reading

PREFIX = f"/callbacks/{UPSTREAM}/"
REJECTIONS_PER_SECOND = 20  # More are answered but not stored: forgers cannot fill the disk.
HEADERS_MAX = 100  # More are not stored.

_log = log.get()
_OK = b'{"status":"ok"}'
_OK_TYPE, _OK_LENGTH = (b"content-type", b"application/json"), (b"content-length", b"15")
_token_invalid = partial(Problem, 404, "token_invalid", "There is nothing at this address.")
_validate = msgspec.json.Decoder(msgspec.Raw).decode


class Receiver:
    """A plain ASGI application for `POST /callbacks/{upstream}/{token}`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._write_proofs = partial(ingest.write_proofs, context=context)
        self._rejections = (0, 0)
        settings = context.settings
        self._scheme = SCHEMES.get(settings.upstream_signature or "")
        try:
            if self._scheme is not None:
                self._key = self._scheme.read_secret(settings.upstream_signature_secret or "")
        except ValueError as error:
            raise SettingsError(f"GENHOOK_UPSTREAM_SIGNATURE_SECRET: {error}.") from None

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
            verdict = await self._store(arrival)
        except Problem as error:
            await send_problem(send, error, request_id)
        except StorageError as error:
            _log.error("callback.not_stored", error=str(error), request_id=request_id)
            await send_problem(send, unavailable("The callback was not stored."), request_id)
        except DisconnectedError:
            return
        except Exception:  # noqa: BLE001  upstream sends the callback again after a 500
            _log.exception("callback.failed", request_id=request_id)
            await send_problem(send, internal_error(), request_id)
        else:
            metrics.callbacks.add(1, verdict)
            await _answer_ok(send, request_id)
            _log.info(
                "callback",
                callback_id=arrival.id,
                generation_id=arrival.generation_id,
                verdict=verdict,
                trust=arrival.trust,
                bytes=len(arrival.body),
                request_id=request_id,
            )

    async def _verify(self, arrival: Arrival, scope: Scope, receive: Receive) -> None:
        """Complete the arrival; Problem if its token, its size or its signature is not accepted."""
        path, settings = scope["path"], self._context.settings
        token = path[len(PREFIX) :] if path.startswith(PREFIX) else ""
        claim = self._context.tokens.read(token, arrival.received_at)
        if isinstance(claim, str):
            await self._reject(arrival, f"token_{claim}", _token_invalid())
        arrival.generation_id, arrival.nonce = claim.generation_id, claim.nonce
        try:
            arrival.body = await read_body(
                scope, receive, settings.callback_body_bytes, settings.body_seconds
            )
        except Problem as error:
            error.headers = {"connection": "close"}
            await self._reject(arrival, error.code, error)
        arrival.readable = _readable(arrival.body)
        proved = False
        if self._scheme is not None:
            headers = {n.decode("latin-1"): v.decode("latin-1") for n, v in arrival.headers}
            try:
                self._scheme.verify(arrival.body, headers, self._key, arrival.received_at)
            except SignatureError as error:
                detail = "The callback's signature is not valid."
                problem = Problem(401, "signature_invalid", detail)
                await self._reject(arrival, f"signature_{error.reason}", problem)
            proved = self._scheme.proves_body
        if proved or settings.callback_trust == "body":
            arrival.trust = "body"

    async def _reject(self, arrival: Arrival, reason: str, problem: Problem) -> NoReturn:
        """Raise the problem; before, store the callback if few were rejected this second."""
        metrics.callbacks.add(1, "rejected")
        second, count = self._rejections
        this_second = arrival.received_at // SECOND
        count = count + 1 if second == this_second else 1
        self._rejections = (this_second, count)
        if count <= REJECTIONS_PER_SECOND:
            _log.info(
                "callback",
                callback_id=arrival.id,
                verdict="rejected",
                reason=reason,
                request_id="req" + arrival.id[2:],
            )
            arrival.reason = reason
            try:
                await self._context.database.write(callbacks.reject, arrival)
            except StorageError as error:
                _log.error("callback.not_stored", error=str(error))
        raise problem

    async def _store(self, arrival: Arrival) -> str:
        database = self._context.database
        verdict: str | None
        if arrival.trust == "body":
            read_proof = partial(ingest.read_proof, self._context, arrival)
            proof = await reading.read(len(arrival.body), read_proof)
            verdict = await database.write_batched(self._write_proofs, proof)
        else:
            verdict = await database.write_batched(ingest.store_hints, arrival)
            self._context.signals.poll.set()
        if verdict is None:
            self._context.tokens.forget(arrival.generation_id)
            await self._reject(arrival, "token_revoked", _token_invalid())
        return verdict


def _readable(body: bytes) -> bool:
    try:
        _validate(body)
    except (msgspec.DecodeError, RecursionError):
        return False
    return body.lstrip()[:1] in (b"{", b"[")


async def _answer_ok(send: Send, request_id: str) -> None:
    headers = [_OK_TYPE, _OK_LENGTH, NOSNIFF, (b"x-request-id", request_id.encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": _OK})
