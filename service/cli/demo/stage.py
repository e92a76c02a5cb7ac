"""The stage of the demo: upstream, service and subscriber on sockets of this machine."""

import contextlib
import ipaddress
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from service.app import App
from service.cli import server
from service.cli.demo import audience
from service.cli.demo.audience import Audience
from service.settings import Settings

UPSTREAM_KEY = "aio_demo"
SAFETY_POLL_SECONDS = 3.0  # Above the two seconds that the sandbox works for a callback.
TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Stage:
    """A running service, its client and its subscriber."""

    client: httpx.AsyncClient
    audience: Audience

    async def ask(self, method: str, path: str, **options: Any) -> Any:
        """Call the service's API; the decoded answer, or httpx.HTTPError unless it is 2xx."""
        answer = await self.client.request(method, path, **options)
        if not answer.is_success:
            message = f"{method} {path} was answered {answer.status_code}: {answer.text[:200]}"
            raise httpx.HTTPError(message)
        return answer.json()


@contextlib.asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Stage]:
    """Within, everything runs, with its database in `folder` and the audience subscribed."""
    listener = Audience()
    async with contextlib.AsyncExitStack() as stack:
        upstream_url = await stack.enter_async_context(
            server.running_sandbox(server.bind("127.0.0.1", 0), UPSTREAM_KEY)
        )
        listener_url = await stack.enter_async_context(
            server.running(audience.app(listener), server.bind("127.0.0.1", 0))
        )
        sock = server.bind("127.0.0.1", 0)
        settings = _settings(folder, server.url_of(sock), upstream_url)
        url = await stack.enter_async_context(server.running(App(settings), sock))
        client = await stack.enter_async_context(
            httpx.AsyncClient(
                base_url=url,
                headers={"authorization": f"Bearer {settings.admin_key}"},
                timeout=TIMEOUT_SECONDS,
                trust_env=False,
            )
        )
        stage = Stage(client, listener)
        target = {"url": listener_url + audience.PATH}
        listener.secret = (await stage.ask("POST", "/v1/subscribers", json=target))["secret"]
        yield stage


def _settings(folder: Path, url: str, upstream_url: str) -> Settings:
    return Settings(
        database_path=str(folder / "genhook.db"),
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
