"""`genhook deliveries` and `genhook events`: what was sent, to whom, and with what result."""

from service.cli import answers, nouns, output
from service.cli.command import argument
from service.model.delivery import STATUSES
from service.model.event import EVENT_TYPES

ATTEMPT = ("number", "trigger", "started_at", "duration_ms", "status_code", "error.message")


def _format_attempts(delivery: answers.Delivery) -> list[str]:
    """Return the attempts as a table, after an empty line."""
    attempts = delivery["attempts"]
    return ["", *output.page({"data": attempts}, ATTEMPT)] if attempts else []


DELIVERIES = {
    "list": nouns.DELIVERY.page(
        "list deliveries",
        "--status dead",
        argument("query", "--status", "only deliveries with this status", choices=STATUSES),
        nouns.SUBSCRIBER.filter("--subscriber-id", "only deliveries to this subscriber"),
        nouns.EVENT.filter("--event-id", "only deliveries of this event"),
        nouns.GENERATION.filter("--generation-id", "only deliveries of this generation"),
        shows=("id", "status", "event_type", "attempt_count", "subscriber_id", "last_error"),
    ),
    "get": nouns.DELIVERY.one(
        "show a delivery with its attempts",
        "GET",
        shows=(
            *("id", "status", "event_id", "event_type", "generation_id", "subscriber_id"),
            *("attempt_count", "next_attempt_at", "created_at", "delivered_at", "last_error"),
        ),
        shape=answers.Delivery,
        details=_format_attempts,
    ),
    "retry": nouns.DELIVERY.one(
        "make one more attempt now, also of a dead delivery",
        "POST /retry",
        says="{id} is {status}: one more attempt is due.",
    ),
}
EVENTS = {
    "list": nouns.EVENT.page(
        "list events",
        "--type generation.failed",
        argument("query", "--type", "only events of this type", choices=EVENT_TYPES),
        nouns.GENERATION.filter("--generation-id", "only events of this generation"),
        shows=("id", "type", "timestamp", "data.id"),
    ),
    "get": nouns.EVENT.one(
        "show an event, as subscribers get it", "GET", shows=("id", "type", "timestamp", "data")
    ),
}
