"""Puts a process together: settings in, an ASGI application out."""

import asyncio
import contextlib
import os
import random  # noqa: TID251  jitter, where nobody gives another
import signal
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from service.api import asgi
from service.api.asgi import Receive, Scope, Send
from service.api.receiver import Receiver
from service.context import UPSTREAM, Context
from service.delivery import tenants
from service.delivery.dispatch import Deliverer
from service.delivery.dispatch import Send as SendWebhook
from service.delivery.webhook import egress
from service.delivery.webhook.sender import Limits, Sender, tls_context
from service.generations.poll import Poller
from service.generations.submit import Submitter
from service.model.clock import Clock, now_ms
from service.settings import Settings
from service.store.sqlite.database import Database
from service.store.sqlite.ownership import FileLock
from service.store.vault import Vault
from service.telemetry import log, metrics
from service.telemetry.redact import Redactor
from service.upstream.callback_url import CallbackTokens
from service.upstream.client import Client
from service.worker import Worker

if TYPE_CHECKING:
    import httpx

    from service.api.call import Parts

_log = log.get()


class App:
    """The service as an ASGI application. Callbacks go past the router, straight to the store."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock = now_ms,
        jitter: Callable[[], float] = random.random,
        transport: "Callable[[], httpx.AsyncBaseTransport] | None" = None,
        sender: SendWebhook | None = None,
    ) -> None:
        self.settings = settings
        self.database = Database(
            settings.database_path, clock=clock, queue_max=settings.write_queue
        )
        self._clock = clock
        self._jitter = jitter
        self._transport = transport
        self._sender = sender
        self._parts: tuple[Context, Submitter, Poller, Deliverer, Worker] | None = None
        self._receiver: Receiver | None = None
        self.worker: Worker | None = None

    @cached_property
    def parts(self) -> "Parts":
        """The parts of the started process."""
        from service.api.call import Parts  # noqa: PLC0415  cold start

        assert self._parts is not None, "the application has not been started"
        return Parts(*self._parts)

    @cached_property
    def _api(self) -> asgi.App:
        """The API, loaded for its first request: callbacks and probes need not wait for it."""
        from service.api import endpoint  # noqa: PLC0415  cold start

        return endpoint.build(self.parts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http":
            method, path = scope["method"], scope["path"]
            if method == "POST" and path.startswith("/callbacks/"):
                assert self._receiver is not None
                await self._receiver(scope, receive, send)
            elif path == "/healthz" and method in ("GET", "HEAD"):
                await asgi.healthz(scope, send, self._clock())
            else:
                await self._api(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)

    async def start(self, *, worker: bool | None = None) -> None:
        """Open the database, bring its schema up to date, and start the worker."""
        await self.database.open()
        try:
            await self._start()
        except BaseException:
            await self.database.close()
            raise
        if self.settings.worker == "embedded" if worker is None else worker:
            assert self.worker is not None
            self.worker.start()

    async def _start(self) -> None:
        settings, database = self.settings, self.database
        await database.migrate()
        context = Context(
            settings=settings,
            database=database,
            client=Client(
                settings.upstream_url,
                settings.upstream_api_key,
                timeout_seconds=settings.upstream_timeout_seconds,
                body_bytes_max=settings.upstream_body_bytes,
                transport=self._transport,
            ),
            tokens=CallbackTokens(settings.secret_keys, UPSTREAM),
            vault=Vault(settings.secret_keys),
            redactor=_redactor(settings),
            clock=self._clock,
            jitter=self._jitter,
        )
        await database.write(tenants.ensure, context, tenants.DEFAULT)
        submitter, poller = Submitter(context), Poller(context)
        deliverer = Deliverer(context, self._sender or _sender(settings))
        self.worker = Worker(context, FileLock(database), submitter, poller, deliverer)
        self._parts = (context, submitter, poller, deliverer, self.worker)
        self._receiver = Receiver(context)
        metrics.write_queue.read = lambda: database.queued
        metrics.in_flight.read = lambda: deliverer.slots.taken
        metrics.backlog.read = deliverer.waiting

    async def stop(self) -> None:
        """Finish what is under way within its time, then close everything."""
        if self._parts is None or self.worker is None:
            return
        self.worker.stop()
        if self.worker.task is not None:
            await asyncio.gather(self.worker.task, return_exceptions=True)
        with contextlib.suppress(TimeoutError):  # Upstream's answers are still to be recorded.
            async with asyncio.timeout(self.settings.shutdown_seconds):
                await self.parts.submitter.settle()
        close = getattr(self.parts.deliverer.sender, "close", None)
        if close is not None:
            await close()
        await self.parts.context.client.close()
        await self.database.close()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.start()
        except Exception as error:  # noqa: BLE001  the server is told, and ends
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        if self.worker is not None and self.worker.task is not None:
            self.worker.task.add_done_callback(_end_with_worker)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})


def _sender(settings: Settings) -> SendWebhook:
    if settings.http_proxy:
        from service.delivery.webhook.proxy import ProxiedSender  # noqa: PLC0415  cold start

        context = tls_context(settings.ca_file)
        return ProxiedSender(settings.http_proxy, ssl_context=context)
    policy = egress.Policy(settings.allow_http, settings.allow_networks)
    own = tls_context(settings.ca_file) if settings.ca_file else None
    limits = Limits(connections=settings.max_in_flight + 24)
    return Sender(policy, ssl_context=own, limits=limits)


def _redactor(settings: Settings) -> Redactor:
    secrets = (
        settings.upstream_api_key,
        settings.upstream_signature_secret,
        settings.admin_key,
        *settings.secret_keys,
    )
    return Redactor([secret for secret in secrets if secret], settings.public_url)


def _end_with_worker(task: "asyncio.Task[None]") -> None:
    """A worker that failed ends the process: the platform starts it anew, and nothing is lost."""
    if not task.cancelled() and task.exception() is not None:
        _log.error("worker.failed", exc_info=task.exception())
        os.kill(os.getpid(), signal.SIGTERM)
