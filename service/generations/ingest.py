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

    It is built before the transaction, and its callback URLs and secrets are redacted.
    """

    status: Literal["processing", "succeeded", "failed", "timed_out"]
    task_id: str | None = None
    output: dict[str, Any] | None = None
    error: dict[str, str] | None = None


def update_of(context: Context, report: wire.Report) -> Update:
    """Return a report as an update, with secrets redacted."""
    return Update(
        status=report.state,
        task_id=report.task_id,
        output=_output(context, report) if report.state == "succeeded" else None,
        error=_error(context, report) if report.state == "failed" else None,
    )


class Batch:
    """Generations that are read together, changed in memory and written together.

    Attributes:
        generations: by id, with the changes so far.
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
        """Apply what upstream reports; return the changed generation.

        Only TRANSITIONS are allowed: a repeated or late report changes nothing and makes no event,
        so the first of callback and poll makes the only terminal event.
        """
        generation = self.generations[generation_id]
        if not generation.can_become(update.status):
            return generation
        changes = _status_changes(self._context, generation, update, self.now)
        generation = self.change(generation_id, **changes)
        type_, view = EVENT_TYPE_OF[update.status], generation.view()
        event = events.new_event(generation.tenant, type_, view, generation_id, self.now)
        self._events.append((event, generation))
        return self.change(generation_id, event_ids=[*generation.event_ids, event.id])

    def change(self, generation_id: str, **changes: Any) -> Generation:
        """Change fields of a generation; return the changed generation."""
        before = self.generations[generation_id]
        after = msgspec.structs.replace(before, **changes)
        assert after.status == before.status or before.can_become(after.status)
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
            await self._write_outcomes(ended)

    async def _write_outcomes(self, ended: Sequence[Generation]) -> None:
        """Add the usage of terminal generations, and delete confirmations that are not needed."""
        usage: Counter[tuple[str, str, str, str]] = Counter()
        for generation in ended:
            usage += generations.usage_of(generation)
            self._tx.after_commit(_announce, self._context, generation)
        await generations.add_usage(self._tx, usage)
        # A timed out generation may still get a result, so its callbacks are still confirmed.
        final_ids = [generation.id for generation in ended if generation.status != "timed_out"]
        await generations.delete_confirmations(self._tx, final_ids)


async def store_hints(tx: Transaction, arrivals: Sequence[Arrival]) -> list[str | None]:
    """Store callbacks that are hints, and plan their confirmations; return the verdict of each.

    None: the generation was deleted or the token revoked, and nothing was stored.
    """
    stored = await callbacks.insert(tx, arrivals)
    await callbacks.plan_confirmations(tx, zip(arrivals, stored, strict=True))
    return [callback.verdict if callback else None for callback in stored]


class Proof(msgspec.Struct, frozen=True):
    """A callback whose body is proof. `report` is None if the body is not readable."""

    arrival: Arrival
    report: wire.Report | None
    update: Update | None


def read_proof(context: Context, arrival: Arrival) -> Proof:
    """Read the body of a callback that is proof."""
    report = wire.read_callback(arrival.body)
    return Proof(arrival, report, update_of(context, report) if report else None)


class ProofWriter:
    """Stores callbacks that are proof, and applies them."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def write(self, tx: Transaction, proofs: Sequence[Proof]) -> list[str | None]:
        """Store callbacks and the outcomes that they report; return the verdict of each."""
        stored = await callbacks.insert(tx, [proof.arrival for proof in proofs])
        new = [
            (proof, callback)
            for proof, callback in zip(proofs, stored, strict=True)
            if callback is not None and callback.verdict in NEW_VERDICTS
        ]
        ids = [proof.arrival.generation_id for proof, _ in new]
        batch = Batch(tx, self._context, await generations.get_many(tx, ids))
        hints = [
            (proof.arrival, callback)
            for proof, callback in new
            if not self._apply(tx, batch, proof)
        ]
        await batch.write()
        if hints:
            await callbacks.plan_confirmations(tx, hints)
            tx.after_commit(self._context.signals.poll.set)
        return [callback.verdict if callback else None for callback in stored]

    def _apply(self, tx: Transaction, batch: Batch, proof: Proof) -> bool:
        """Apply a callback's report; return False if a confirmation is needed as well."""
        report, update = proof.report, proof.update
        if report is None or update is None:
            return False
        generation = batch.generations[proof.arrival.generation_id]
        if not report.recognised:
            tx.after_commit(_log_unknown_status, report.word, generation.id)
        batch.ingest(generation.id, update)
        # Without a planned poll, the create answer is late or lost. A confirmation can use this
        # callback's task id.
        return report.state != "processing" or generation.next_poll_at is not None


def _log_unknown_status(word: str | None, generation_id: str) -> None:
    _log.warning("upstream.unknown_word", word=word, generation_id=generation_id)


def _status_changes(context: Context, old: Generation, update: Update, now: int) -> dict[str, Any]:
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


def _announce(context: Context, generation: Generation) -> None:
    metrics.generations.add(1, generation.status)
    _log.info(
        "generation.ended",
        generation_id=generation.id,
        status=generation.status,
        model=generation.model,
    )
    waiter = context.waiters.pop(generation.id, None)
    if waiter is not None:
        waiter.set()


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
