"""Callbacks whose body is proof: what they report is applied in the commit that stores them."""

from collections.abc import Sequence

import msgspec

from service.context import Context
from service.generations import ingest, judge
from service.model.generation import Generation
from service.store import callbacks, generations, tasks
from service.store.database import Transaction
from service.upstream import results, wire


class Reading(msgspec.Struct, frozen=True):
    """What a body reports, and the change of status that it asks for."""

    report: wire.Report
    update: ingest.Update


class Proof(msgspec.Struct, frozen=True):
    """A callback whose body is proof."""

    arrival: callbacks.Arrival
    reading: Reading | None  # None if the body is not readable.


def read_end(arrival: callbacks.Arrival, *, is_proof: bool = False) -> wire.Report | None:
    """Read the body of a callback, and note whether it reports an end."""
    report = wire.read_callback(arrival.body, is_proof=is_proof)
    arrival.reports_end = report is not None and report.reports_end
    return report


def read_proof(context: Context, arrival: callbacks.Arrival) -> Proof:
    """Read the body of a callback that is proof."""
    report = read_end(arrival, is_proof=True)
    if report is None:
        return Proof(arrival, None)
    arrival.readable |= report.is_proof  # Its JSON may be read although it is not strict.
    return Proof(arrival, Reading(report, ingest.report_update(context, report)))


async def write_proofs(
    tx: Transaction, proofs: Sequence[Proof], *, context: Context
) -> list[callbacks.StoredCallback | None]:
    """Store callbacks that are proof, and the outcomes that they report; return their verdicts."""
    # With those that share a task, all are locked at once, and so in order.
    read = await generations.lock_with_sharers(
        tx, [proof.arrival.generation_id for proof in proofs]
    )
    stored = await callbacks.insert(tx, [proof.arrival for proof in proofs])
    pairs = list(zip(proofs, stored, strict=True))
    new = [(p, s) for p, s in pairs if s is not None and s.verdict in callbacks.NEW_VERDICTS]
    batch = ingest.Batch(tx, context, read)
    await tasks.lock_tasks(tx, [id_ for proof, _ in new for id_ in _claimed_ids(batch, proof)])
    hints, doubted, ends = [], [], dict[str, ingest.Update]()
    for proof, callback in new:
        needs_task = is_proven = False
        reading, generation = proof.reading, batch.generations.get(proof.arrival.generation_id)
        # Without a generation, its row is not readable.
        if reading and generation and await _is_believed(tx, reading.report, generation):
            needs_task = _needs_task(reading.report, generation)
            is_proven = _apply(tx, batch, generation, reading)
            if reading.update.is_end:
                ends.setdefault(generation.id, reading.update)
        if not is_proven and callback.is_kept:
            doubted.append(proof.arrival)
        if needs_task or not is_proven:
            hints.append((proof.arrival, callback))
    if doubted:
        await callbacks.doubt(tx, doubted)
    judge.share_outcomes(batch, ends)
    # A repeated body is still a hint.
    hints += [(p.arrival, s) for p, s in pairs if s is not None and s.verdict == "duplicate"]
    final = {id_ for id_, generation in batch.generations.items() if generation.is_final}
    hints = [hint for hint in hints if hint[0].generation_id not in final]
    await batch.write()
    if hints:
        await callbacks.plan_confirmations(tx, hints)
        for arrival, _ in hints:
            tx.after_commit(context.tell, context.signals.poll, arrival.generation_id)
    return stored


def _claimed_ids(batch: ingest.Batch, proof: Proof) -> Sequence[str]:
    """Return the ids of a callback that names more than the known task of its generation."""
    reading, generation = proof.reading, batch.generations.get(proof.arrival.generation_id)
    if reading is None or generation is None or _names_only_own(reading.report, generation):
        return ()
    return (*reading.report.task_ids, *reading.report.names)


def _names_only_own(report: wire.Report, generation: Generation) -> bool:
    return not report.names and report.task_ids in ((), (generation.task_id,))


async def _is_believed(tx: Transaction, report: wire.Report, generation: Generation) -> bool:
    """Whether what a callback reports may be applied; else it is only a hint."""
    request = results.Request(generation.input)
    if any(file.url and request.names(file.url, file.url) for file in report.files):
        return False  # A file of the request. An answer to a poll is read without those.
    return not await _names_other_task(tx, report, generation)


async def _names_other_task(tx: Transaction, report: wire.Report, generation: Generation) -> bool:
    """Whether a callback names another task than its generation's.

    A signature covers the body and not the URL, so a body can be sent to another generation's URL.
    """
    if _names_only_own(report, generation):
        return False
    ids, own = report.task_ids, generation.task_id
    if ids and own is not None and own not in ids:
        return True
    others = report.other_ids(own)
    return bool(others) and await tasks.another_has(tx, others, generation.id, own)


def _apply(tx: Transaction, batch: ingest.Batch, generation: Generation, reading: Reading) -> bool:
    """Apply a callback's report; return whether one body proves what it reports."""
    report = reading.report
    if not report.recognised:
        word = ingest.excerpt(batch.context, report.word or "")
        tx.after_commit(ingest.log_unknown_word, word, generation.id)
    batch.ingest(generation.id, reading.update)
    return report.is_proof and not (report.state == "processing" and report.reports_end)


def _needs_task(report: wire.Report, generation: Generation) -> bool:
    """Whether only a confirmation would ask about the task that this callback names.

    No poll is planned while the answer to the submission is late or lost.
    """
    return report.state == "processing" and generation.next_poll_at is None
