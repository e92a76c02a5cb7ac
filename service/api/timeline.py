"""A generation's timeline: stored, submitted, callbacks, polls, events, attempts."""

from typing import Any

from service.model.clock import rfc3339
from service.model.generation import Generation
from service.model.ids import time_of
from service.store import callbacks, deliveries, events, generations
from service.store.database import Row, Transaction

ENTRIES_MAX = 1_000
Entry = tuple[int, int, dict[str, Any]]  # Time, rank among entries of the same time, view.

_SUBMISSION = {
    "taken": "Upstream took the submission.",
    "refused": "Upstream refused the submission.",
    "put_off": "Upstream did not take the submission; it will be sent again.",
    "lost": "The answer to the submission was lost; it will not be sent again.",
}


async def timeline(tx: Transaction, generation: Generation) -> list[dict[str, Any]]:
    """Return the entries, oldest first, at most ENTRIES_MAX."""
    id_ = generation.id
    entries = [_entry(generation.created_at, 0, "stored", id_, "The request was stored.", {})]
    if generation.submitted_at is not None:
        summary, detail = "Upstream works on the generation.", {"task_id": generation.task_id}
        entries.append(_entry(generation.submitted_at, 2, "submitted", None, summary, detail))
    entries += map(_exchange, await generations.exchanges(tx, id_))
    for row in await callbacks.of_generation(tx, generation.tenant, id_):
        detail = {name: row[name] for name in ("verdict", "reason", "trust")}
        summary = f"A callback was received: {row['verdict']}."
        entries.append(_entry(time_of(row["id"]), 3, "callback", row["id"], summary, detail))
    for row in await events.of_generation(tx, id_):
        summary, detail = f"The event {row['type']} was created.", {"type": row["type"]}
        entries.append(_entry(time_of(row["id"]), 5, "event", row["id"], summary, detail))
    entries += map(_attempt, await deliveries.attempts_of_generation(tx, id_))
    entries.sort(key=lambda entry: entry[:2])
    return [view for _at, _rank, view in entries[:ENTRIES_MAX]]


def _entry(
    at: int, rank: int, type_: str, id_: str | None, summary: str, detail: dict[str, Any]
) -> Entry:
    view = {"at": rfc3339(at), "type": type_, "id": id_, "summary": summary, "detail": detail}
    return at, rank, view


def _exchange(row: Row) -> Entry:
    detail = {name: row[name] for name in ("outcome", "status_code", "duration_ms")}
    detail["said"] = row["detail"]
    if row["kind"] == "submission":
        summary = _SUBMISSION[row["outcome"]]
        return _entry(row["at"], 1, "submission", None, summary, detail)
    return _entry(row["at"], 4, "poll", None, f"Upstream was asked: {row['outcome']}.", detail)


def _attempt(row: Row) -> Entry:
    attempt = deliveries.attempt_from_row(row)
    result = attempt.error_message or f"The subscriber answered {attempt.status_code}."
    detail = {
        "delivery_id": attempt.delivery_id,
        "subscriber_id": row["subscriber_id"],
        "event_id": row["event_id"],
        "number": attempt.number,
        "status_code": attempt.status_code,
        "error": attempt.view()["error"],
        "duration_ms": attempt.duration_ms,
    }
    summary = f"Attempt {attempt.number}: {result}"
    return _entry(attempt.started_at, 6, "attempt", attempt.id, summary, detail)
