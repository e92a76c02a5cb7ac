"""Puts the sandbox together: state, routes, errors in upstream's shape, a log line per request."""

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

TASKS_KEPT = 10_000
BODY_MOST_BYTES = 1 << 20


def _token() -> str:
    return secrets.token_hex(6)


def create_app(
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    speed: float = 1.0,
    sleep: Sleep = asyncio.sleep,  # noqa: TID251  the work it pretends to do takes time
    now: clock.Clock = clock.now_ms,
    token: Callable[[], str] = _token,
    transport: httpx.AsyncBaseTransport | None = None,
    keep: int = TASKS_KEPT,
) -> Starlette:
    """API in One as an ASGI application; what it saw and did is in `app.state.sandbox`.

    Links to files start with `base_url`, or with the URL that a request came to. `api_key` is the
    one key that opens it, else any that starts with `aio_`. All waiting goes through `sleep`, in
    seconds divided by `speed`. Callbacks leave through `transport`. `keep` tasks are remembered.
    ValueError if `speed` or `keep` is not above zero.
    """
    if speed <= 0 or keep <= 0:
        raise ValueError("speed and keep must be above zero")
    # No proxy from the environment: what it calls is on this machine.
    client = httpx.AsyncClient(transport=transport, trust_env=False, timeout=work.TIMEOUT_SECONDS)
    app = Starlette(
        routes=[
            Route("/", welcome.show),
            Route("/files/{task_id}/{number:int}.{makes}", files.show),
            *routes(),
        ],
        middleware=[Middleware(_logged)],
        exception_handlers={HTTPException: _show_error},
        lifespan=_lifespan,
        max_body_size=BODY_MOST_BYTES,
    )
    app.state.sandbox = Sandbox(base_url, api_key, speed, sleep, now, token, client, keep)
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


def _logged(app: ASGIApp) -> ASGIApp:
    async def logged(scope: Scope, receive: Receive, send: Send) -> None:
        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                log.info("%s %s %d", scope["method"], scope["path"], message["status"])
            await send(message)

        await app(scope, receive, noted if scope["type"] == "http" else send)

    return logged
