"""What runs until a signal ends it (service, worker, sandbox), and uvicorn to serve it."""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import uvloop

from service.cli import entrance, interrupts, memory
from service.cli.accept import Acceptor
from service.cli.serving import Config
from service.cli.serving import Server as BaseServer
from service.cli.stopping import Stop, on_signals
from service.cli.turns import Turns
from service.model.errors import CommandError
from service.settings import Settings
from service.telemetry import log

if TYPE_CHECKING:
    from service.app import App

KEEP_ALIVE_SECONDS = 30
BACKLOG = 2_048
SANDBOX_STOP_SECONDS = 5.0

_log = log.get()


class Server(BaseServer):
    """A server that ignores signals: uvicorn would end the process by the signal it got."""

    capture_signals = contextlib.nullcontext  # type: ignore[assignment]
    _ends_at: float | None = None
    _acceptors: Sequence[Acceptor] = ()

    def end(self, ends_at: float | None = None) -> None:
        """Take no more connections; end once the open ones have their answers, or at `ends_at`."""
        self.should_exit = True
        self._ends_at = ends_at

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and take connections faster than uvicorn alone."""
        await super().startup(sockets)
        self._acceptors = [Acceptor(sock, self._new_protocol) for sock in sockets or ()]

    def _new_protocol(self) -> asyncio.Protocol:
        new: Any = self.config.http_protocol_class  # As uvicorn calls it.
        state = {"server_state": self.server_state, "app_state": self.lifespan.state}
        protocol: asyncio.Protocol = new(config=self.config, **state)
        return protocol

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for open requests until `ends_at` of the loop's clock."""
        for acceptor in self._acceptors:
            acceptor.stop()
        # Every connection that is open now is told to end; later ones end at once.
        self.server_state.is_ending = True  # type: ignore[attr-defined]  # each protocol has it
        if self._ends_at is not None:
            seconds = max(self._ends_at - asyncio.get_running_loop().time(), 0)
            self.config.timeout_graceful_shutdown = seconds  # type: ignore[assignment]
        await super().shutdown(sockets)


def run(main: Coroutine[Any, Any, int | None]) -> int:
    """Run a coroutine; return its exit status. Ctrl-C cancels it unless it handles signals."""
    interrupts.always_raise()
    return uvloop.run(main) or 0


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 is any free port. CommandError if there can be none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    dual = host == "::" and socket.has_dualstack_ipv6()
    try:
        host.encode("idna")  # As `bind` does, which forgets to close the socket if that fails.
        return socket.create_server(
            (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=dual
        )
    except OSError as error:
        number = error.errno or 0  # The resolver's own numbers are below zero.
        text = os.strerror(number) if number > 0 else str(error.strerror)
        reason = text.partition(" (while ")[0].lower()  # Python repeats the address.
        raise CommandError(f"cannot listen on {host} port {port}: {reason}.") from error
    except UnicodeError as error:  # A part of the name is empty, too long, or no text.
        raise CommandError(f"cannot listen on {host}: it is no name of a host.") from error


def url_of(sock: socket.socket) -> str:
    """Return the URL by which this machine reaches the socket, without a slash at the end."""
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  compared, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def new_server(
    app: Any, *, lifespan: Literal["on", "off"] = "on", settings: Settings | None = None
) -> Server:
    """Return a server of the ASGI application, with the limits of the settings or their defaults.

    Open requests get a second to end.
    """
    limits = settings or Settings()
    protocol = partial(entrance.Protocol, limits=limits, turns=Turns(), slow_readers={})
    config = Config(
        app,
        interface="asgi3",
        http=protocol,  # type: ignore[arg-type]  # it is only called
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # The pages themselves read what a proxy says of a client.
        lifespan=lifespan,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=1,  # Unless `end` says more.
    )
    return Server(config)


@contextlib.asynccontextmanager
async def running(
    app: Any, sock: socket.socket, *, lifespan: Literal["on", "off"] = "on"
) -> AsyncIterator[str]:
    """Serve the ASGI application on this loop during the block; yield its URL."""
    url, server = url_of(sock), new_server(app, lifespan=lifespan)
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
    """Serve a sandbox on this loop during the block; yield its URL."""
    from service.sandbox import create_app

    logging.getLogger("uvicorn.error").addFilter(_is_unexpected)
    async with running(create_app(api_key=api_key, speed=speed), sock) as url:
        yield url


def _is_unexpected(record: logging.LogRecord) -> bool:
    """False for the error with which the sandbox loses an answer that it was asked to lose."""
    error = record.exc_info[1] if record.exc_info else None
    return "sandbox was asked" not in str(error)


async def serve(app: "App", sock: socket.socket, sandbox_sock: socket.socket | None) -> int:
    """Run the service until a signal or a failed worker ends it; return the exit status."""
    async with contextlib.AsyncExitStack() as stack:
        if sandbox_sock is not None:
            sandbox = running_sandbox(sandbox_sock, app.settings.upstream_api_key)
            await stack.enter_async_context(sandbox)
        await app.start()
        return await _run(app, app, sock)


async def work(app: "App", sock: socket.socket | None) -> int:
    """Run the worker, with its health on `sock`, until a signal or failure; return the status."""
    await app.start(worker=True)
    return await _run(app, app.observe, sock)


async def _run(app: "App", served: Any, sock: socket.socket | None) -> int:
    """Serve an ASGI application of a started `app` until `app` is to stop, then stop that.

    Both are done within one deadline; return the exit status.
    """
    server = new_server(served, lifespan="off", settings=app.settings)
    stopping = asyncio.Event()
    # The application and the server stop at the same time: the seconds pass only once.
    stop = Stop(
        app.settings.shutdown_seconds,
        app.begin_stop,
        stopping.set,
        lambda: server.end(stop.work_ends_at),
    )
    try:
        on_signals(stop)
        app.worker.when_ended(stop.begin)  # The platform restarts it, and nothing is lost.
        if sock is not None:
            _log.info("serving", url=url_of(sock))
        memory.tend()
        await (server.serve(sockets=[sock]) if sock else stopping.wait())
    finally:
        await app.stop(stop.work_ends_at)
        _log.info("stopped")
    return int(app.worker.has_failed)


async def sandbox(sock: socket.socket, api_key: str | None, speed: float) -> None:
    """Run a sandbox until a signal ends it; it logs each request."""
    logging.getLogger("genhook.sandbox").setLevel(logging.INFO)
    stopping = asyncio.Event()
    on_signals(Stop(SANDBOX_STOP_SECONDS, stopping.set))
    async with running_sandbox(sock, api_key, speed):
        await stopping.wait()
