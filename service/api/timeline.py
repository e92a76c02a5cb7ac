"""A generation's timeline: stored, submitted, callbacks, polls, events, attempts."""

from typing import Any

from service.model.clock import rfc3339
from service.model.generation import Generation
from service.model.ids import time_of
from service.store import callbacks, deliveries, events, generations
from service.store.database import Row, Transaction

ENTRIES_MAX = 1_000
# In the order of entries of the same time.
_TYPES = ("stored", "submission", "submitted", "callback", "poll", "event", "attempt")
_SUBMISSION = {
    "taken": "Upstream took the submission.",
    "refused": "Upstream refused the submission.",
    "put_off": "Upstream did not take the submission; it will be sent again.",
    "lost": "The answer to the submission was lost; it will not be sent again.",
}


async def timeline(tx: Transaction, generation: Generation) -> list[dict[str, Any]]:
    """Return the entries, oldest first, at most ENTRIES_MAX."""
    id_ = generation.id
    entries = [_entry(generation.created_at, "stored", id_, "The request was stored.", {})]
    if generation.submitted_at is not None:
        summary, detail = "Upstream works on the generation.", {"task_id": generation.task_id}
        entries.append(_entry(generation.submitted_at, "submitted", None, summary, detail))
    entries += map(_exchange, await generations.exchanges(tx, id_))
    for row in await callbacks.of_generation(tx, generation.tenant, id_):
        detail = {name: row[name] for name in ("verdict", "reason", "trust")}
        summary = f"A callback was received: {row['verdict']}."
        entries.append(_entry(time_of(row["id"]), "callback", row["id"], summary, detail))
    for row in await events.of_generation(tx, id_):
        summary, detail = f"The event {row['type']} was created.", {"type": row["type"]}
        entries.append(_entry(time_of(row["id"]), "event", row["id"], summary, detail))
    entries += map(_attempt, await deliveries.attempts_of_generation(tx, id_))
    entries.sort(key=lambda entry: (entry["at"], _TYPES.index(entry["type"])))
    return entries[:ENTRIES_MAX]


def _entry(
    at: int, type_: str, id_: str | None, summary: str, detail: dict[str, Any]
) -> dict[str, Any]:
    return {"at": rfc3339(at), "type": type_, "id": id_, "summary": summary, "detail": detail}


def _exchange(row: Row) -> dict[str, Any]:
    detail = {name: row[name] for name in ("outcome", "status_code", "duration_ms")}
    summary = f"Upstream was asked: {row['outcome']}."
    if row["kind"] == "submission":
        summary = _SUBMISSION[row["outcome"]]
    return _entry(row["at"], row["kind"], None, summary, {**detail, "said": row["detail"]})


def _attempt(row: Row) -> dict[str, Any]:
    attempt = deliveries.attempt_from_row(row)
    result = attempt.error_message or f"The subscriber answered {attempt.status_code}."
    names = ("delivery_id", "subscriber_id", "event_id", "number", "status_code")
    detail = {name: row[name] for name in names}
    detail |= {"error": attempt.view()["error"], "duration_ms": attempt.duration_ms}
    summary = f"Attempt {attempt.number}: {result}"
    return _entry(attempt.started_at, "attempt", attempt.id, summary, detail)
