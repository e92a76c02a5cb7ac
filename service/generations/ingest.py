"""Apply what upstream reports to generations, in callbacks and in answers to requests."""

import time
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from typing import Any, Literal
from urllib.parse import urljoin

import msgspec

from service.context import Context
from service.delivery import fanout
from service.model.clock import rfc3339
from service.model.event import EVENT_TYPE_OF, Event
from service.model.generation import Generation
from service.model.ids import new_id
from service.store import callbacks, events, generations
from service.store.database import Transaction
from service.store.rows import json_text
from service.telemetry import log, metrics
from service.upstream import catalogue, reading, results, scalars, wire
from service.upstream.expiry import expiry_of

_log = log.get()
_ABSOLUTE = ("https:", "http:", "gs:", "s3:", "data:")  # Schemes, as links.py returns them.
REASON_CHARS_MAX = 1_000  # Upstream's text (scalars.MAX_TEXT_CHARS) and the words around it.


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """A change of status: what upstream reports, without secrets; a time-out; or a cancellation."""

    status: Literal["processing", "succeeded", "failed", "timed_out", "canceled"]
    task_id: str | None = None
    output: dict[str, Any] | None = None
    error: dict[str, str] | None = None
    is_unsent: bool = False  # Upstream certainly never got the submission, and bills nothing.

    @property
    def is_end(self) -> bool:
        """Whether the task ended, for all generations that share it."""
        return self.status in ("succeeded", "failed")


def update_of(context: Context, answer: wire.Answer) -> Update | None:
    """Return what an answer says about its generation, with secrets redacted; None if nothing."""
    if isinstance(answer, wire.Report):
        return report_update(context, answer)
    if answer.outcome != "refused":
        return None
    reason = _reason(context, answer.code or "refused", answer.message or "")
    return Update(status="failed", error=reason)


def report_update(context: Context, report: wire.Report) -> Update:
    """Return the change of status that a report asks for, with secrets redacted."""
    redact = context.redactor.json
    output, error = None, None
    if report.state == "succeeded":
        files = [_file(context, file) for file in report.files]
        output = {"files": files, "raw": redact(report.raw)}
    elif report.state == "failed":
        # Without a known reason, what upstream said is shown; it is cut after the redaction.
        raw_text = json_text(redact(report.raw))[: scalars.MAX_TEXT_CHARS]
        message = report.error_message or f"Upstream reported a failure: {raw_text}"
        error = _reason(context, report.error_code or "upstream_failed", message)
    return Update(status=report.state, task_id=report.task_id, output=output, error=error)


def _reason(context: Context, code: str, message: str) -> dict[str, str]:
    return {"code": excerpt(context, code), "message": excerpt(context, message)}


def excerpt(context: Context, text: str) -> str:
    """Return upstream's text as it is shown: secrets are cut out first, then its end is cut off."""
    return context.redactor.excerpt(text, REASON_CHARS_MAX)


async def make_update(context: Context, answer: wire.Answer) -> Update | None:
    """Return what `update_of` returns; a large answer is redacted outside of the event loop."""
    size_bytes = answer.size_bytes if isinstance(answer, wire.Report) else 0
    return await reading.read(size_bytes, partial(update_of, context, answer))


def _file(context: Context, file: results.File) -> dict[str, str | None]:
    url, expires_at = file.url, file.expires_at
    if url is not None:
        if not url.startswith(_ABSOLUTE):
            # RFC 3986: without a scheme or a host it is relative to upstream, as is `../a.png`.
            url = urljoin(context.settings.upstream_url.rstrip("/") + "/", url)
        expires_at = expires_at or expiry_of(url)
        url = context.redactor.json(url)
    view: dict[str, str | None] = {"url": url, "media_type": file.media_type}
    return view if expires_at is None else {**view, "expires_at": rfc3339(expires_at)}


class Reply(msgspec.Struct, frozen=True):
    """Upstream's answer to a submission or a poll, with the update and the exchange to store."""

    answer: wire.Answer
    update: Update | None
    exchange: generations.Exchange
    task_id: str | None  # The task that the poll was about; None for a submission.
    pause_ms: int = 0  # For how long the answer pauses all requests to upstream.
    is_planned: bool = False  # For a follower: whether the answer counts as its planned poll, too.


async def ask(
    context: Context, generation_id: str, request: Awaitable[wire.Answer], task_id: str | None
) -> Reply:
    """Wait for upstream's answer to a poll about `task_id`, or to a submission if it is None."""
    asked_at, timer_start = context.clock(), time.monotonic()
    answer = await request
    outcome: str
    if isinstance(answer, wire.NoReport):
        outcome, detail = answer.outcome, answer.message or answer.retry_after
    elif task_id is None:
        outcome, detail = "taken", answer.task_id
    else:
        outcome = answer.state
        detail = answer.error_message if outcome == "failed" else answer.word
    exchange = generations.Exchange(
        generation_id=generation_id,
        kind="submission" if task_id is None else "poll",
        at=asked_at,
        duration_ms=round((time.monotonic() - timer_start) * 1_000),
        status_code=scalars.clamp(answer.status) if isinstance(answer, wire.NoReport) else None,
        outcome=outcome,
        detail=excerpt(context, detail) if detail else detail,
    )
    return Reply(answer, await make_update(context, answer), exchange, task_id)


def announce_exchange(
    counter: metrics.Numbers, exchange: generations.Exchange, **more: str
) -> None:
    """Count and log a submission or a poll."""
    counter.add(1, exchange.outcome)
    _log.info(
        exchange.kind,
        generation_id=exchange.generation_id,
        **more,
        outcome=exchange.outcome,
        detail=exchange.detail,
        duration_ms=exchange.duration_ms,
    )


