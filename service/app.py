"""Builds the ASGI application of a process from its settings."""

import asyncio
import contextlib
import random  # noqa: TID251  the default jitter
from collections.abc import Callable
from functools import cached_property
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import asgi
from service.api.problem import not_found, stopping
from service.api.receiver import CallbackReceiver
from service.context import UPSTREAM, Context
from service.delivery import descriptors, tenants
from service.delivery.target import Sender
from service.delivery.webhook import egress
from service.delivery.webhook.connection import tls_context
from service.delivery.webhook.proxy import ProxiedSender
from service.delivery.webhook.sender import WebhookSender
from service.model.clock import Clock, now_ms
from service.model.errors import SettingsError, StorageError
from service.model.key import DEFAULT_TENANT
from service.settings import VARIABLES, Settings, unknown_variables
from service.store.database import Ownership
from service.store.sqlite.database import Database
from service.store.sqlite.ownership import FileLock
from service.store.vault import Vault
from service.telemetry import log
from service.telemetry.redact import Redactor
from service.upstream.callback_url import CallbackTokens
from service.upstream.client import Client, Transport
from service.worker import Worker

_log = log.get()
CLOSE_SECONDS = 1.0
PAGES_PATH = "/dashboard"
OBSERVED = ("/healthz", "/readyz", "/metrics")  # The paths of GENHOOK_WORK_PORT.
SPARE_CONNECTIONS = 24  # Beside one for each slot: connections that are still being closed.


def configure_log(settings: Settings, *, has_sandbox: bool = False) -> None:
    """Configure the log; warn of unknown settings, and of missing ones if no sandbox runs."""
    redactor = Redactor(settings.secrets, settings.public_url)
    log.configure(settings.log_level, stream="stdout", redactor=redactor)
    for name in unknown_variables():
        _log.warning("settings.unknown", name=name, see="docs/settings.md")
    for name in ("GENHOOK_UPSTREAM_API_KEY", "GENHOOK_PUBLIC_URL"):
        if not has_sandbox and not getattr(settings, VARIABLES[name]):
            _log.warning("settings.missing", name=name, see="docs/settings.md")


