"""Compares upstream's answer with the question, and decides what one answer does not prove."""

from msgspec.structs import replace

from service.context import Context
from service.generations import ingest
from service.generations.ingest import Reply
from service.generations.sightings import (
    FILES_ANSWERS,
    FILES_SPAN_MS,
    LINK_ANSWERS,
    LINK_SPAN_MS,
    Sightings,
)
from service.model.generation import Generation
from service.store import generations
from service.store.rows import json_text
from service.upstream import wire


async def judge(
    context: Context, sightings: Sightings, generation: Generation, reply: Reply
) -> Reply:
    """Return the reply with what may be applied of it."""
    answer = reply.answer
    if not isinstance(answer, wire.Report):
        return reply
    now = reply.exchange.at
    if answer.task_ids and reply.task_id not in answer.task_ids:
        other_id = answer.task_ids[0]
        database = context.database
        is_known = await database.read(generations.another_has_task, other_id, generation.id)
        if is_known or not sightings.is_alias(generation.id, other_id, now):
            return _as_trouble(context, reply, other_id)
        # The task keeps the id by which it can be asked about.
        answer = replace(answer, task_id=reply.task_id)
    elif answer.possible is None:
        sightings.forget(generation.id)
    if answer.possible and _is_proved(sightings, generation, answer, now):
        answer = replace(answer.possible, task_id=answer.task_id)
    if answer is reply.answer:
        return reply
    exchange = replace(reply.exchange, outcome=answer.state)
    update = ingest.update_of(context, answer)
    return replace(reply, answer=answer, update=update, exchange=exchange)


def _as_trouble(context: Context, reply: Reply, other_id: str) -> Reply:
    message = context.redactor.json(f"the answer names another task: {other_id}")
    answer = wire.NoReport("other_task", message=message)
    exchange = replace(reply.exchange, outcome=answer.outcome, detail=message)
    return replace(reply, answer=answer, update=None, exchange=exchange)


def _is_proved(sightings: Sightings, generation: Generation, answer: wire.Report, now: int) -> bool:
    """Whether the answers so far prove the possible outcome of this one."""
    assert answer.possible is not None
    files = answer.possible.files
    content = json_text([answer.word, [file.url for file in files]])
    sighting = sightings.note(generation.id, content, now)
    span_ms = now - sighting.first_at
    if answer.word is not None and answer.recognised:
        # It is done and paid for. Some services attach the files a moment later.
        is_late = now >= generation.deadline_at
        return is_late or (sighting.count >= LINK_ANSWERS and span_ms >= LINK_SPAN_MS)
    asked_for = json_text(generation.input)
    if any(file.url and file.url in asked_for for file in files):
        return False
    return sighting.count >= FILES_ANSWERS and span_ms >= FILES_SPAN_MS
