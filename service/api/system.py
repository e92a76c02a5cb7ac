"""Operations: readiness, metrics, workers, ticks."""

import asyncio
import heapq
from operator import itemgetter

from service.api.call import Answer, Call, answer, answer_list
from service.api.problem import unavailable
from service.model.errors import SearchTooLongError, StorageBusyError, StorageError
from service.store import stats
from service.store.migrations import Newer
from service.telemetry import log, metrics

_log = log.get()
TICK_SECONDS_DEFAULT, TICK_SECONDS_MAX = 10, 60
SUBSCRIBER_LABELS_MAX = 20
# Prometheus waits 10 s for a scrape. On PostgreSQL a search that hangs is an error before that.
AGES_SECONDS = 8.0
WORKERS_MAX = 1_000  # In a list.
NO_WORKER = "No worker runs here: due work needs `genhook work` or ticks."


async def readyz(call: Call) -> Answer:
    """GET /readyz: 200 if the database answers, its schema fits and the worker works; else 503.

    A process is also ready without a worker, which it says, and with a schema that a newer genhook
    has migrated: otherwise an upgrade would end all old processes at once.
    """
    checks = {"database": "ok", "schema": "ok", "worker": call.worker.problem or "ok"}
    try:
        checks["schema"] = await call.database.schema_problem() or "ok"
        problem = await call.database.write_problem()
        checks["database"] = f"The database cannot store: {problem}." if problem else "ok"
    except StorageError as error:
        checks["database"] = f"The database does not answer: {error}."
        checks["schema"] = "The schema is not known."
    ready = all(check == "ok" or isinstance(check, Newer) for check in checks.values())
    if call.worker.is_off:
        checks["worker"] = NO_WORKER
    # Trouble of upstream is shown only: no restart of this process would end it.
    troubled = ", ".join(sorted(call.worker.poller.sightings.paths.troubled))
    checks["upstream"] = f"Upstream declines all questions on {troubled}." if troubled else "ok"
    plain = {name: str(check) for name, check in checks.items()}
    content = {"status": "ready" if ready else "unready", "checks": plain}
    response = answer(content, 200 if ready else 503)
    if not ready:
        response.headers["retry-after"] = "1"
    return response


async def metrics_(call: Call) -> Answer:
    """GET /metrics, for Prometheus. Only the subscribers that wait longest have a label."""
    # A search of no tenant: any number of scrapes takes one reader.
    try:
        async with asyncio.timeout(AGES_SECONDS):
            ages = await call.database.search("", stats.oldest_undelivered)
    except (SearchTooLongError, StorageBusyError, TimeoutError) as error:
        # The other metrics are needed all the more.
        _log.warning("metrics.incomplete", error=str(error) or "too many others wait")
        for each in (metrics.owed_to, metrics.oldest, metrics.oldest_by_subscriber):
            each.values.clear()
        return _render(call)
    longest = heapq.nlargest(SUBSCRIBER_LABELS_MAX, ages.items(), key=itemgetter(1))
    metrics.owed_to.set(len(ages))
    metrics.oldest.set(max(ages.values(), default=0.0))
    metrics.oldest_by_subscriber.values = {(subscriber_id,): age for subscriber_id, age in longest}
    return _render(call)


def _render(call: Call) -> Answer:
    dispatcher = call.worker.dispatcher
    metrics.write_queue.set(call.database.queued)
    metrics.shards.set(len(call.worker.ownership.shards))
    metrics.in_flight.set(dispatcher.slots.in_use)
    metrics.backlog.set(sum(lane.waiting for lane in dispatcher.lanes.values()))
    return Answer(
        metrics.render(call.context.role), media_type="text/plain; version=0.0.4; charset=utf-8"
    )


async def list_workers(call: Call) -> Answer:
    """GET /v1/workers: the workers of all processes, and the shards that each holds."""
    ownership = call.worker.ownership
    held = await ownership.holders()
    return answer_list(
        [
            {"name": name, "shards": sorted(shards), "is_answering": name == ownership.name}
            for name, shards in sorted(held.items())[:WORKERS_MAX]
        ]
    )


async def tick(call: Call) -> Answer:
    """POST /v1/tick: do due work, for platforms without a running worker."""
    seconds = call.query_integer("seconds", TICK_SECONDS_DEFAULT, 1, TICK_SECONDS_MAX)
    if refusal := call.worker.ownership.refusal:
        raise unavailable(f"Nothing was stored: no tick can run here, since {refusal}.")
    return answer(await call.worker.tick(seconds))
