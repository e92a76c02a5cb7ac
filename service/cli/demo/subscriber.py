"""A subscriber that verifies each webhook with the standardwebhooks package and stores it."""

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
class ReceivedWebhook:
    """One webhook. `error` says why its signature is wrong; then type and generation are empty."""

    event_id: str
    type: str = ""
    generation_id: str = ""
    error: str | None = None


@dataclass(slots=True)
class Subscriber:
    """The subscriber's secret and the webhooks it received; each webhook sets `changed`."""

    secret: str = ""
    webhooks: list[ReceivedWebhook] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def outcomes(self, generation_id: str) -> set[str]:
        """Return the ids of the generation's terminal events; repeated webhooks have equal ids."""
        return {
            webhook.event_id
            for webhook in self.webhooks
            if webhook.generation_id == generation_id and webhook.type in TERMINAL
        }


def new_app(subscriber: Subscriber) -> Starlette:
    """Return the subscriber as an ASGI application."""

    async def receive(request: Request) -> Response:
        webhook = _read(subscriber.secret, dict(request.headers), await request.body())
        subscriber.webhooks.append(webhook)
        subscriber.changed.set()
        return Response(status_code=400 if webhook.error else 204)

    return Starlette(routes=[Route(PATH, receive, methods=["POST"])])


def _read(secret: str, headers: dict[str, str], body: bytes) -> ReceivedWebhook:
    event_id = headers.get("webhook-id", "")
    try:
        event = Webhook(secret).verify(body, headers)
    except (WebhookVerificationError, ValueError) as error:
        return ReceivedWebhook(event_id, error=str(error) or type(error).__name__)
    return ReceivedWebhook(event_id, event["type"], event["data"].get("id", ""))
