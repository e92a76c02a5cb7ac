"""A small subscriber that verifies each webhook with the standardwebhooks package and keeps it."""

import asyncio
from dataclasses import dataclass, field

from standardwebhooks import Webhook, WebhookVerificationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PATH = "/webhooks"
TERMINAL = ("generation.succeeded", "generation.failed", "generation.timed_out")


@dataclass(frozen=True, slots=True)
class Received:
    """One webhook; `refusal` is why its signature is not valid, or None."""

    event_id: str
    type: str
    generation_id: str
    refusal: str | None


@dataclass(slots=True)
class Audience:
    """The subscriber's secret and the webhooks it received; each sets `arrival`."""

    secret: str = ""
    webhooks: list[Received] = field(default_factory=list)
    arrival: asyncio.Event = field(default_factory=asyncio.Event)

    def outcomes(self, generation_id: str) -> set[str]:
        """The ids of the terminal events of a generation; a repeated webhook has the same id."""
        own = [webhook for webhook in self.webhooks if webhook.generation_id == generation_id]
        return {webhook.event_id for webhook in own if webhook.type in TERMINAL}


def app(audience: Audience) -> Starlette:
    """The subscriber as an ASGI application."""

    async def take(request: Request) -> Response:
        webhook = _read(audience.secret, dict(request.headers), await request.body())
        audience.webhooks.append(webhook)
        audience.arrival.set()
        return Response(status_code=400 if webhook.refusal else 204)

    return Starlette(routes=[Route(PATH, take, methods=["POST"])])


def _read(secret: str, headers: dict[str, str], body: bytes) -> Received:
    event_id = headers.get("webhook-id", "")
    try:
        event = Webhook(secret).verify(body, headers)
    except (WebhookVerificationError, ValueError) as error:
        return Received(event_id, "", "", str(error) or type(error).__name__)
    return Received(event_id, event["type"], event["data"].get("id", ""), None)
