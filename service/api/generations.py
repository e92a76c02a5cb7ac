"""Generations: create, read, wait for, refresh, cancel, retry and delete them; usage."""

import asyncio
import re
from collections.abc import Awaitable
from datetime import date
from functools import partial
from typing import Any

import msgspec

from service.api import idempotency
from service.api.call import (
    Answer,
    Call,
    answer,
    answer_list,
    answer_page,
    answer_problem,
    bad_query,
    get_own,
    lock_own,
)
from service.api.checks import MODEL_ID, MODEL_ID_RULE, check_url, depth_errors, metadata_errors
from service.api.problem import FieldError, Problem, conflict, refuse_fields
from service.api.waiting import wait_for_end, wait_for_submission
from service.generations import cancel as canceling
from service.generations import submit
from service.generations.send import Submitted
from service.model.attempt import Attempt
from service.model.clock import parse_rfc3339, rfc3339
from service.model.generation import (
    OPEN,
    RETRYABLE,
    TERMINAL,
    Generation,
    NewGeneration,
    RetriedGeneration,
)
from service.model.ids import time_of
from service.model.key import Key
from service.store import erasure, generations, rows, subscribers
from service.store.database import Row, Transaction
from service.upstream import catalogue

WAIT_SECONDS_MAX = 60

# By upstream's status. A refused upstream key is genhook's fault; lack of credits stays 402.
_REFUSALS = {
    401: (502, "upstream_unauthorized"),
    403: (502, "upstream_unauthorized"),
    402: (402, "upstream_payment_required"),
}
TIMELINE_MAX = 1_000
USAGE_DAYS, USAGE_DAYS_MAX = 30, 366
_TIME_RULE = "must be an RFC 3339 time, such as 2026-11-22T18:20:00Z"
_parse_day = partial(msgspec.convert, type=date)
# The order of entries that have the same time.
_TYPES = ("stored", "submission", "submitted", "callback", "poll", "event", "attempt")
_SUBMISSION = {
    "taken": "Upstream took the submission.",
    "refused": "Upstream refused the submission.",
    "put_off": "Upstream did not take the submission; it will be sent again.",
    "lost": "The answer to the submission was lost; it will not be sent again.",
}


async def create(call: Call) -> Answer:
    """POST /v1/generations: 202 with the stored generation, or the problem if upstream refused.

    The request waits for upstream for at most GENHOOK_SUBMIT_WAIT_SECONDS, and not at all with
    `Prefer: respond-async`. After that, the submission goes on without its client.
    """
    return await _create(call, call.decode(NewGeneration))


async def retry(call: Call) -> Answer:
    """POST /v1/generations/{id}/retry: a new generation with the old request; as `create`."""
    old = await call.database.read(get_own, call, Generation)
    if old.status not in RETRYABLE:
        raise Problem(409, "not_retryable", f"The generation is {old.status}.")
    request = {name: getattr(old, name) for name in NewGeneration.__struct_fields__}
    return await _create(call, RetriedGeneration(**request, retry_of=old.id))


async def _create(call: Call, new: NewGeneration) -> Answer:
    refuse_fields("The request has wrong fields.", _errors(call, new))
    if new.notify_url is not None:
        check_url(call.context, new.notify_url, "/notify_url")

    def store(has_place: bool) -> Awaitable[Generation]:  # noqa: FBT001  it is the only argument
        new_row = call.context, call.tenant, call.resource_id, new, has_place
        return idempotency.create(call, submit.store_new, *new_row)

    accepted = await call.worker.submitter.accept(call.tenant, call.resource_id, store)
    answered = await idempotency.keep(call, await _answer_submission(call, *accepted))
    if not _prefers_async(call):
        await call.worker.drive(call.resource_id)
    return answered


async def _answer_submission(
    call: Call, generation: Generation, submission: asyncio.Task[Submitted] | None
) -> Answer:
    if submission is None or _prefers_async(call):
        return answer(generation.view(), 202)
    await wait_for_submission(call.context, submission)
    if not submission.done():
        stored = await call.database.read(rows.read_by_id, Generation, generation.id)
        return answer((stored or generation).view(), 202)
    generation, refusal = submission.result()
    if refusal is None:
        return answer(generation.view(), 202)
    status, code = _REFUSALS.get(refusal, (422, "upstream_refused"))
    assert generation.error is not None
    message = generation.error["message"]
    detail = f"Upstream refused {generation.id} with {refusal}: {message}"
    # Not raised: the generation exists, so this answer is kept for Idempotency-Key.
    return answer_problem(Problem(status, code, detail), call.request_id)


