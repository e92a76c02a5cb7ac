"""`service.serverless.handler`: the service on AWS Lambda, by Mangum (the extra `lambda`).

Lambda freezes the process between two events, so no submission may be in flight then: one that is
cut off is `lost`.
"""

import asyncio
import base64
import contextlib
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import msgspec
from mangum import Mangum
from mangum.adapter import DEFAULT_TEXT_MIME_TYPES
from mangum.types import LambdaContext
from starlette.types import Message, Receive, Scope, Send

from service.api import asgi
from service.api.problem import Problem, not_started
from service.app import App, configure_log
from service.model.clock import now_ms
from service.model.errors import SettingsError, StorageError
from service.settings import Settings, read_settings
from service.telemetry import log
from service.worker import wait_for_all

_log = log.get()
SCHEDULED = "Scheduled Event"  # The `detail-type` of a schedule's events.
TICK_SECONDS_MAX = 60.0
TICK_SHARE = 0.5  # Of the remaining time. Requests that are in flight then have the rest.
END_SECONDS = 1.0  # Left of the remaining time for the answer.
TEXT_TYPES = [*DEFAULT_TEXT_MIME_TYPES, "application/problem+json", "application/yaml"]

BAD_BODY = "The body of the event is not text, or not the Base64 that isBase64Encoded announces."
OTHER_EVENT = (
    "genhook takes requests of API Gateway, of a function URL or of a load balancer, and events of "
    'a schedule, which have {"detail-type": "Scheduled Event"}; this event is neither.'
)


class Function:
    """The service as a function of Lambda. All events run on one event loop, one at a time."""

    def __init__(self, settings: Settings) -> None:
        if settings.worker != "off":
            rule = "must be off on Lambda: nothing runs between two events"
            raise SettingsError(f"GENHOOK_WORKER {rule}.")
        self._settings = settings
        self._app: App | None = None
        self._loop = asyncio.new_event_loop()
        configure_log(settings)
        asyncio.set_event_loop(self._loop)  # Mangum looks for it here.
        # An HTTP API puts the name of its stage before each path, a custom domain the path of its
        # mapping. Either is the path of GENHOOK_PUBLIC_URL.
        base_path = urlsplit(settings.public_url or "").path or "/"
        self._http = Mangum(
            self._serve,
            lifespan="off",
            api_gateway_base_path=base_path,
            text_mime_types=TEXT_TYPES,
        )

    def __call__(self, event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
        """Answer an HTTP request, or tick for a schedule's event; ValueError for another event."""
        asyncio.set_event_loop(self._loop)
        fields = event if isinstance(event, dict) else {}
        if fields.get("detail-type") == SCHEDULED:
            return self._loop.run_until_complete(self._tick(context))
        request = fields.get("requestContext")
        if not isinstance(request, dict) or not ("httpMethod" in fields or "http" in request):
            raise ValueError(OTHER_EVENT)
        answer: dict[str, Any] = self._http(_with_body(event), context)
        return answer

    async def _start(self) -> App:
        """Return the service, which the first event starts; after an error the next one tries."""
        if self._app is None:
            app = App(self._settings)
            await app.start()
            self._app = app
        return self._app

    async def _tick(self, context: LambdaContext) -> dict[str, Any]:
        """Do due work, wait for the requests that it has begun, and return the counts."""
        worker = (await self._start()).worker
        try:
            done = await worker.tick(min(_seconds_left(context) * TICK_SHARE, TICK_SECONDS_MAX))
        finally:
            await wait_for_all(worker.under_way, _ends_at(context))
        counts: dict[str, Any] = msgspec.to_builtins(done)
        return counts

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, and wait for the submissions in flight and a drive that may begin one.

        The rest of its drive is not waited for: an attempt that is cut off is made again.
        """
        if scope["method"] == "HEAD":  # Mangum sends the body of the answer, as no server does.
            send = partial(_send_without_body, send)
        if scope["aws.event"]["body"] is None:
            await asgi.refuse(scope, send, Problem(400, "invalid_json", BAD_BODY), now_ms())
            return
        try:
            app = await self._start()
        except StorageError as error:
            _log.error("start.failed", error=str(error))
            await asgi.refuse(scope, send, not_started(), now_ms())
            return
        try:
            await app(scope, receive, send)
        finally:
            await wait_for_all(app.worker.submitting, _ends_at(scope["aws.context"]))


async def _send_without_body(send: Send, message: Message) -> None:
    await send({**message, "body": b""} if "body" in message else message)


def _with_body(event: dict[str, Any]) -> dict[str, Any]:
    """Return the event with its body as bytes, or with None for a body that cannot be read."""
    text, body = event.get("body") or "", None
    if isinstance(text, str):
        with contextlib.suppress(ValueError):
            is_encoded = event.get("isBase64Encoded")
            body = base64.b64decode(text, validate=True) if is_encoded else text.encode()
    headers = event.get("headers") or {}
    return {**event, "headers": headers, "body": body, "isBase64Encoded": False}


def _ends_at(context: LambdaContext) -> float:
    """Return until when the function may wait, by the clock of the event loop."""
    return asyncio.get_running_loop().time() + _seconds_left(context) - END_SECONDS


def _seconds_left(context: LambdaContext) -> float:
    return context.get_remaining_time_in_millis() / 1_000


handler = Function(read_settings())
