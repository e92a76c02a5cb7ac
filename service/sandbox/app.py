"""The sandbox's ASGI application: state, routes, errors in upstream's shape, request log."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.model import clock
from service.sandbox import files, welcome, wire, work
from service.sandbox.routes import routes
from service.sandbox.tasks import Sandbox, Sleep

log = logging.getLogger("genhook.sandbox")

BODY_BYTES_MAX = 1 << 20


def create_app(
    *,
    api_key: str | None = None,
    speed: float = 1.0,
    sleep: Sleep = asyncio.sleep,  # noqa: TID251  simulated work takes time
    now: clock.Clock = clock.now_ms,
    random_part: Callable[[], str] = lambda: secrets.token_hex(6),
    transport: httpx.AsyncBaseTransport | None = None,
) -> Starlette:
    """Return the simulation of API in One as an ASGI application, its state in `app.state.sandbox`.

    api_key: the only accepted key; None accepts every key that starts with `aio_`.
    speed: divides every simulated duration. sleep: waits for such a duration, in seconds.
    random_part: makes the random part of a task id. transport: sends the callbacks.
    """
    # trust_env=False ignores proxies of the environment: callbacks go to this machine.
    client = httpx.AsyncClient(transport=transport, trust_env=False, timeout=work.TIMEOUT_SECONDS)
    app = Starlette(
        routes=[
            Route("/", welcome.show),
            Route("/files/{task_id}/{number:int}.{extension}", files.show),
            *routes(),
        ],
        middleware=[Middleware(_log_requests)],
        exception_handlers={HTTPException: _show_error},
        lifespan=_lifespan,
        max_body_size=BODY_BYTES_MAX,
    )
    app.state.sandbox = Sandbox(api_key, speed, sleep, now, random_part, client)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await work.stop(app.state.sandbox)


async def _show_error(_: Request, error: Any) -> Response:
    body = wire.error(error.status_code, error.detail)
    return JSONResponse(body, error.status_code, error.headers)


def _log_requests(app: ASGIApp) -> ASGIApp:
    async def call_and_log(scope: Scope, receive: Receive, send: Send) -> None:
        async def log_and_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                log.info("%s %s %d", scope["method"], scope["path"], message["status"])
            await send(message)

        await app(scope, receive, log_and_send if scope["type"] == "http" else send)

    return call_and_log
