"""`service.serverless.handler`: the service on AWS Lambda, by Mangum (the extra `lambda`).

Lambda freezes the process between two events, so nothing may be under way that cannot wait: a
submission that is cut off is lost.
"""

import asyncio
from typing import Any
from urllib.parse import urlsplit

import msgspec
from mangum import Mangum
from mangum.adapter import DEFAULT_TEXT_MIME_TYPES
from mangum.types import LambdaContext
from starlette.types import Receive, Scope, Send

from service import asgi
from service.model.errors import SettingsError

SCHEDULED = "Scheduled Event"  # The `detail-type` of a schedule's events.
TICK_SECONDS_MAX = 60.0
TICK_SHARE = 0.5  # Of the function's time; what is under way then has the rest of it.
END_SECONDS = 1.0  # Left of the function's time, to answer.
TEXT_TYPES = [*DEFAULT_TEXT_MIME_TYPES, "application/problem+json", "application/yaml"]


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Answer an HTTP request (API Gateway, a function URL); let a schedule's event do a tick."""
    asyncio.set_event_loop(_loop)
    if event.get("detail-type") == SCHEDULED:
        return _loop.run_until_complete(_tick(context))
    answer: dict[str, Any] = _http(event, context)
    return answer


async def _tick(context: LambdaContext) -> dict[str, Any]:
    """Do due work, and let end what it began; return what was done."""
    app = await asgi.app.start()
    seconds = min(_seconds_left(context) * TICK_SHARE, TICK_SECONDS_MAX)
    done = await app.worker.tick(seconds)
    under_way = [task for task in app.worker.ticks.under_way if task is not None]
    await _wait_for([*under_way, *app.worker.submitter.in_flight.values()], context)
    counts: dict[str, Any] = msgspec.to_builtins(done)
    return counts


async def _serve(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request; end only with the submissions that are under way."""
    await asgi.app(scope, receive, send)
    if (app := asgi.app.started) is not None:
        await _wait_for(list(app.worker.submitter.in_flight.values()), scope["aws.context"])


async def _wait_for(tasks: list[asyncio.Task[Any]], context: LambdaContext) -> None:
    """Wait for tasks as long as the function may run."""
    if tasks:
        seconds = max(_seconds_left(context) - END_SECONDS, 0)
        await asyncio.wait(tasks, timeout=seconds)


def _seconds_left(context: LambdaContext) -> float:
    return context.get_remaining_time_in_millis() / 1_000


def _base_path() -> str:
    """Return the path of the public URL, which may come before the path of each request.

    An HTTP API puts the name of its stage there, a domain name of one's own its mapping.
    """
    return urlsplit(asgi.app.settings.public_url or "").path or "/"


if asgi.app.settings.worker != "off":
    raise SettingsError("GENHOOK_WORKER must be off on Lambda: nothing runs between two events.")
_loop = asyncio.new_event_loop()  # The same one for all events: connections belong to it.
asyncio.set_event_loop(_loop)
_http = Mangum(
    _serve, lifespan="off", api_gateway_base_path=_base_path(), text_mime_types=TEXT_TYPES
)
