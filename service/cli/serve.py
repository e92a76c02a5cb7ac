"""`genhook serve`, `work` and `sandbox`: settings, logs, sockets, signals."""

import argparse
import asyncio
import contextlib
import gc
import logging
import socket
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from service.cli import dev, server
from service.model.errors import SettingsError
from service.settings import Settings, read_settings, unknown
from service.telemetry import log
from service.telemetry.redact import Redactor

if TYPE_CHECKING:
    from service.app import App

Say = Callable[[str], None]

_log = log.get()


def settings_for(options: argparse.Namespace) -> Settings:
    """The environment's settings with the command's options before them."""
    given = {"host": options.host, "port": options.port}
    overrides = {name: value for name, value in given.items() if value is not None}
    if options.sandbox and not options.dev:
        raise SettingsError("--sandbox needs --dev: a sandbox is no upstream for production.")
    return read_settings(dev.environ() if options.dev else None, **overrides)


def serve(options: argparse.Namespace, say: Say) -> int:
    """Run the service until a signal ends it: 0, or 1 where its worker failed."""
    gc.disable()  # Until it serves: a start makes no garbage worth a collection.
    settings = settings_for(options)
    _note(settings)
    from service.app import App  # noqa: PLC0415  settings are refused before it is loaded

    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(server.bind(settings.host, settings.port))
        url, sandbox_url, upstream = server.url_of(sock), None, None
        if options.sandbox:
            upstream = stack.enter_context(server.bind("127.0.0.1", 0))
            sandbox_url = server.url_of(upstream)
            settings = dev.placed(settings, url, sandbox_url)
        if options.dev:
            say(dev.banner(settings, url, sandbox_url))
        return server.run(_serve(App(settings), sock, upstream))


def work(_options: argparse.Namespace, _say: Say) -> int:
    """Run the worker alone until a signal ends it: 0, or 1 where it failed."""
    settings = read_settings()
    _note(settings)
    from service.app import App  # noqa: PLC0415  settings are refused before it is loaded

    return server.run(_work(App(settings)))


def sandbox(options: argparse.Namespace, say: Say) -> int:
    """Run API in One on this machine until a signal ends it."""
    log.configure("info", stream="stdout")
    logging.getLogger("genhook.sandbox").setLevel(logging.INFO)
    with server.bind(options.host, options.port) as sock:
        url = server.url_of(sock)
        say(f"API in One, pretended, at {url}/api/v1. What it can do: curl {url}")
        server.run(_sandbox(sock, options.api_key, options.speed))
    return 0


async def _serve(app: "App", sock: socket.socket, upstream: socket.socket | None) -> int:
    """The application behind its socket, until a signal or its worker ends it."""
    async with contextlib.AsyncExitStack() as stack:
        if upstream is not None:
            await stack.enter_async_context(running_sandbox(upstream, dev.UPSTREAM_KEY))
        await app.start()
        stack.push_async_callback(app.stop)
        seconds = app.settings.shutdown_seconds
        serving = server.new_server(app, lifespan="off", shutdown_seconds=seconds)
        server.on_signals(lambda: _end(serving, app))
        _when_worker_ends(app, serving.end)
        _log.info("serving", url=server.url_of(sock))
        gc.freeze()  # What start-up made lives as long as the process.
        gc.set_threshold(10_000, 20, 50)  # A request makes much that is no cycle.
        gc.enable()
        await serving.serve(sockets=[sock])
    return _status(app)


async def _work(app: "App") -> int:
    stopping = asyncio.Event()
    server.on_signals(stopping.set)
    await app.start(worker=True)
    _when_worker_ends(app, stopping.set)
    await stopping.wait()
    await app.stop()
    return _status(app)


async def _sandbox(sock: socket.socket, api_key: str | None, speed: float) -> None:
    stopping = asyncio.Event()
    server.on_signals(stopping.set)
    async with running_sandbox(sock, api_key, speed):
        await stopping.wait()


@contextlib.asynccontextmanager
async def running_sandbox(
    sock: socket.socket, api_key: str | None, speed: float = 1.0
) -> AsyncIterator[str]:
    """A sandbox beside what else this process does; the URL it is at."""
    from service.sandbox import create_app  # noqa: PLC0415  only where it is used

    logging.getLogger("uvicorn.error").addFilter(_unless_asked_for)
    async with server.running(create_app(api_key=api_key, speed=speed), sock) as url:
        yield url


def _unless_asked_for(record: logging.LogRecord) -> bool:
    """False for what `[sandbox: lose-answer]` raises to have the connection closed."""
    error = record.exc_info[1] if record.exc_info else None
    return "sandbox was asked" not in str(error)


def _note(settings: Settings) -> None:
    redactor = Redactor(settings.secrets, settings.public_url)
    log.configure(settings.log_level, stream="stdout", redactor=redactor)
    for name in unknown():
        _log.warning("settings.unknown", name=name, see="docs/settings.md")
    for name, value in (
        ("GENHOOK_UPSTREAM_API_KEY", settings.upstream_api_key),
        ("GENHOOK_PUBLIC_URL", settings.public_url),
    ):
        if not value:
            _log.warning("settings.missing", name=name, see="docs/settings.md")


def _end(serving: server.Server, app: "App") -> None:
    """Worker and open requests end side by side, so that `shutdown_seconds` pass only once."""
    serving.end()
    if app.worker is not None:
        app.worker.stop()


def _when_worker_ends(app: "App", end: Callable[[], None]) -> None:
    """A worker that failed ends the process: the platform starts it anew, and nothing is lost."""
    if app.worker is not None and app.worker.task is not None:
        app.worker.task.add_done_callback(lambda _task: end())


def _status(app: "App") -> int:
    task = app.worker and app.worker.task
    if not task or not task.done() or task.cancelled() or task.exception() is None:
        return 0
    _log.error("worker.failed", exc_info=task.exception())
    return 1
