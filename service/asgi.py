"""`service.asgi:app`: the service for any ASGI server, as `uvicorn service.asgi:app` runs it.

It starts and stops with the server's lifespan, or with that of an application that mounts it and
opens `app.lifespan`. Without one it starts with the first request, and stops as the server's event
loop ends and cancels its tasks. If a signal ends the process before, it ends as in a crash.
"""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import msgspec
from starlette.types import Receive, Scope, Send

from service.api import asgi
from service.api.problem import not_started
from service.app import App, configure_log
from service.model.clock import now_ms
from service.settings import Settings, read_settings
from service.telemetry import log
from service.telemetry.redact import Redactor

_log = log.get()


class _Run(msgspec.Struct, eq=False):
    """The service on one event loop, the task that runs it, and its open lifespans."""

    start: asyncio.Future[App]
    keeper: asyncio.Task[None]  # Cancelling it stops the service.
    lifespans: int = 0
    is_warned_of: bool = False  # Having served a request without any.


class Entry:
    """The service as an ASGI application. Each event loop has an `App` of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._runs: dict[asyncio.AbstractEventLoop, _Run] = {}
        self._has_log = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            run = self._begin()
            try:
                app = await asyncio.shield(run.start)
            except Exception as error:  # noqa: BLE001  logged; the next request tries it again
                _log.error("start.failed", error=str(error))
                await asgi.refuse(scope, send, not_started(), now_ms())
            else:
                if not (run.lifespans or run.is_warned_of):
                    run.is_warned_of = True
                    _log.warning("start.without_lifespan", see="docs/deploying.md")
                await app(_without_root_path(scope), receive, send)

    @asynccontextmanager
    async def lifespan(self, _host: object = None) -> AsyncIterator[None]:
        """Run the service during the block; for the lifespan of an application that mounts it.

        Several may overlap: the service stops with the last one.
        """
        run = self._begin()
        run.lifespans += 1
        try:
            await asyncio.shield(run.start)
            yield
        finally:
            run.lifespans -= 1
            if not run.lifespans and self._runs.get(asyncio.get_running_loop()) is run:
                await self.stop()

    def _begin(self) -> _Run:
        """Return the run of this event loop, which begins unless it has; a failed one anew."""
        loop = asyncio.get_running_loop()
        run = self._runs.get(loop)
        if run is None or (run.start.done() and _has_failed(run.start)):
            for ended in [each for each in self._runs if each.is_closed()]:
                del self._runs[ended]
            started: asyncio.Future[App] = loop.create_future()
            keeper = loop.create_task(self._run(started), name="service")
            run = self._runs[loop] = _Run(started, keeper)
        return run

    async def stop(self) -> None:
        """Stop the service of this event loop, if it was started."""
        run = self._runs.pop(asyncio.get_running_loop(), None)
        if run is not None:
            run.keeper.cancel()
            await asyncio.wait([run.keeper])

    async def _run(self, started: asyncio.Future[App]) -> None:
        """Start the service, and keep it whatever becomes of the request that came first."""
        try:
            app = await self._start()
        except asyncio.CancelledError:
            started.cancel()
            raise
        except Exception as error:  # noqa: BLE001  for all who wait for the start
            started.set_exception(error)
            return
        started.set_result(app)
        await _keep(app)

    async def _start(self) -> App:
        if not self._has_log:
            configure_log(self._settings)
            cut = partial(_cut_secrets, Redactor(self._settings.secrets, self._settings.public_url))
            logging.getLogger("uvicorn.access").addFilter(cut)  # By default it logs each path.
            self._has_log = True
        app = App(self._settings, accepts=True)
        await app.start()
        app.worker.when_ended(partial(_end_process_if_failed, app))
        return app

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self.lifespan())
            except Exception as error:  # noqa: BLE001  reported to the server, which exits
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


def _without_root_path(scope: Scope) -> Scope:
    """Return the scope without the path that the service is mounted at: ASGI's paths begin with it.

    Some servers leave it out: then the path stays as it is.
    """
    path, prefix = scope["path"], scope.get("root_path", "")
    if not (prefix and path.startswith(f"{prefix}/")):
        return scope
    return {**scope, "path": path[len(prefix) :], "root_path": ""}


def _has_failed(start: asyncio.Future[App]) -> bool:
    return start.cancelled() or start.exception() is not None


def _cut_secrets(redactor: Redactor, record: logging.LogRecord) -> bool:
    """Cut callback tokens out of a line of a server's own log of requests, as a filter of it."""
    if isinstance(record.args, tuple):
        record.args = tuple(redactor.text(a) if isinstance(a, str) else a for a in record.args)
    return True


async def _keep(app: App) -> None:
    """Keep the service open until this is cancelled: by `stop`, or by the end of the loop."""
    try:
        await asyncio.get_running_loop().create_future()
    except asyncio.CancelledError:
        await app.stop()  # Else the threads of the database would keep the right to work.


def _end_process_if_failed(app: App) -> None:
    """End the process if its worker failed, so that the platform restarts it."""
    if app.worker.has_failed:
        os.kill(os.getpid(), signal.SIGTERM)


app = Entry(read_settings())  # A SettingsError ends the start of any server with its message.