def _prefers_async(call: Call) -> bool:
    """Whether the client wants no wait (RFC 7240 section 4.1), in one header or several."""
    values = ",".join(call.headers.getlist("prefer")).split(",")
    return "respond-async" in [value.partition(";")[0].strip().lower() for value in values]


def _errors(call: Call, new: NewGeneration) -> list[FieldError]:
    is_id = re.fullmatch(MODEL_ID, new.model)
    errors = [] if is_id else [FieldError("/model", MODEL_ID_RULE)]
    errors += metadata_errors(new.metadata, "metadata")
    if too_deep := depth_errors(new.input, "/input"):
        return errors + too_deep
    problems = catalogue.problems(call.context.catalogue.get(new.model), new.input)
    return errors + [FieldError(f"/input{pointer}", message) for pointer, message in problems]


async def get(call: Call) -> Answer:
    """GET /v1/generations/{id}: with `wait`, once it is terminal or so many seconds have passed.

    A process that stops answers at once, with the generation as it is.
    """
    seconds = call.query_integer("wait", 0, 0, WAIT_SECONDS_MAX)
    loop, id_ = asyncio.get_running_loop(), call.path["id"]
    ends_at = loop.time() + seconds
    ended = call.context.waiters.setdefault(id_, asyncio.Event())
    is_client_there = True
    while True:
        generation = await call.database.read(get_own, call, Generation)
        is_over = loop.time() >= ends_at or call.context.stopping.is_set() or not is_client_there
        if generation.is_terminal or is_over:
            return answer(generation.view())
        is_client_there = await wait_for_end(call.context, ended, ends_at, call.receive)
        await call.database.read(_require_live_key, call)


async def _require_live_key(tx: Transaction, call: Call) -> None:
    """Problem 401 if the key was revoked while its request waited."""
    key = await rows.read_by_id(tx, Key, call.key.id, call.tenant)
    if key is not None and key.revoked_at is not None:  # GENHOOK_ADMIN_KEY has no row.
        detail = "The key was revoked while the request waited."
        raise Problem(401, "unauthorized", detail, headers={"www-authenticate": "Bearer"})


def _parse_time(text: str, *, round_up: bool = False) -> int:
    return parse_rfc3339(text.replace(" ", "+"), round_up=round_up)  # A `+` in a query is a space.


async def list_(call: Call) -> Answer:
    """GET /v1/generations."""
    prefix = "metadata."
    metadata = {n.removeprefix(prefix): v for n, v in call.query.items() if n.startswith(prefix)}
    only = generations.Filter(
        status=call.query_choice("status", (*OPEN, *TERMINAL)),
        model=call.query_text("model", MODEL_ID, MODEL_ID_RULE),
        created_after=call.query_value("created_after", _parse_time, _TIME_RULE),
        created_before=call.query_value(
            "created_before", partial(_parse_time, round_up=True), _TIME_RULE
        ),
        metadata=metadata,
    )
    if errors := metadata_errors(metadata, "metadata"):
        raise bad_query("metadata", errors[0].message)
    return await answer_page(call, "gen", Generation, generations.list_page, only)


async def get_timeline(tx: Transaction, call: Call) -> Answer:
    """GET /v1/generations/{id}/timeline: the entries, oldest first, at most TIMELINE_MAX."""
    generation = await get_own(tx, call, Generation)
    id_ = generation.id
    entries = [_entry(generation.created_at, "stored", id_, "The request was stored.")]
    if generation.submitted_at is not None:
        at, task_id = generation.submitted_at, generation.task_id
        summary = "Upstream took the generation."
        entries.append(_entry(at, "submitted", None, summary, task_id=task_id))
    exchanges, callbacks, events, attempts = await generations.timeline(tx, generation)
    entries += map(_exchange, exchanges)
    for row in callbacks:
        detail = {name: row[name] for name in ("verdict", "reason", "trust")}
        summary = f"A callback was received: {row['verdict']}."
        entries.append(_entry(time_of(row["id"]), "callback", row["id"], summary, **detail))
    for row in events:
        summary = f"The event {row['type']} was created."
        entries.append(_entry(time_of(row["id"]), "event", row["id"], summary, type=row["type"]))
    entries += map(_attempt, attempts)
    entries.sort(key=lambda entry: (entry["at"], _TYPES.index(entry["type"])))
    return answer_list(entries[:TIMELINE_MAX])