class App:
    """The service as an ASGI application. Callbacks and `/healthz` bypass the API's router.

    accepts: whether this process accepts connections, which need descriptors.
    """

    worker: Worker  # `start` makes it.

    def __init__(
        self,
        settings: Settings,
        *,
        accepts: bool = False,
        clock: Clock = now_ms,
        jitter: Callable[[], float] = random.random,
        transport: Transport | None = None,
        sender: Sender | None = None,
    ) -> None:
        self.settings = settings = descriptors.raise_limit(settings, accepts=accepts)
        self.database, self._ownership = new_store(settings, clock)
        self.context = Context(
            settings=settings,
            database=self.database,
            client=Client(settings, transport),
            tokens=CallbackTokens(settings.secret_keys, UPSTREAM),
            vault=Vault(settings.secret_keys),
            redactor=Redactor(settings.secrets, settings.public_url),
            clock=clock,
            jitter=jitter,
        )
        drive = self._drive if settings.worker == "off" else None
        self._receiver = CallbackReceiver(self.context, drive)
        self._sender = sender

    @cached_property
    def _api(self) -> ASGIApp:
        """The API, imported for its first request, so that callbacks and `/healthz` start fast."""
        from service.api import endpoint  # noqa: PLC0415  cold start

        return endpoint.build(self.worker)

    @cached_property
    def _pages(self) -> ASGIApp:
        """The pages, imported when somebody first asks for one."""
        from service.api import endpoint  # noqa: PLC0415  cold start
        from service.dashboard import app  # noqa: PLC0415  cold start

        pages = app.build(self._api, endpoint.find_key, endpoint.read_form, self.context)
        return asgi.with_request_ids(pages, self.context.clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection."""
        if scope["type"] == "http":
            method, path = scope["method"], scope["path"]
            if method == "POST" and path.startswith("/callbacks/"):
                await self._receiver(scope, receive, send)
            elif path == "/healthz" and method in ("GET", "HEAD"):
                await asgi.healthz(scope, send, self.context.clock())
            else:
                await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer by the pages or the API; 503 if a stop cancels a request that has no answer."""
        is_begun = False

        async def send_once(message: Message) -> None:
            nonlocal is_begun
            is_begun = True
            await send(message)

        is_page = scope["path"] == PAGES_PATH or scope["path"].startswith(f"{PAGES_PATH}/")
        try:
            await (self._pages if is_page else self._api)(scope, receive, send_once)
        except asyncio.CancelledError:
            if not self.context.stopping.is_set():
                raise
            if not is_begun:
                await asgi.refuse(scope, send, stopping(), self.context.clock())

    async def _drive(self, generation_id: str) -> None:
        await self.worker.drive(generation_id)

    async def observe(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection at GENHOOK_WORK_PORT: health and metrics, nothing else."""
        if scope["type"] != "http" or scope["path"] in OBSERVED:
            await self(scope, receive, send)
            return
        await asgi.refuse(scope, send, not_found("page of a worker"), self.context.clock())

    async def start(self, *, worker: bool | None = None) -> None:
        """Open the database, bring its schema up to date, and start the worker.

        worker: whether to start the worker; with True the process has no API. By default, the
        settings decide. StorageError if it can never work over this connection to the database.
        """
        has_worker = self.settings.worker == "embedded" if worker is None else worker
        self.context.stopping.clear()
        self.context.role = "worker" if worker else "both" if has_worker else "web"
        for name in ("_api", "_pages"):  # Built for the worker of an earlier start.
            self.__dict__.pop(name, None)
        await self.database.open()
        try:
            if has_worker:
                self._check_connection()
            await self.database.migrate()
            await self.database.write(tenants.ensure, self.context, DEFAULT_TENANT)
            sender = self._sender or _sender(self.settings)
            self.worker = Worker(self.context, self._ownership, sender)
        except BaseException:
            await self.database.close()
            raise
        if has_worker:
            self.worker.start()

    def _check_connection(self) -> None:
        """StorageError if no worker can ever work over this connection to the database."""
        if refusal := self._ownership.refusal:
            raise StorageError(refusal)

    def begin_stop(self) -> None:
        """Start no more work, and answer requests that only wait."""
        self.context.stopping.set()
        for waiter in list(self.context.waiters.values()):
            waiter.set()
        self.worker.stop()

    async def stop(self, ends_at: float | None = None) -> None:
        """Let work under way finish until `ends_at` of the loop's clock, then close everything.

        By default that is within `shutdown_seconds`.
        """
        if ends_at is None:
            ends_at = asyncio.get_running_loop().time() + self.settings.shutdown_seconds
        self.begin_stop()
        async with contextlib.AsyncExitStack() as stack:  # Closes all, whatever fails, in reverse.
            stack.push_async_callback(self.database.close)
            stack.push_async_callback(_close, self.context.client)
            stack.push_async_callback(_close, self.worker.sender)
            if self.context.watching is not None:
                stack.callback(self.context.watching.cancel)
            await self.worker.finish(ends_at)


def new_store(settings: Settings, clock: Clock) -> tuple[Any, Ownership]:
    """Return the database that the settings name, not open yet, and the right to work on it."""
    if not settings.is_postgres:
        file = Database(settings.database_path, clock=clock, queue_max=settings.write_queue)
        return file, FileLock(file)
    try:
        from service.store import postgres  # noqa: PLC0415  cold start
    except ModuleNotFoundError as error:
        raise SettingsError(
            "GENHOOK_DATABASE_URL names PostgreSQL, whose driver is not installed: "
            "pip install 'genhook[postgres]'."
        ) from error
    server = postgres.Database(
        settings.database_path,
        clock=clock,
        queue_max=settings.write_queue,
        connections=settings.database_connections,
    )
    return server, postgres.ShardLocks(server)


def _sender(settings: Settings) -> Sender:
    connections = settings.max_in_flight + SPARE_CONNECTIONS
    if settings.http_proxy:
        ssl_context = tls_context(settings.ca_file)
        return ProxiedSender(settings.http_proxy, ssl_context, connections=connections)
    policy = egress.Policy(settings.allow_http, settings.allow_networks)
    own_context = tls_context(settings.ca_file) if settings.ca_file else None
    return WebhookSender(policy, ssl_context=own_context, connections=connections)


async def _close(edge: Any) -> None:
    """Close the sender or the client of upstream, within CLOSE_SECONDS: the other side may hang."""
    close = getattr(edge, "close", None)
    if close is not None:
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await close()
        except Exception as error:  # noqa: BLE001  the others are closed in any case
            _log.warning("stop.not_closed", edge=type(edge).__name__, error=repr(error))
