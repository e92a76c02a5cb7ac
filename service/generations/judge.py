"""Compares upstream's answer with the request, and decides what only several answers prove."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
from msgspec.structs import replace

from service.context import Context
from service.generations import budget, ingest
from service.generations.ingest import Batch, Reply
from service.generations.sightings import NO_FILES_MS, Sightings
from service.model.clock import SECOND
from service.model.generation import Generation
from service.store import tasks
from service.store.database import Row, Transaction
from service.store.rows import json_text
from service.telemetry import log, metrics
from service.upstream import lenient, reading, wire
from service.upstream.ids import ids_as, task_ids_of

_log = log.get()

UNKNOWN_WORD_SPAN_MS = 60 * SECOND  # Files beside an unknown word stay the same for this long,
UNKNOWN_WORD_ANSWERS = 3  # in so many answers, before they count as the result.
NO_FILES_ANSWERS = 1 + len(NO_FILES_MS)
DECLINED_SPAN_MS = 60 * SECOND  # A poll that is declined alike for this long,
DECLINED_ANSWERS = 5  # so many times, tells of its task, or of trouble with the path.
TEXTS_MAX = 3  # Texts of JSON within each other that are searched for tasks of others.
CONFLICT_CODE = "task_id_conflict"
CONFLICT_MESSAGE = "Upstream answered with the task of another generation"


async def judge_submission(
    tx: Transaction, context: Context, generation: Generation, reply: Reply
) -> Reply:
    """Return the reply to a submission with what may be applied of it.

    Two generations of equal model and input may share a task: some upstreams remove duplicates.
    Any other id that upstream gave before is another generation's. Upstream's own answer outranks
    a callback and a learned name: a generation that has the task only by these loses it.
    """
    answer = reply.answer
    if not isinstance(answer, wire.Report):
        return reply
    await tasks.lock_tasks(tx, {*answer.task_ids, *answer.names})
    names = answer.names if answer.task_ids else ()
    if names and await tasks.another_has(tx, names, generation.id):
        # Beside the id of the new task stand other ids: a poll by the task's own id decides.
        answer = wire.Report("processing", answer.task_id, answer.task_ids)
        reply = replace(reply, answer=answer, update=ingest.update_of(context, answer))
    ids = answer.other_ids(None)
    if not ids:
        return reply
    text = json_text(generation.input)
    holders = await tasks.holders(tx, ids, generation.id, input_text=text)
    others = [holder for holder in holders if not _is_equal(holder, generation)]
    if not any(other["is_own"] for other in others):
        for other in others:
            await _give_up(tx, other, ids)
        return reply
    message = ingest.excerpt(context, f"{CONFLICT_MESSAGE}: {ids[0]}.")
    _log.warning("submission.task_id_conflict", generation_id=generation.id)
    update = ingest.Update(status="failed", error={"code": CONFLICT_CODE, "message": message})
    # It may have been billed, so it is not sent again.
    reply = await _with(context, reply, wire.NoReport("lost", message=message))
    return replace(reply, update=update)


def _is_equal(holder: Row, generation: Generation) -> bool:
    """Whether a holder of a task has the model and the input of a generation.

    A damaged input is equal to none.
    """
    input_ = holder["input"]  # None if its text is equal.
    try:
        is_same = input_ is None or msgspec.json.decode(input_) == generation.input
    except msgspec.DecodeError:
        return False
    return bool(is_same and holder["model"] == generation.model)


def task_id_after(generation: Generation, answer: wire.Report) -> str | None:
    """Return the task id of a generation whose submission upstream has answered.

    The answer outranks the id that a callback named, unless an outcome of that task was published.
    """
    if generation.is_final or generation.task_id in answer.task_ids:
        return generation.task_id or answer.task_id
    return answer.task_id or generation.task_id


async def _give_up(tx: Transaction, other: Row, task_ids: Sequence[str]) -> None:
    """Take a task from a generation to which only a callback or a learned name gave it."""
    if other["is_name"]:
        for id_ in task_ids:
            await tasks.revoke_name(tx, id_)
    else:
        await tasks.remove_task(tx, other["id"], other["task_id"])
    tx.after_commit(_log_release, other["id"])


def _log_release(generation_id: str) -> None:
    _log.warning("poll.task_released", generation_id=generation_id)


async def judge_recorded(tx: Transaction, context: Context, batch: Batch, reply: Reply) -> Reply:
    """Return the reply to a poll with what may still be applied when it is recorded.

    Since the poll was sent, upstream may have named another task for the generation, or another
    generation may have got the task that only a callback named.
    """
    id_, task_id = reply.exchange.generation_id, reply.task_id
    assert task_id is not None
    own_id = batch.generations[id_].task_id
    if own_id == task_id:
        return reply
    if own_id is None:
        is_taken = any(other.task_id == task_id for other in batch.generations.values())
        if not is_taken and not await tasks.another_has(tx, [task_id], id_):
            return reply
    message = ingest.excerpt(context, f"the question was about another task: {task_id}")
    return await _with(context, reply, wire.NoReport("other_task", message=message))


def share_outcomes(batch: Batch, updates: Mapping[str, ingest.Update | None]) -> None:
    """Give the outcome of a task to all generations that share it."""
    for id_, update in updates.items():
        source = batch.generations.get(id_)
        if source is None or source.task_id is None or update is None or not update.is_end:
            continue  # Without a task nobody knows whether it is shared.
        for other in [other for key, other in batch.generations.items() if key not in updates]:
            is_equal = (other.model, other.input) == (source.model, source.input)
            if is_equal and other.task_id == source.task_id:
                batch.ingest(other.id, update)


async def judge(
    context: Context, sightings: Sightings, generation: Generation, reply: Reply
) -> Reply:
    """Return the reply to a poll with what may be applied of it."""
    answer = reply.answer
    if isinstance(answer, wire.NoReport):
        return await _judge_decline(context, sightings, generation, reply, answer)
    now = reply.exchange.at
    if reply.task_id in answer.task_ids:
        path = budget.status_path(context.catalogue, generation)
        sightings.paths.note_answer(path, generation.id, now)
    others = answer.other_ids(reply.task_id)
    is_of_another = answer.task_ids and reply.task_id not in answer.task_ids
    if is_of_another and not await _learn_alias(context, sightings, generation, reply, others[0]):
        return await _other_task(context, reply, others[0])
    may_end = answer.state != "processing" or answer.possible is not None
    if others and may_end:
        own_end = await _own_end(context, generation, answer, reply.task_id)
        if own_end is None:
            return await _other_task(context, reply, others[0])
        answer = own_end
    if is_of_another:
        # The task keeps the id by which it can be polled.
        answer = replace(answer, task_id=reply.task_id)
    elif answer.possible is None:
        sightings.forget(generation.id)
    if answer.possible and _is_proved(sightings, generation, answer, now):
        answer = replace(answer.possible, task_id=answer.task_id)
    return reply if answer is reply.answer else await _with(context, reply, answer)


async def _own_end(
    context: Context, generation: Generation, answer: wire.Report, task_id: str | None
) -> wire.Report | None:
    """Return an answer without other generations' tasks; None: the end in it may be theirs.

    Beside the task asked for it may list others, such as the latest ones of the account.
    """
    read = partial(context.database.read, tasks.holders)
    holders = await read(answer.other_ids(task_id), generation.id, task_id)
    if not holders:
        return answer
    theirs = {holder["task_id"] for holder in holders}
    read_own = partial(_read_without, answer, theirs, task_id, generation.input)
    own = await reading.read(answer.size_bytes, read_own)
    if not isinstance(own, wire.Report) or _outcome_of(own) != _outcome_of(answer):
        return None
    return None if await read(own.other_ids(task_id), generation.id, task_id) else own


def _read_without(
    answer: wire.Report, theirs: Collection[str], task_id: str | None, request: Any
) -> wire.Answer:
    body = json_text(_without(answer.raw, theirs, {task_id, *answer.task_ids})).encode()
    return wire.read_poll(200, {}, body, task_id, request)


def _outcome_of(answer: wire.Report) -> tuple[str, bool, bool]:
    files = (answer.possible or answer).files
    return answer.state, answer.possible is not None, bool(files)


def _without(
    value: Any, theirs: Collection[str], own: Collection[str | None], texts: int = TEXTS_MAX
) -> Any:
    """Return decoded JSON without the objects that name a task of `theirs` and none of `own`.

    What stands as JSON in more texts within each other than TEXTS_MAX becomes null.
    """
    if isinstance(value, str):
        opened = lenient.opened(value)  # A text may hold objects as JSON.
        if opened is value:
            return value
        return json_text(_without(opened, theirs, own, texts - 1)) if texts else None
    if isinstance(value, list):
        items = [item for item in value if not _is_of(item, theirs, own)]
        return [_without(item, theirs, own, texts) for item in items]
    if not isinstance(value, dict):
        return value
    pairs = [(k, v) for k, v in value.items() if not _is_of(v, theirs, own)]
    return {k: _without(v, theirs, own, texts) for k, v in pairs}


def _is_of(value: Any, theirs: Collection[str], own: Collection[str | None]) -> bool:
    if not isinstance(value, dict):
        return False
    ids = {*task_ids_of(value), *ids_as(value, "task", "job", "other")}
    return not ids.isdisjoint(theirs) and ids.isdisjoint(own)


async def _other_task(context: Context, reply: Reply, other_id: str) -> Reply:
    message = ingest.excerpt(context, f"the answer names another task: {other_id}")
    return await _with(context, reply, wire.NoReport("other_task", message=message))


async def _judge_decline(
    context: Context,
    sightings: Sightings,
    generation: Generation,
    reply: Reply,
    answer: wire.NoReport,
) -> Reply:
    """Return a failure if upstream refused the same poll again and again; else the reply as it is.

    The refusals are about the task only if upstream answered about another task on the same status
    path meanwhile; else that path is in trouble.
    """
    now, paths = reply.exchange.at, sightings.paths
    if answer.code is None:
        return reply
    content = json_text(["declined", answer.code, answer.message])
    sighting = sightings.note(generation.id, content, now)
    if sighting.count < DECLINED_ANSWERS or now - sighting.first_at < DECLINED_SPAN_MS:
        return reply
    path = budget.status_path(context.catalogue, generation)
    if paths.answered_another(path, generation.id, sighting.first_at):
        code, message = answer.code, answer.message
        failure = wire.Report("failed", reply.task_id, error_code=code, error_message=message)
        return await _with(context, reply, failure)
    if path not in paths.troubled:
        paths.troubled.add(path)
        metrics.troubled_routes.add(1)
        message = ingest.excerpt(context, answer.message or "")
        _log.warning("upstream.route_declines", route=path, code=answer.code, message=message)
    return reply


async def _with(context: Context, reply: Reply, answer: wire.Answer) -> Reply:
    """Return the reply as if upstream had given this answer."""
    if isinstance(answer, wire.Report):
        exchange = replace(reply.exchange, outcome=answer.state)
    else:
        exchange = replace(reply.exchange, outcome=answer.outcome, detail=answer.message)
    update = await ingest.make_update(context, answer)
    return replace(reply, answer=answer, update=update, exchange=exchange)


async def _learn_alias(
    context: Context, sightings: Sightings, generation: Generation, reply: Reply, other_id: str
) -> bool:
    """Whether an id is another name of this generation's task; learn it when it comes often.

    Resellers show the id of the service behind them. Names are stored. A name that a generation
    with another task meets is revoked for good.
    """
    if context.redactor.json(other_id) != other_id:
        return False  # Upstream repeats a secret of ours, such as the callback URL.
    database, id_, own = context.database, generation.id, reply.task_id
    assert own is not None
    is_name = await database.read(tasks.is_name, other_id, id_, own)
    if await database.read(tasks.another_has, [other_id], id_, own):
        if is_name is False:
            await database.write(tasks.revoke_name, other_id, tenant=generation.tenant)
        return False
    if is_name is None and sightings.note_alias(id_, own, other_id, reply.exchange.at):
        await database.write(tasks.learn_name, other_id, id_, tenant=generation.tenant)
        is_name = await database.read(tasks.is_name, other_id, id_, own)
    return bool(is_name)


def awaits_files(answer: wire.Answer) -> bool:
    """Whether an answer calls its task done but names no files: they may come a moment later."""
    if not isinstance(answer, wire.Report) or answer.possible is None:
        return False
    return answer.word is not None and answer.recognised


def _is_proved(sightings: Sightings, generation: Generation, answer: wire.Report, now: int) -> bool:
    """Whether the answers so far prove the possible outcome of this one."""
    assert answer.possible is not None
    files = answer.possible.files
    is_done = awaits_files(answer)
    # The URLs of a task that is done do not count: signed URLs differ in each answer.
    content = json_text([answer.word, None if is_done else [file.url for file in files]])
    sighting = sightings.note(generation.id, content, now)
    span_ms = now - sighting.first_at
    if is_done:
        # It is done and paid for. Some services attach the files a moment later.
        is_late = now >= generation.deadline_at
        return is_late or (sighting.count >= NO_FILES_ANSWERS and span_ms >= NO_FILES_MS[-1])
    return sighting.count >= UNKNOWN_WORD_ANSWERS and span_ms >= UNKNOWN_WORD_SPAN_MS