def _entry(at: int, type_: str, id_: str | None, summary: str, **detail: Any) -> dict[str, Any]:
    return {"at": rfc3339(at), "type": type_, "id": id_, "summary": summary, "detail": detail}


def _exchange(row: Row) -> dict[str, Any]:
    detail = {name: row[name] for name in ("outcome", "status_code", "duration_ms")}
    is_submission, outcome = row["kind"] == "submission", row["outcome"]
    summary = _SUBMISSION[outcome] if is_submission else f"Upstream was asked: {outcome}."
    return _entry(row["at"], row["kind"], None, summary, **detail, said=row["detail"])


def _attempt(row: Row) -> dict[str, Any]:
    attempt = rows.decode_row(Attempt, row)
    result = attempt.error_message or f"The subscriber answered {attempt.status_code}."
    names = ("delivery_id", "subscriber_id", "event_id", "number", "status_code")
    detail = {name: row[name] for name in names}
    detail |= {"error": attempt.view()["error"], "duration_ms": attempt.duration_ms}
    summary = f"Attempt {attempt.number}: {result}"
    return _entry(attempt.started_at, "attempt", attempt.id, summary, **detail)


async def _get_with_pause(tx: Transaction, call: Call) -> tuple[Generation, int]:
    return await get_own(tx, call, Generation), await generations.get_pause(tx)


async def refresh(call: Call) -> Answer:
    """POST /v1/generations/{id}/refresh: ask upstream now, at most once a second."""
    generation, paused_until = await call.database.read(_get_with_pause, call)
    if generation.is_final:
        return answer(generation.view())
    task = call.worker.poller.refresh(generation, paused_until, call.context.clock())
    if task is not None:  # Without a poll, the answer is what is stored.
        await asyncio.shield(task)
    generation = await call.database.read(get_own, call, Generation)
    return answer(generation.view())


async def cancel(tx: Transaction, call: Call) -> Generation:
    """POST /v1/generations/{id}/cancel: canceling again changes nothing; 409 if it has ended."""
    generation = await lock_own(tx, call, Generation)
    if generation.status == "canceled":
        return generation
    if generation.is_terminal:
        raise conflict(f"The generation is {generation.status}.")
    return await canceling.cancel(tx, call.context, generation)


async def delete(tx: Transaction, call: Call) -> None:
    """DELETE /v1/generations/{id}: 409 while it is open. Attempts under way go on."""
    generation = await lock_own(tx, call, Generation)
    if not generation.is_terminal:
        raise conflict(f"The generation is {generation.status}: cancel it first.")
    for subscriber_id in await erasure.erase(tx, generation):
        await subscribers.bump_revision(tx, call.tenant, subscriber_id)
        tx.after_commit(call.context.inbox.reload, subscriber_id)


async def get_usage(call: Call) -> Answer:
    """GET /v1/usage: from `since` to `until`, by default the 30 days that end today (UTC)."""
    read_day = partial(call.query_value, parse=_parse_day, rule="must be a day, such as 2026-11-22")
    until = read_day("until") or date.fromisoformat(rfc3339(call.context.clock())[:10])
    since = read_day("since") or date.fromordinal(max(1, until.toordinal() - USAGE_DAYS + 1))
    if since > until:
        raise bad_query("since", "must not be after until")
    if (until - since).days >= USAGE_DAYS_MAX:
        raise bad_query("since", f"must be less than {USAGE_DAYS_MAX} days before until")
    model = call.query_text("model", MODEL_ID, MODEL_ID_RULE)
    days, tenant = (since.isoformat(), until.isoformat()), call.query_tenant()
    usage = await call.database.search(call.tenant, generations.usage, tenant, *days, model)
    return answer_list([dict(row) for row in usage])
