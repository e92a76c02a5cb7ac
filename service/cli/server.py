"""uvicorn as genhook runs it: the socket is bound first, and whoever runs it says when it ends."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Literal, TypeVar

import uvicorn
import uvloop

from service.model.errors import CommandError

T = TypeVar("T")

KEEP_ALIVE_SECONDS = 30
BACKLOG = 2_048


class Server(uvicorn.Server):
    """Leaves signals alone: uvicorn would end the process by them, even after a clean end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """No signal is captured."""
        yield

    def end(self) -> None:
        """Take no more connections, and end once the open ones have their answers."""
        self.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; CommandError, in a sentence, where there can be none. Port 0: any."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    dual = host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=dual
        )
    except OSError as error:
        number = error.errno or 0  # Below zero it is the resolver's.
        reason = (os.strerror(number) if number > 0 else str(error.strerror)).lower()
        raise CommandError(f"cannot listen on {host} port {port}: {reason}.") from error


def url_of(sock: socket.socket) -> str:
    """Where this machine reaches the socket, without a slash at the end."""
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  compared, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def new_server(
    app: Any, *, lifespan: Literal["on", "off"] = "on", shutdown_seconds: float = 1.0
) -> Server:
    """A server for the ASGI application; `shutdown_seconds` is what open requests get to end."""
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # Nothing depends on who calls from where.
        lifespan=lifespan,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(shutdown_seconds)),
    )
    return Server(config)


@contextlib.asynccontextmanager
async def running(app: Any, sock: socket.socket) -> AsyncIterator[str]:
    """The application served beside what else this process does; the URL it is at."""
    url, server = url_of(sock), new_server(app)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        yield url
    finally:
        server.end()
        await serving


def on_signals(do: Callable[[], object]) -> None:
    """Have SIGTERM and SIGINT call `do` on the running loop, and do nothing else."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, do)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end, on uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
