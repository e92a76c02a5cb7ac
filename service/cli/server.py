"""What runs until a signal ends it (service, worker, sandbox), and uvicorn to serve it."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import uvicorn
import uvloop

from service.cli import entrance
from service.model.errors import CommandError
from service.telemetry import log

if TYPE_CHECKING:
    from service.app import App

run = uvloop.run
KEEP_ALIVE_SECONDS = 30
CONNECTIONS_MAX = 4_096
BACKLOG = 2_048

_log = log.get()


class Server(uvicorn.Server):
    """A server that leaves signals to us: uvicorn would end the process by the signal it got."""

    capture_signals = contextlib.nullcontext  # type: ignore[assignment]

    def end(self) -> None:
        """Take no more connections, and end once the open ones have their answers."""
        self.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, on any free port for port 0; CommandError if there can be none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    dual = host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=dual
        )
    except OSError as error:
        number = error.errno or 0  # The resolver's own numbers are below zero.
        reason = (os.strerror(number) if number > 0 else str(error.strerror)).lower()
        raise CommandError(f"cannot listen on {host} port {port}: {reason}.") from error


def url_of(sock: socket.socket) -> str:
    """The URL by which this machine reaches the socket, without a slash at the end."""
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  compared, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def new_server(
    app: Any,
    *,
    lifespan: Literal["on", "off"] = "on",
    shutdown_seconds: float = 1.0,
    connections_max: int = CONNECTIONS_MAX,
    head_seconds: float = 10.0,
    body_seconds: float = 30.0,
) -> Server:
    """A server of the ASGI application; open requests get `shutdown_seconds` to end."""
    protocol = partial(
        entrance.Protocol,
        head_seconds=head_seconds,
        body_seconds=body_seconds,
        connections_max=connections_max,
    )
    config = uvicorn.Config(
        app,
        http=protocol,  # type: ignore[arg-type]  # it is only called
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # Nothing depends on the client's address.
        lifespan=lifespan,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(shutdown_seconds)),
    )
    return Server(config)


@contextlib.asynccontextmanager
async def running(app: Any, sock: socket.socket) -> AsyncIterator[str]:
    """Within, the ASGI application is served on this loop; yields its URL."""
    url, server = url_of(sock), new_server(app)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        yield url
    finally:
        server.end()
        await serving


@contextlib.asynccontextmanager
async def running_sandbox(
    sock: socket.socket, api_key: str | None, speed: float = 1.0
) -> AsyncIterator[str]:
    """Within, a sandbox is served on this loop; yields its URL."""
    from service.sandbox import create_app

    logging.getLogger("uvicorn.error").addFilter(_is_no_requested_fault)
    async with running(create_app(api_key=api_key, speed=speed), sock) as url:
        yield url


def _is_no_requested_fault(record: logging.LogRecord) -> bool:
    """False for the error by which the sandbox closes a connection on `[sandbox: lose-answer]`."""
    error = record.exc_info[1] if record.exc_info else None
    return "sandbox was asked" not in str(error)


async def serve(app: "App", sock: socket.socket, sandbox_sock: socket.socket | None) -> int:
    """Run the service until a signal or a failed worker ends it; its exit status."""
    settings = app.settings
    async with contextlib.AsyncExitStack() as stack:
        if sandbox_sock is not None:
            sandbox = running_sandbox(sandbox_sock, settings.upstream_api_key)
            await stack.enter_async_context(sandbox)
        await app.start()
        stack.push_async_callback(app.stop)
        server = new_server(
            app,
            lifespan="off",
            shutdown_seconds=settings.shutdown_seconds,
            connections_max=settings.connections_max,
            head_seconds=settings.head_seconds,
            body_seconds=settings.body_seconds,
        )
        # Side by side, so that `shutdown_seconds` pass only once.
        on_signals(server.end, app.worker.stop)
        app.worker.when_ended(server.end)  # The platform restarts it, and nothing is lost.
        _log.info("serving", url=url_of(sock))
        gc.freeze()  # What exists now lives as long as the process.
        gc.set_threshold(10_000, 20, 50)  # A request allocates much that is in no cycle.
        gc.enable()
        await server.serve(sockets=[sock])
    return int(app.worker.has_failed)


async def work(app: "App") -> int:
    """Run the worker alone until a signal or a failure ends it; the exit status."""
    stopping = asyncio.Event()
    on_signals(stopping.set)
    await app.start(worker=True)
    app.worker.when_ended(stopping.set)
    await stopping.wait()
    await app.stop()
    return int(app.worker.has_failed)


async def sandbox(sock: socket.socket, api_key: str | None, speed: float) -> None:
    """Run a sandbox until a signal ends it; it logs each request."""
    logging.getLogger("genhook.sandbox").setLevel(logging.INFO)
    stopping = asyncio.Event()
    on_signals(stopping.set)
    async with running_sandbox(sock, api_key, speed):
        await stopping.wait()


def on_signals(*actions: Callable[[], object]) -> None:
    """Have SIGTERM and SIGINT take these actions on the running loop, and do nothing else."""

    def act() -> None:
        for action in actions:
            action()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, act)
