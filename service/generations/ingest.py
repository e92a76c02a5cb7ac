"""Apply what upstream reports to generations. Callbacks, polls and create answers all go here."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from service.context import Context
from service.delivery import fanout
from service.model.clock import rfc3339
from service.model.event import EVENT_TYPE_OF, Event
from service.model.generation import Generation
from service.store import callbacks, events, generations
from service.store.callbacks import NEW_VERDICTS, Arrival
from service.store.database import Transaction
from service.telemetry import log, metrics
from service.upstream import catalogue, wire
from service.upstream.results import File

_log = log.get()


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """What upstream reports about a generation, or that its deadline has passed.

    It is made before the transaction and holds no callback URL of ours and no secret.
    """

    status: Literal["processing", "succeeded", "failed", "timed_out"]
    task_id: str | None = None
    output: dict[str, Any] | None = None
    error: dict[str, str] | None = None


def update_of(context: Context, report: wire.Report) -> Update:
    """Return a report as an update, secrets cut."""
    return Update(
        status=report.state,
        task_id=report.task_id,
        output=_output(context, report) if report.state == "succeeded" else None,
        error=_error(context, report) if report.state == "failed" else None,
    )


class Batch:
    """Generations that one transaction reads together, changes in Python and writes together.

    Attributes:
        generations: by id, as they are after the changes so far.
        now: the time of the transaction, milliseconds since the epoch.

    """

    def __init__(self, tx: Transaction, context: Context, before: Mapping[str, Generation]) -> None:
        self.generations = dict(before)
        self.now = tx.now
        self._tx = tx
        self._context = context
        self._before = before
        self._events: list[tuple[Event, Generation]] = []

    def ingest(self, generation_id: str, update: Update) -> Generation:
        """Apply what upstream reports; return the generation as it then is.

        The status moves along TRANSITIONS only: a repeated or late report changes nothing and
        makes no event, so whichever of callback and poll comes first makes the one terminal event.
        """
        generation = self.generations[generation_id]
        if not generation.accepts(update.status):
            return generation
        changes = _changes(self._context, generation, update, self.now)
        generation = self.change(generation_id, **changes)
        type_, view = EVENT_TYPE_OF[update.status], generation.view()
        event = events.new_event(generation.tenant, type_, view, generation_id, self.now)
        self._events.append((event, generation))
        return self.change(generation_id, event_ids=[*generation.event_ids, event.id])

    def change(self, generation_id: str, **changes: Any) -> Generation:
        """Change fields of a generation; return it as it then is."""
        before = self.generations[generation_id]
        after = msgspec.structs.replace(before, **changes)
        assert after.status == before.status or before.accepts(after.status)
        self.generations[generation_id] = after
        return after

    async def write(self) -> None:
        """Store the changed generations, their events, the deliveries and the usage."""
        tx = self._tx
        await generations.update(
            tx, [(self._before[id_], after) for id_, after in self.generations.items()]
        )
        if not self._events:
            return
        await events.insert(tx, [event for event, _ in self._events])
        await fanout.fan_out(tx, self._context, self._events)
        ended = [generation for _, generation in self._events if generation.is_terminal]
        if ended:
            await self._end(ended)

    async def _end(self, ended: Sequence[Generation]) -> None:
        usage: Counter[tuple[str, str, str, str]] = Counter()
        for generation in ended:
            usage += generations.usage_of(generation)
            self._tx.after_commit(_ended, self._context, generation)
        await generations.add_usage(self._tx, usage)
        # A late result may still come after `timed_out`, so its callbacks stay to be confirmed.
        over = [generation.id for generation in ended if generation.status != "timed_out"]
        await generations.delete_confirmations(self._tx, over)


async def receive(tx: Transaction, arrivals: Sequence[Arrival]) -> list[str | None]:
    """Store callbacks as hints and have upstream asked; return the verdict of each.

    None: the generation is gone or the token's nonce was revoked, and nothing was stored.
    """
    stored = await callbacks.insert(tx, arrivals)
    await callbacks.plan_confirmations(tx, zip(arrivals, stored, strict=True))
    return [one.verdict if one else None for one in stored]


class ProvenCallback(msgspec.Struct, frozen=True):
    """A callback whose body is believed. `report` is None if the body is not readable."""

    arrival: Arrival
    report: wire.Report | None
    update: Update | None


def proven(context: Context, arrival: Arrival) -> ProvenCallback:
    """Read the body of a callback that is believed."""
    report = wire.read_callback(arrival.body)
    return ProvenCallback(arrival, report, update_of(context, report) if report else None)


class Ingest:
    """The batched unit of callbacks that are believed."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def believe(self, tx: Transaction, proven: Sequence[ProvenCallback]) -> list[str | None]:
        """Store callbacks and what follows from their bodies; return the verdict of each."""
        arrivals = [one.arrival for one in proven]
        stored = await callbacks.insert(tx, arrivals)
        new = [
            (callback, verdict)
            for callback, verdict in zip(proven, stored, strict=True)
            if verdict is not None and verdict.verdict in NEW_VERDICTS
        ]
        ids = [callback.arrival.generation_id for callback, _ in new]
        batch = Batch(tx, self._context, await generations.get_many(tx, ids))
        hints = [
            (callback.arrival, verdict)
            for callback, verdict in new
            if not self._apply(tx, batch, callback)
        ]
        await batch.write()
        if hints:
            await callbacks.plan_confirmations(tx, hints)
            tx.after_commit(self._context.signals.poll.set)
        return [one.verdict if one else None for one in stored]

    def _apply(self, tx: Transaction, batch: Batch, callback: ProvenCallback) -> bool:
        """Apply a callback's body; False if upstream is to be asked as well."""
        report, update = callback.report, callback.update
        if report is None or update is None:
            return False
        generation = batch.generations[callback.arrival.generation_id]
        if not report.recognised:
            tx.after_commit(_log_unknown_word, report.word, generation.id)
        batch.ingest(generation.id, update)
        # Without a planned poll the create answer is late or lost: with this callback's task id
        # upstream can be asked.
        return report.state != "processing" or generation.next_poll_at is not None


