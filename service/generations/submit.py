"""Submit generations upstream: stored first, sent once, sent again only where that is safe."""

import asyncio
import time
from typing import Any

import msgspec

from service.context import Context
from service.delivery import health, retry
from service.generations import ingest, schedule
from service.model.clock import SECOND
from service.model.generation import Generation
from service.model.ids import new_id
from service.model.subscriber import Subscriber
from service.store import generations, subscribers
from service.store.database import Transaction
from service.store.generations import Exchange
from service.telemetry import log, metrics
from service.upstream import wire
from service.upstream.callback_url import new_nonce
from service.upstream.client import Lost, NotTaken

_log = log.get()
UNKNOWN_MODEL_PATH = "/images/generations"
Answer = wire.Taken | wire.Refused | NotTaken | Lost


class NewGeneration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client asks for; api/generations.py has checked it."""

    model: str
    input: dict[str, Any]
    metadata: dict[str, str] = {}
    notify_url: str | None = None


async def accept(
    tx: Transaction, context: Context, tenant: str, generation_id: str, new: NewGeneration
) -> Generation:
    """Store a generation that this process will submit at once.

    It is stored as `sending`: should the process die now, nobody knows whether upstream took it,
    and nobody sends it again.
    """
    model = context.catalogue.get(new.model)
    calls_back = context.settings.public_url is not None and model is not None and model.callbacks
    notify = new.notify_url and await _notify_subscriber(tx, context, tenant, new.notify_url)
    generation = Generation(
        id=generation_id,
        tenant=tenant,
        model=new.model,
        status="queued",
        route="callback" if calls_back else "poll",
        input=new.input,
        metadata=new.metadata,
        notify_url=new.notify_url,
        notify_subscriber_id=notify.id if notify else None,
        created_at=tx.now,
        deadline_at=tx.now + context.settings.deadline_seconds * SECOND,
        nonce=new_nonce(context.random_bytes),
        submission="sending",
    )
    await generations.insert(tx, generation)
    tx.after_commit(context.signals.deadline.set)
    return generation


class Submitted(msgspec.Struct, frozen=True):
    """A generation after its submission, and upstream's refusal if it refused for good."""

    generation: Generation
    refusal: wire.Refused | None = None


class Submitter:
    """The submissions under way in this process."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.in_flight: dict[str, asyncio.Task[Submitted]] = {}

    def start(self, generation: Generation) -> asyncio.Task[Submitted]:
        """Submit a generation that is stored as `sending`, to the end, even if nobody waits."""
        task = asyncio.create_task(submit(self.context, generation), name=f"submit {generation.id}")
        self.in_flight[generation.id] = task
        task.add_done_callback(lambda _task: self.in_flight.pop(generation.id, None))
        return task

    async def run_due(self, now: int, limit: int = 20) -> tuple[int, int | None]:
        """Submit again what upstream certainly did not accept and is due by `now`.

        Returns how many, and when the next one is due.
        """
        database = self.context.database
        due_at = await database.read(generations.next_submit)
        if due_at is None or due_at > now:
            return 0, due_at
        due = await database.write(_claim_due, limit)
        await asyncio.gather(*(self.start(generation) for generation in due))
        return len(due), now

    async def settle(self) -> None:
        """Wait for every submission under way; giving up the wait cancels none."""
        if self.in_flight:
            await asyncio.wait(self.in_flight.values())


async def submit(context: Context, generation: Generation) -> Submitted:
    """Send a generation that is stored as `sending`, and record upstream's answer."""
    started_at, began = context.clock(), time.monotonic()
    path, body = _request(context, generation)
    answer = await context.client.create(path, body)
    exchange = Exchange(
        generation_id=generation.id,
        at=started_at,
        kind="submission",
        duration_ms=round((time.monotonic() - began) * 1_000),
        status_code=answer.status if isinstance(answer, wire.Refused) else None,
        outcome=_outcome(answer),
        detail=ingest.cleaned(context, _detail(answer)),
    )
    # Upstream will not say it again: a full queue is no reason to forget a task id.
    after = await context.database.write_always(_record, context, generation.id, answer, exchange)
    metrics.submissions.add(1, exchange.outcome)
    _log.info(
        "submission",
        generation_id=generation.id,
        model=generation.model,
        outcome=exchange.outcome,
        detail=exchange.detail,
        duration_ms=exchange.duration_ms,
    )
    if isinstance(answer, wire.Refused) and after.submission == "refused":
        return Submitted(after, answer)
    return Submitted(after)


async def _claim_due(tx: Transaction, limit: int) -> list[Generation]:
    """What is due becomes `sending`; what is past its deadline is left to `poll.expire`."""
    due = await generations.to_submit(tx, limit)
    claimed = [await generations.change(tx, g, submission="sending", submit_at=None) for g in due]
    return [generation for generation in claimed if generation.deadline_at > tx.now]


