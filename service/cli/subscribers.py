"""`genhook subscribers` and `signing-secret`: the URLs that receive events, and what signs them."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from service.cli import answers, calls, client, nouns, output, streams
from service.cli.arguments import (
    parse_count,
    parse_flag,
    parse_limit,
    parse_list,
    parse_pair_or_none,
    parse_seconds,
    parse_whole,
)
from service.cli.command import IDEMPOTENCY, Command, always, argument, pairs
from service.model.errors import CommandError, MissingError, UsageError
from service.model.event import EVENT_TYPES

if TYPE_CHECKING:
    import httpx

EVENT_TYPES_HELP = f"one or more of {', '.join(EVENT_TYPES)}, separated by commas, or all (all)"


def test(command: Command, options: argparse.Namespace) -> int:
    """Send a `ping` now; 1 unless the subscriber answers 2xx."""
    answer = client.fetch(command, options)
    attempt = answer["attempt"]
    error = (attempt["error"] or {}).get("message")
    result = output.plain(error or f"It answered {attempt['status_code']}").rstrip(".")
    output.show(options, answer, [f"{result}, in {attempt['duration_ms']} ms."])
    return 0 if 200 <= (attempt["status_code"] or 0) <= 299 else 1


def create(command: Command, options: argparse.Namespace) -> int:
    """Create a subscriber and show it, with its secret."""
    with calls.connect(options) as connection:
        client.show_answer(command, options, client.send(connection, command, options))
        _note_unknown(connection, client.values_of(command, options, "body").get("filter", {}))
    return 0


def _note_unknown(connection: "httpx.Client", filters: Mapping[str, Any]) -> None:
    """Say which models of a filter the catalogue lacks: they are allowed, but may be mistyped."""
    for model in filters.get("models", ()):
        try:
            calls.call(connection, "GET", f"/v1/models/{quote(model)}")
        except MissingError:
            name = output.plain(model)
            streams.note(f"genhook: the catalogue has no model {name}: see genhook models.")
        except CommandError:  # The key may lack the scope.
            return


def update(command: Command, options: argparse.Namespace) -> int:
    """Change the given fields; keep the other half of the filter, which the API replaces whole."""
    fields = client.values_of(command, options, "body")
    if not fields:
        raise UsageError("name a field to change: see genhook subscribers update --help.")
    with calls.connect(options) as connection:
        filters = fields.get("filter", {})
        if len(filters) == 1:
            read = SUBSCRIBERS["get"]._replace(shape=answers.Filtered)
            fields["filter"] = client.send(connection, read, options)["filter"] | filters
        answer = client.send(connection, command, options, json=fields)
        client.show_answer(command, options, answer)
        _note_unknown(connection, filters)
    return 0


_TARGET = argument("body", "target", "the URL that receives events", "url", metavar="URL")
_FIELDS = (
    argument("body", "--description", "a text for people", metavar="TEXT"),
    argument("body", "--event-types", EVENT_TYPES_HELP, type=parse_list, metavar="TYPES"),
    argument(
        *("body", "--models", "only generations of these models, with commas, or all"),
        *("filter.models",),
        type=parse_list,
    ),
    pairs(
        *("body", "--metadata", "only generations with this pair, or none", "filter.metadata"),
        type=parse_pair_or_none,
    ),
    pairs(
        *("body", "--header", "send this header with each webhook, or none", "headers"),
        type=parse_pair_or_none,
    ),
    argument("body", "--max-in-flight", "the most attempts at once", type=parse_count, metavar="N"),
    argument(
        *("body", "--rate-per-second", "the most attempts a second, or none for no limit"),
        type=parse_limit,
        metavar="N",
    ),
    argument(
        *("body", "--retry-schedule-seconds", "the seconds before each attempt, with commas"),
        type=parse_seconds,
        metavar="SECONDS",
    ),
    argument(
        *("body", "--ordered", "send the events of a generation in order"),
        type=parse_flag,
        nargs="?",
        const=True,
        metavar="true|false",
    ),
    argument("body", "--payload", "the form of the body", choices=("full", "thin", "cloudevents")),
)
_OWN_SECRET = argument("body", "--secret", "your own signing secret, whsec_… (a new one)")
_ROTATION = (
    argument(
        *("body", "--overlap-seconds", "how long the old secret signs beside the new one (86400)"),
        type=parse_whole,
        metavar="SECONDS",
    ),
    *(_OWN_SECRET, IDEMPOTENCY),
)
_SECRET = ("secret", "public_key", "previous_expires_at")
_CREATE = (
    *(_TARGET, *_FIELDS),
    argument("body", "--signature", "v1a adds an Ed25519 signature", choices=("v1", "v1a")),
    *(_OWN_SECRET, IDEMPOTENCY),
)
_UPDATE = (
    argument("body", "--target", "the URL that receives events", "url", metavar="URL"),
    argument(
        *("body", "--status", "pause it, disable it, or enable it again"),
        choices=("active", "paused", "disabled"),
    ),
    *_FIELDS,
)
_SHOWN = (
    *("id", "status", "disabled_reason", "url", "description", "event_types", "filter"),
    *("headers", "max_in_flight", "rate_per_second", "retry_schedule_seconds", "ordered"),
    *("payload", "signature", "created_at", "updated_at"),
)

SUBSCRIBERS = {
    "create": Command(
        "create a subscriber: a URL that receives events",
        "https://shop.example/hooks --event-types generation.succeeded",
        *("POST", nouns.SUBSCRIBER.path, _CREATE),
        shows=("id", "url", "event_types", "status", "secret"),
        lost="genhook subscribers secret {id} shows its secret.",
        run=create,
    ),
    "list": nouns.SUBSCRIBER.page(
        "list subscribers", "", shows=("id", "status", "url", "event_types", "description")
    ),
    "get": nouns.SUBSCRIBER.one("show a subscriber", "GET", shows=_SHOWN),
    "update": nouns.SUBSCRIBER.one(
        "change a subscriber",
        "PATCH",
        *_UPDATE,
        example="--rate-per-second 5",
        shows=_SHOWN,
        run=update,
    ),
    "pause": nouns.SUBSCRIBER.one(
        "send nothing to a subscriber until it is resumed; nothing is lost",
        "PATCH",
        always("status", "paused"),
        says="{id} is {status}.",
    ),
    "resume": nouns.SUBSCRIBER.one(
        "send again to a subscriber that was paused or disabled",
        "PATCH",
        always("status", "active"),
        says="{id} is {status}.",
    ),
    "secret": nouns.SUBSCRIBER.one(
        "show the secret that signs the webhooks to a subscriber", "GET /secret", shows=_SECRET
    ),
    "rotate": nouns.SUBSCRIBER.one(
        "give a subscriber a new signing secret; the old one signs beside it for a while",
        "POST /rotate-secret",
        *_ROTATION,
        shows=_SECRET,
        lost="genhook subscribers secret {id} shows the new secret.",
    ),
    "test": nouns.SUBSCRIBER.one(
        "send a ping and show the answer",
        "POST /test",
        shape=answers.Test,
        run=test,
    ),
    "stats": nouns.SUBSCRIBER.one(
        "show how the deliveries to a subscriber go",
        "GET /stats",
        shows=(
            *("subscriber_id", "counts", "success_rate", "latency_ms"),
            "oldest_undelivered_seconds",
        ),
    ),
    "delete": nouns.SUBSCRIBER.one("delete a subscriber", "DELETE", says="{id} is deleted."),
}

SIGNING_SECRET = {
    "get": Command(
        "show the secret that signs the webhooks to every --notify-url",
        *("", "GET", "/v1/signing-secret"),
        shows=_SECRET,
    ),
    "rotate": Command(
        "make a new signing secret; the old one signs beside it for a while",
        *("--overlap-seconds 3600", "POST", "/v1/signing-secret/rotate", _ROTATION),
        shows=_SECRET,
        lost="genhook signing-secret get shows the new secret.",
    ),
}
