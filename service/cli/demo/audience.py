"""A toy subscriber: it checks each webhook with the standardwebhooks package, and remembers it."""

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
class Heard:
    """One webhook as it came; `refusal` says why its signature does not hold, if it does not."""

    event_id: str
    type: str
    generation_id: str
    refusal: str | None


@dataclass(slots=True)
class Audience:
    """What the subscriber knows: its secret, and what it heard. `news` is set by each webhook."""

    secret: str = ""
    heard: list[Heard] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def of(self, generation_id: str) -> list[Heard]:
        """What it heard about a generation."""
        return [heard for heard in self.heard if heard.generation_id == generation_id]

    def outcomes(self, generation_id: str) -> set[str]:
        """The ids of the terminal events of a generation: a repeated webhook repeats its id."""
        return {h.event_id for h in self.of(generation_id) if h.type in TERMINAL}


def app(audience: Audience) -> Starlette:
    """The subscriber as an ASGI application."""

    async def take(request: Request) -> Response:
        heard = _read(audience.secret, dict(request.headers), await request.body())
        audience.heard.append(heard)
        audience.news.set()
        return Response(status_code=400 if heard.refusal else 204)

    return Starlette(routes=[Route(PATH, take, methods=["POST"])])


def _read(secret: str, headers: dict[str, str], body: bytes) -> Heard:
    event_id = headers.get("webhook-id", "")
    try:
        event = Webhook(secret).verify(body, headers)
    except (WebhookVerificationError, ValueError) as error:
        return Heard(event_id, "", "", str(error) or type(error).__name__)
    return Heard(event_id, event["type"], event["data"].get("id", ""), None)
