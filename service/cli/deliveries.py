"""`genhook deliveries` and `genhook events`: what was sent, to whom, and with what result."""

from service.cli import answers, output
from service.cli.command import ID, PAGING, Command, argument
from service.model.delivery import STATUSES
from service.model.event import EVENT_TYPES

DELIVERY, EVENT = "dlv_01a1f83ac6f470008f5b21d7c0e394a6", "evt_01a1f83ac6f470008f5b21d7c0e394a6"
ATTEMPT = ("number", "trigger", "started_at", "duration_ms", "status_code", "error.message")


def _format_attempts(delivery: answers.Delivery) -> list[str]:
    """Return the attempts as a table, after an empty line."""
    attempts = delivery["attempts"]
    return ["", *output.page({"data": attempts}, ATTEMPT)] if attempts else []


_LIST = (
    argument("query", "--status", "only deliveries with this status", choices=STATUSES),
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
        shape=answers.Delivery,
        details=_format_attempts,
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
