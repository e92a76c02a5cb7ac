"""A delivery that cannot be worked holds no slot, no other delivery and no end of the process."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from service.delivery import dispatch, health, retry
from service.delivery.dispatch import Dispatcher
from service.delivery.lanes import Lane
from service.delivery.loading import TROUBLE_RETRY_MS
from service.model.errors import StorageError
from service.store import deliveries as stored
from service.store import stats
from tests.harness import SUBSCRIBER_URL, Harness, opened
from tests.journeys.gates import attach_worker, deliveries, queue_answers
from tests.logs import Console

ONE: dict[str, Any] = {"event_types": ["generation.submitted"]}
# Where an attempt may raise, and how often the webhook has left by then.
PLACES = {
    "attempt": (dispatch, "attempt", 0),
    "answer": (retry, "decide", 1),
    "learn": (Lane, "learn", 1),
    "record": (health, "record", 1),
}


def held(dispatcher: Dispatcher) -> list[int]:
    lanes = dispatcher.lanes.values()
    counts = [dispatcher.slots.in_use, len(dispatcher.slots._taken)]
    return [*counts, *(lane.in_flight + len(lane.held_ids) for lane in lanes)]


async def work(world: Harness, dispatcher: Dispatcher) -> None:
    await dispatcher.settle()
    await dispatcher.run_due(world.clock())
    await dispatcher.settle()


@pytest.mark.parametrize("is_stored", [True, False])
@pytest.mark.parametrize("error", [RuntimeError("no"), asyncio.CancelledError()], ids=repr)
@pytest.mark.parametrize("place", PLACES)
async def test_whatever_raises_in_an_attempt_its_slot_comes_back(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    place: str,
    error: BaseException,
    is_stored: bool,
) -> None:
    console = Console(capsys)
    console.configure("info")
    owner, name, sent_before = PLACES[place]

    def fail(*_args: object, **_options: object) -> None:
        raise error

    async def write(database: Any, unit: Any, *args: Any, **options: Any) -> Any:
        if unit is stored.delay and not is_stored:
            raise StorageError("disk I/O error")
        return await real_write(database, unit, *args, **options)

    async with opened(tmp_path) as world, attach_worker(world) as dispatcher:
        real_write = type(world.app.database).write
        await world.subscribe(**ONE, max_in_flight=1)
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, fail)
            patched.setattr(type(world.app.database), "write", write)
            await world.generate()
            await dispatcher.settle()
        assert held(dispatcher) == [0, 0, 0]
        assert len(world.subscribers.webhooks) == sent_before
        assert isinstance(error, asyncio.CancelledError) or "attempt.put_off" in console.text()
        world.clock.advance(TROUBLE_RETRY_MS / 1_000)
        await work(world, dispatcher)
        assert {found["status"] for found in await deliveries(world)} == {"delivered"}
        assert held(dispatcher) == [0, 0, 0]


async def test_a_delivery_that_is_put_off_does_not_leave_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world, attach_worker(world) as dispatcher:
        subscriber = await world.subscribe(**ONE)
        real_record = health.record

        async def fail_once(*args: Any, **options: Any) -> None:
            monkeypatch.setattr(health, "record", real_record)
            raise RuntimeError("it could never be stored")

        monkeypatch.setattr(health, "record", fail_once)
        queue_answers(world, 200, 500, 200)
        for _ in range(2):
            await world.generate()
            dispatcher.refill(subscriber["id"])
            await work(world, dispatcher)
        world.clock.advance(6)
        await work(world, dispatcher)
        ids = [sent.headers["webhook-id"] for sent in world.subscribers.webhooks_to(SUBSCRIBER_URL)]
        assert [ids.index(id_) for id_ in ids] == [0, 1, 1]


async def test_statistics_that_cannot_be_stored_end_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_args: object) -> None:
        raise ValueError("no such count")

    async with opened(tmp_path) as world:
        await world.subscribe(**ONE)
        monkeypatch.setattr(stats, "add", fail)
        async with attach_worker(world) as dispatcher:
            await world.generate()
            while not dispatcher._tally.counts:
                await deliveries(world)
            await dispatcher.settle()
            assert dispatcher.is_settled
        assert [found["status"] for found in await deliveries(world)] == ["delivered"]
