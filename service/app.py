"""Builds the ASGI application of a process from its settings."""

import asyncio
import contextlib
import os
import random  # noqa: TID251  the default jitter
import signal
from collections.abc import Callable
from functools import cached_property

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api import asgi
from service.api.receiver import Receiver
from service.context import UPSTREAM, Context
from service.delivery import tenants
from service.delivery.dispatch import Dispatcher
from service.delivery.target import Sender
from service.delivery.webhook import egress
from service.delivery.webhook.connection import tls_context
from service.delivery.webhook.sender import WebhookSender
from service.model.clock import Clock, now_ms
from service.settings import Settings
from service.store.sqlite.database import Database
from service.store.sqlite.ownership import FileLock
from service.store.vault import Vault
from service.telemetry.redact import make_redactor
from service.upstream.callback_url import CallbackTokens
from service.upstream.client import Client, Transport
from service.worker import Worker

SPARE_CONNECTIONS = 24  # Beyond the slots, for connections that are still being closed.


class App:
    """The service as an ASGI application. Callbacks and `/healthz` bypass the API's router."""

    worker: Worker  # It exists from `start` on.

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock = now_ms,
        jitter: Callable[[], float] = random.random,
        transport: Transport | None = None,
        sender: Sender | None = None,
    ) -> None:
        self.settings = settings
        self.database = Database(
            settings.database_path, clock=clock, queue_max=settings.write_queue
        )
        self.context = Context(
            settings=settings,
            database=self.database,
            client=Client(settings, transport),
            tokens=CallbackTokens(settings.secret_keys, UPSTREAM),
            vault=Vault(settings.secret_keys),
            redactor=make_redactor(settings),
            clock=clock,
            jitter=jitter,
        )
        self._receiver = Receiver(self.context)
        self._sender = sender

    @cached_property
    def _api(self) -> ASGIApp:
        """The API, imported for its first request, so that callbacks and `/healthz` start fast."""
        from service.api import endpoint  # noqa: PLC0415  cold start

        return endpoint.build(self.worker)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection."""
        if scope["type"] == "http":
            method, path = scope["method"], scope["path"]
            if method == "POST" and path.startswith("/callbacks/"):
                await self._receiver(scope, receive, send)
            elif path == "/healthz" and method in ("GET", "HEAD"):
                await asgi.healthz(scope, send, self.context.clock())
            else:
                await self._api(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)

    async def start(self, *, worker: bool | None = None) -> None:
        """Open the database, bring its schema up to date, and start the worker."""
        await self.database.open()
        try:
            await self.database.migrate()
            await self.database.write(tenants.ensure, self.context, tenants.DEFAULT)
            dispatcher = Dispatcher(self.context, self._sender or _sender(self.settings))
            self.worker = Worker(self.context, FileLock(self.database), dispatcher)
        except BaseException:
            await self.database.close()
            raise
        if self.settings.worker == "embedded" if worker is None else worker:
            self.worker.start()

    async def stop(self) -> None:
        """Let work under way finish within `shutdown_seconds`, then close everything."""
        worker = self.worker
        worker.stop()
        if worker.task is not None:
            await asyncio.wait([worker.task])
        with contextlib.suppress(TimeoutError):  # So that upstream's answers are recorded.
            async with asyncio.timeout(self.settings.shutdown_seconds):
                await worker.submitter.settle()
        close = getattr(worker.dispatcher.sender, "close", None)
        if close is not None:
            await close()
        await self.context.client.close()
        await self.database.close()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.start()
        except Exception as error:  # noqa: BLE001  reported to the server, which exits
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        self.worker.when_ended(self._end_process_if_failed)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})

    def _end_process_if_failed(self) -> None:
        """End the process if its worker failed, so that the platform restarts it."""
        if self.worker.has_failed:
            os.kill(os.getpid(), signal.SIGTERM)


def _sender(settings: Settings) -> Sender:
    connections = settings.max_in_flight + SPARE_CONNECTIONS
    if settings.http_proxy:
        from service.delivery.webhook.proxy import ProxiedSender  # noqa: PLC0415  cold start

        context = tls_context(settings.ca_file)
        return ProxiedSender(settings.http_proxy, context, connections=connections)
    policy = egress.Policy(settings.allow_http, settings.allow_networks)
    ssl_context = tls_context(settings.ca_file) if settings.ca_file else None
    return WebhookSender(policy, ssl_context=ssl_context, connections=connections)
