"""`genhook deliveries` and `genhook events`: what was sent, to whom, and with what result."""

import argparse

from service.cli import answers, calls, client, output
from service.cli.arguments import Echo
from service.cli.command import ID, PAGING, Command, argument
from service.model.delivery import STATUSES
from service.model.event import EVENT_TYPES

DELIVERY, EVENT = "dlv_01a1f83ac6f470008f5b21d7c0e394a6", "evt_01a1f83ac6f470008f5b21d7c0e394a6"
ATTEMPT = ("number", "trigger", "started_at", "duration_ms", "status_code", "error.message")


def add_deliveries(parser: argparse.ArgumentParser) -> None:
    """Add the commands of `genhook deliveries`."""
    client.add_commands(parser, DELIVERIES)


def add_events(parser: argparse.ArgumentParser) -> None:
    """Add the commands of `genhook events`."""
    client.add_commands(parser, EVENTS)


def get(command: Command, options: argparse.Namespace, echo: Echo) -> int:
    """Show a delivery, then its attempts as a table."""
    with calls.connect(options) as connection:
        delivery = client.send(connection, command, options, answers.Delivery)
    lines = output.fields({name: delivery.get(name) for name in command.shows})
    attempts = output.page({"data": delivery["attempts"]}, ATTEMPT) if delivery["attempts"] else []
    output.show(options, echo, delivery, [*lines, *[""][: len(attempts)], *attempts])
    return 0


_LIST = (
    argument(
        *("query", "--status", "only deliveries with this status"),
        choices=STATUSES,
    ),
    argument("query", "--subscriber-id", "only deliveries to this subscriber", metavar="ID"),
    argument("query", "--event-id", "only deliveries of this event", metavar="ID"),
    argument("query", "--generation-id", "only deliveries of this generation", metavar="ID"),
    *PAGING,
)
DELIVERIES = {
    "list": Command(
        "list deliveries",
        "deliveries list --status dead",
        *("GET", "/v1/deliveries", _LIST, "page"),
        shows=("id", "status", "event_type", "attempt_count", "subscriber_id", "last_error"),
    ),
    "get": Command(
        "show a delivery with its attempts",
        f"deliveries get {DELIVERY}",
        *("GET", "/v1/deliveries/{id}", (ID,)),
        shows=(
            *("id", "status", "event_id", "event_type", "generation_id", "subscriber_id"),
            *("attempt_count", "next_attempt_at", "created_at", "delivered_at", "last_error"),
        ),
        run=get,
    ),
    "retry": Command(
        "make one more attempt now, also of a dead delivery",
        f"deliveries retry {DELIVERY}",
        *("POST", "/v1/deliveries/{id}/retry", (ID,)),
        says="{id} is {status}: one more attempt is due.",
    ),
}
EVENTS = {
    "list": Command(
        "list events",
        "events list --type generation.failed",
        *("GET", "/v1/events"),
        (
            argument("query", "--type", "only events of this type", choices=EVENT_TYPES),
            argument("query", "--generation-id", "only events of this generation", metavar="ID"),
            *PAGING,
        ),
        "page",
        ("id", "type", "timestamp", "data.id"),
    ),
    "get": Command(
        "show an event, as subscribers get it",
        f"events get {EVENT}",
        *("GET", "/v1/events/{id}", (ID,)),
        shows=("id", "type", "timestamp", "data"),
    ),
}