class Batch:
    """Generations that are read together, changed in memory and written together."""

    def __init__(self, tx: Transaction, context: Context, before: Mapping[str, Generation]) -> None:
        self.before = before  # By id.
        self.generations = dict(before)  # The same with the changes so far.
        self.now = tx.now
        self._tx = tx
        self.context = context
        # By the id of a new event, its generation with every change until its next event: the event
        # shows what the API answers after this commit.
        self._shown: dict[str, Generation] = {}

    def ingest(self, generation_id: str, update: Update) -> Generation:
        """Apply what upstream reports; return the changed generation.

        Only TRANSITIONS are allowed: a repeated or late report changes nothing and makes no event,
        so the first of callback and poll makes the only terminal event.
        """
        generation = self.generations[generation_id]
        if not generation.can_become(update.status):
            return generation
        changes = _status_changes(self.context, generation, update, self.now)
        if update.status in ("processing", "succeeded"):  # Even if no task id is known.
            changes |= submission_changes(generation, "taken")
        # The ids of a generation's events are in their order, whichever process makes them.
        last_id = generation.event_ids[-1] if generation.event_ids else None
        event_id = new_id("evt", self.now, after=last_id)
        self._shown[event_id] = generation
        changes["event_ids"] = [*generation.event_ids, event_id]
        return self.change(generation_id, **changes)

    def change(self, generation_id: str, **changes: Any) -> Generation:
        """Change fields of a generation; return the changed generation."""
        before = self.generations[generation_id]
        if (task_id := changes.get("task_id")) is not None:
            if task_id != before.task_id and self.context.redactor.json(task_id) != task_id:
                # Upstream repeats a secret of ours, such as the callback URL: that names no task,
                # and subscribers see task ids.
                changes["task_id"] = before.task_id
            # A task id proves that upstream has the submission, wherever the id comes from, and
            # whatever became of the task.
            changes |= submission_changes(before, "taken")
            changes["submitted_at"] = before.submitted_at or self.now
        after = msgspec.structs.replace(before, **changes)
        assert after.status == before.status or before.can_become(after.status)
        self.generations[generation_id] = after
        if after.event_ids and (last_id := after.event_ids[-1]) in self._shown:
            self._shown[last_id] = after
        return after

    async def write(self) -> None:
        """Store the changed generations, their events, the deliveries and the usage."""
        tx = self._tx
        await generations.update(
            tx, [(self.before[id_], after) for id_, after in self.generations.items()]
        )
        if not self._shown:
            return
        new = [(_event_of(id_, shown, self.now), shown) for id_, shown in self._shown.items()]
        await events.insert(tx, [event for event, _ in new])
        await fanout.fan_out(tx, self.context, new)
        ended = [generation for generation in self._shown.values() if generation.is_terminal]
        usage: Counter[tuple[str, str, str, str]] = Counter()
        for generation in ended:
            usage.update(generations.usage_of(generation))
            if (late := self.before[generation.id]).status == "timed_out":
                usage.subtract(generations.usage_of(late))  # It has ended otherwise after all.
            tx.after_commit(_announce_end, self.context, generation)
        if ended:
            await generations.add_usage(tx, usage)
            # A timed out generation may still get a result, so its callbacks are still confirmed.
            final_ids = [generation.id for generation in ended if generation.is_final]
            await generations.delete_confirmations(tx, final_ids)


def _event_of(id_: str, generation: Generation, now: int) -> Event:
    type_, view = EVENT_TYPE_OF[generation.status], generation.view()
    return events.new_event(generation.tenant, type_, view, generation.id, now, id_=id_)


async def store_hints(
    tx: Transaction, arrivals: Sequence[callbacks.Arrival]
) -> list[callbacks.StoredCallback | None]:
    """Store callbacks that are hints, and plan their confirmations; return their verdicts.

    None: the generation was deleted or the token revoked, and nothing was stored.
    """
    stored = await callbacks.insert(tx, arrivals)
    await callbacks.plan_confirmations(tx, zip(arrivals, stored, strict=True))
    return stored


def log_unknown_word(word: str | None, generation_id: str) -> None:
    """Log a status word of upstream that is not in `vocabulary.STATE_OF_WORD`."""
    metrics.unknown_words.add(1)
    _log.warning("upstream.unknown_word", word=word, generation_id=generation_id)


def _status_changes(context: Context, old: Generation, update: Update, now: int) -> dict[str, Any]:
    changes: dict[str, Any] = {"status": update.status, "task_id": old.task_id or update.task_id}
    if update.status in ("processing", "succeeded"):  # Upstream has, or had, the task.
        changes["submitted_at"] = old.submitted_at or now
    if update.status == "processing":
        return changes
    model = context.catalogue.get(old.model)
    billed = 0 if update.status == "failed" or update.is_unsent else None
    if update.status == "succeeded" and model is not None:
        billed = scalars.clamp(catalogue.credits(model, old.input))
    return {
        **changes,
        "completed_at": now,
        "output": update.output,
        "error": update.error,
        "credits": billed,
        "next_poll_at": None,
        "submit_at": None,
        "late_poll_count": 0,
    }


def submission_changes(
    generation: Generation, submission: str, submit_at: int | None = None
) -> dict[str, Any]:
    """Return the changes that give a submission its next state; none if that is not allowed."""
    if not generation.can_submission_become(submission):
        return {}
    return {"submission": submission, "submit_at": submit_at}


def _announce_end(context: Context, generation: Generation) -> None:
    metrics.generations.add(1, generation.status)
    id_, status = generation.id, generation.status
    _log.info("generation.ended", generation_id=id_, status=status, model=generation.model)
    if waiter := context.waiters.pop(id_, None):
        waiter.set()
