"""Generations: ask for one, look at it, wait for it, read its story, have upstream asked."""

import asyncio

from service.api.call import Answer, Call, bad_query, listed, problem_answer
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
from service.api.problem import FieldError, Problem, invalid, not_found
from service.api.timeline import timeline
from service.generations import submit
from service.generations.submit import NewGeneration
from service.model.clock import SECOND
from service.model.generation import OPEN, TERMINAL, Generation
from service.store import generations, pages
from service.store.database import Transaction
from service.upstream import catalogue, wire

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
    generation, is_new = await context.database.write(_get_or_accept, call, new)
    if is_new:  # To the end even if the client hangs up: the answer must be recorded.
        submitted = await asyncio.shield(call.parts.submitter.start(generation))
        generation = submitted.generation
        if submitted.refusal is not None:
            # Not raised: the generation exists, so Idempotency-Key repeats this answer, too.
            return problem_answer(_refused(generation, submitted.refusal), call.request_id)
    return Answer(status=202, content=generation.view())


async def _get_or_accept(
    tx: Transaction, call: Call, new: NewGeneration
) -> tuple[Generation, bool]:
    """Return the generation, and whether it is new.

    A request that is repeated after a crash finds the first one's generation, which is not sent a
    second time.
    """
    generation = await generations.get(tx, call.resource_id)
    if generation is not None:
        return generation, False
    return await submit.accept(tx, call.context, call.tenant, call.resource_id, new), True


_REFUSALS = {
    401: (502, "upstream_unauthorized"),
    403: (502, "upstream_unauthorized"),
    402: (402, "upstream_payment_required"),
}


def _refused(generation: Generation, refusal: wire.Refused) -> Problem:
    """Upstream's refusal as a problem: a wrong upstream key is our fault, no credits stays 402."""
    status, code = _REFUSALS.get(refusal.status, (422, "upstream_refused"))
    assert generation.error is not None
    detail = (
        f"Upstream refused {generation.id} with {refusal.status}: {generation.error['message']}"
    )
    return Problem(status, code, detail)


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
    waiters = call.context.waiters
    ended = waiters.add(generation.id)
    try:
        while not (generation := await get_one(call)).is_terminal and loop.time() < ends_at:
            try:
                remaining = min(_RECHECK_SECONDS, ends_at - loop.time())
                await asyncio.wait_for(ended.wait(), max(remaining, 0))
            except TimeoutError:
                continue
    finally:
        waiters.remove(generation.id, ended)
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
    poller = call.parts.poller
    fresh = generation.last_poll_at is None or now - generation.last_poll_at >= SECOND
    if generation.id in poller.in_flight or fresh:
        await asyncio.shield(poller.start(generation))
        generation = await get_one(call)
    return Answer(content=generation.view())