async def _notify_subscriber(
    tx: Transaction, context: Context, tenant: str, url: str
) -> Subscriber:
    """The tenant's subscriber for a `notify_url`: one for each URL, so that it has one lane.

    If it was disabled, naming the URL again is how it is enabled.
    """
    found = await subscribers.for_notify(tx, tenant, url)
    if found is not None and found.status == "disabled":
        tx.after_commit(context.inbox.reload, found.id)
        changes = {**health.PROBED, "status": "active", "updated_at": tx.now}
        return await subscribers.change(tx, found, **changes)
    if found is not None:
        return found
    new = Subscriber(
        id=new_id("sub", tx.now),
        tenant=tenant,
        is_notify=True,
        url=url,
        retry_schedule_seconds=list(retry.DEFAULT_RETRY_SECONDS),
        created_at=tx.now,
        updated_at=tx.now,
    )
    await subscribers.insert(tx, new)
    return new


def _request(context: Context, generation: Generation) -> tuple[str, dict[str, Any]]:
    model = context.catalogue.get(generation.model)
    body = dict(generation.input)
    name = model.sends if model else generation.model
    if name is not None:
        body["model"] = name
    if model is None or model.callbacks:
        url = context.callback_url(generation.id, generation.nonce, generation.deadline_at)
        if url is not None:
            body["callback_url"] = url
    return model.path if model else UNKNOWN_MODEL_PATH, body


async def _record(
    tx: Transaction, context: Context, generation_id: str, answer: Answer, exchange: Exchange
) -> Generation:
    """What upstream said to a submission, in one transaction."""
    await generations.record(tx, exchange)
    generation = await generations.get(tx, generation_id)
    assert generation is not None
    count = generation.submit_count + 1
    if isinstance(answer, wire.Taken):
        return await _record_taken(tx, context, generation, answer.report, count)
    if generation.is_terminal:  # A callback or the deadline was faster than the answer.
        return await generations.change(tx, generation, submission="lost", submit_count=count)
    if isinstance(answer, wire.Refused) and answer.kind == "never":
        error = ingest.cleaned(context, {"code": answer.code, "message": answer.message})
        news = ingest.News(generation_id=generation.id, status="failed", error=error)
        await ingest.ingest(tx, context, news)
        failed = await generations.get(tx, generation_id)
        assert failed is not None
        return await generations.change(tx, failed, submission="refused", submit_count=count)
    if isinstance(answer, NotTaken) or (
        isinstance(answer, wire.Refused) and answer.kind == "later"
    ):
        return await _record_put_off(tx, context, generation, answer, count)
    return await generations.change(tx, generation, submission="lost", submit_count=count)


async def _record_taken(
    tx: Transaction, context: Context, old: Generation, report: wire.Report, count: int
) -> Generation:
    await ingest.ingest(tx, context, ingest.news_of(context, old, report))
    now = await generations.get(tx, old.id)
    assert now is not None
    changes: dict[str, Any] = {"submission": "taken", "submit_count": count, "submit_at": None}
    changes["task_id"] = now.task_id or report.task_id
    changes["submitted_at"] = now.submitted_at or tx.now
    if not now.is_terminal and now.next_poll_at is None:
        changes["next_poll_at"] = poll_plan(context, now, 0, tx.now)
        tx.after_commit(context.signals.poll.set)
    return await generations.change(tx, now, **changes)


async def _record_put_off(
    tx: Transaction,
    context: Context,
    generation: Generation,
    answer: NotTaken | wire.Refused,
    count: int,
) -> Generation:
    asked = answer.retry_after if isinstance(answer, wire.Refused) else None
    wait_ms = retry.parse_retry_after(asked, tx.now)
    due_at = schedule.submission_retry(count, tx.now, wait_ms, context.jitter())
    tx.after_commit(context.signals.submit.set)
    return await generations.change(
        tx, generation, submission="waiting", submit_at=due_at, submit_count=count
    )


def poll_plan(context: Context, generation: Generation, polls: int, now: int) -> int:
    """When upstream is next asked, by the model's usual time and whether it calls back."""
    model = context.catalogue.get(generation.model)
    return schedule.next_poll(
        expects_callback=generation.route == "callback",
        polls=polls,
        submitted_at=generation.submitted_at or now,
        now=now,
        usual_seconds=model.usual_seconds if model else 2.0,
        p95_seconds=model.p95_seconds if model else 60.0,
        safety_seconds=context.settings.safety_poll_seconds,
        jitter=context.jitter(),
    )


def _outcome(answer: Answer) -> str:
    if isinstance(answer, wire.Refused):
        return {"never": "refused", "later": "put_off", "unknown": "lost"}[answer.kind]
    return {wire.Taken: "taken", NotTaken: "put_off", Lost: "lost"}[type(answer)]


def _detail(answer: Answer) -> str | None:
    if isinstance(answer, wire.Taken):
        return answer.report.task_id
    return answer.message if isinstance(answer, wire.Refused) else answer.reason
