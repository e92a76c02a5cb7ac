"""Generations: ask for one, look at it, wait for it, read its story, have upstream asked."""

import asyncio

import msgspec

from service.api.call import Answer, Call, bad_query, listed
from service.api.checks import (
    METADATA_MAX,
    METADATA_NAME,
    METADATA_RULE,
    METADATA_VALUE_MAX,
    MODEL_ID,
    MODEL_ID_RULE,
    check_url,
    metadata_errors,
)
from service.api.timeline import timeline
from service.generations import submit
from service.generations.submit import NewGeneration
from service.model.clock import SECOND
from service.model.errors import FieldError, invalid, not_found
from service.model.generation import OPEN, TERMINAL, Generation
from service.store import generations, pages
from service.store.sqlite.database import Transaction
from service.upstream import catalogue

WAIT_SECONDS_MAX = 60
_RECHECK_SECONDS = 1.0  # Another process may bring the outcome.


async def create(call: Call) -> Answer:
    """POST /v1/generations: stored, submitted upstream, answered 202."""
    new = call.decode(NewGeneration)
    if errors := _errors(call, new):
        raise invalid("The request has wrong fields.", *errors)
    context = call.context
    if new.notify_url is not None:
        check_url(context, new.notify_url, "/notify_url")
    generation = await context.database.write(_get_or_accept, call, new)
    if generation.submission == "sending" and generation.id not in context.wakes.submitting:
        generation = await _submit(call, generation)
    return Answer(status=202, content=generation.view())


async def _submit(call: Call, generation: Generation) -> Generation:
    """Submit to the end even if the client hangs up: the answer must be recorded."""
    wakes = call.context.wakes
    task = asyncio.create_task(submit.submit(call.context, generation))
    wakes.submitting[generation.id] = task
    task.add_done_callback(lambda _task: wakes.submitting.pop(generation.id, None))
    return await asyncio.shield(task)


async def _get_or_accept(tx: Transaction, call: Call, new: NewGeneration) -> Generation:
    """The generation; one that a request before a crash made is not sent a second time."""
    found = await generations.get(tx, call.resource_id)
    if found is not None:
        return msgspec.structs.replace(found, submission="lost")
    return await submit.accept(tx, call.context, call.tenant, call.resource_id, new)


def _errors(call: Call, new: NewGeneration) -> list[FieldError]:
    errors = [*_text_errors(new), *metadata_errors(new.metadata, "/metadata")]
    model = call.context.catalogue.get(new.model)
    if model is not None:
        found = catalogue.problems(model, new.input)
        errors += [FieldError(f"/input{pointer}", message) for pointer, message in found]
    return errors


def _text_errors(new: NewGeneration) -> list[FieldError]:
    if not MODEL_ID.fullmatch(new.model):
        return [FieldError("/model", MODEL_ID_RULE)]
    forbidden = [name for name in ("model", "callback_url") if name in new.input]
    return [FieldError(f"/input/{name}", "is set by genhook") for name in forbidden]


async def get_one(call: Call) -> Generation:
    """The generation that the path names, if it is the tenant's; else Problem 404."""
    found = await call.context.database.read(generations.get, call.path["id"])
    if found is None or found.tenant != call.tenant:
        raise not_found("generation")
    return found


async def get(call: Call) -> Answer:
    """GET /v1/generations/{id}, held with `?wait` until it is terminal."""
    wait = call.query_integer("wait", 0, 0, WAIT_SECONDS_MAX)
    generation = await get_one(call)
    if wait and not generation.is_terminal:
        generation = await _wait(call, generation, wait)
    return Answer(content=generation.view())


async def _wait(call: Call, generation: Generation, seconds: float) -> Generation:
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + seconds
    waiters = call.context.wakes.ended
    ended = asyncio.Event()
    waiters.setdefault(generation.id, set()).add(ended)
    try:
        while not (generation := await get_one(call)).is_terminal and loop.time() < ends_at:
            try:
                remaining = min(_RECHECK_SECONDS, ends_at - loop.time())
                await asyncio.wait_for(ended.wait(), max(remaining, 0))
            except TimeoutError:
                continue
    finally:
        waiting = waiters.get(generation.id, set())
        waiting.discard(ended)
        if not waiting:
            waiters.pop(generation.id, None)
    return generation


async def list_(call: Call) -> Answer:
    """GET /v1/generations."""
    only = pages.Generations(
        status=call.query_choice("status", (*OPEN, *TERMINAL)),
        model=call.query_model(),
        created_after=call.query_time("created_after"),
        created_before=call.query_time("created_before"),
        metadata=_wanted_metadata(call),
    )
    rows, more = await call.context.database.read(
        pages.generations, call.page("gen"), call.tenant, only
    )
    return listed([generations.generation(row).view() for row in rows], more=more)


def _wanted_metadata(call: Call) -> dict[str, str]:
    prefix = "metadata."
    wanted = {n.removeprefix(prefix): v for n, v in call.query.items() if n.startswith(prefix)}
    if len(wanted) > METADATA_MAX:
        raise bad_query("metadata", f"may be asked for {METADATA_MAX} names at most")
    for name, value in wanted.items():
        if not METADATA_NAME.fullmatch(name) or len(value) > METADATA_VALUE_MAX:
            raise bad_query("metadata", METADATA_RULE)
    return wanted


async def story(call: Call) -> Answer:
    """GET /v1/generations/{id}/timeline."""
    generation = await get_one(call)
    entries = await call.context.database.read(timeline, generation)
    return Answer(content={"data": entries, "next": None})


async def refresh(call: Call) -> Answer:
    """POST /v1/generations/{id}/refresh: ask upstream now, once a second at most."""
    generation = await get_one(call)
    if generation.status in ("succeeded", "failed"):
        return Answer(content=generation.view())
    now = call.context.clock()
    poller = call.poller
    fresh = generation.last_poll_at is None or now - generation.last_poll_at >= SECOND
    if generation.id in poller.in_flight or fresh:
        await asyncio.shield(poller.start(generation))
        generation = await get_one(call)
    return Answer(content=generation.view())