def _log_unknown_word(word: str | None, generation_id: str) -> None:
    _log.warning("upstream.unknown_word", word=word, generation_id=generation_id)


def _changes(context: Context, old: Generation, update: Update, now: int) -> dict[str, Any]:
    changes: dict[str, Any] = {"status": update.status, "task_id": old.task_id or update.task_id}
    if update.status == "processing":
        return {**changes, "submitted_at": old.submitted_at or now}
    changes.update(
        completed_at=now,
        output=update.output,
        error=update.error,
        next_poll_at=None,
        submit_at=None,
        late_poll_count=0,
    )
    if update.status == "succeeded":
        model = context.catalogue.get(old.model)
        changes["credits"] = model and catalogue.credits(model, old.input)
    elif update.status == "failed":
        changes["credits"] = 0
    return changes


def _ended(context: Context, generation: Generation) -> None:
    metrics.generations.add(1, generation.status)
    _log.info(
        "generation.ended",
        generation_id=generation.id,
        status=generation.status,
        model=generation.model,
    )
    context.waiters.wake(generation.id)


def _output(context: Context, report: wire.Report) -> dict[str, Any]:
    files = [_file(file) for file in report.files]
    return {"files": files, "raw": context.redactor.json(report.raw)}


def _file(file: File) -> dict[str, str]:
    view = {"url": file.url, "media_type": file.media_type}
    return view if file.expires_at is None else {**view, "expires_at": rfc3339(file.expires_at)}


def _error(context: Context, report: wire.Report) -> dict[str, str]:
    error: dict[str, str] = context.redactor.json(
        {
            "code": report.error_code or "upstream_failed",
            "message": report.error_message or "Upstream reported a failure and gave no reason.",
        }
    )
    return error
