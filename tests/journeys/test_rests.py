"""Rests that receivers ask for: whose they are, what a restart makes of them, what ends them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from service.delivery import health
from service.delivery.dispatch import Dispatcher
from service.delivery.target import Answer
from service.model.errors import StorageError
from tests.faults import rows
from tests.harness import Harness, opened
from tests.journeys.gates import Gate, attach_worker, deliveries, queue_answers
from tests.journeys.test_sessions import another_process, begin

HERE, BESIDE = "http://127.0.0.1:7/here", "http://127.0.0.1:7/beside"
THERE, FURTHER = "http://127.0.0.2:7/there", "http://127.0.0.2:7/further"
ONE: dict[str, Any] = {"event_types": ["generation.submitted"]}
HOUR = 3_600
REST_SECONDS = {429: 60, 503: HOUR}  # A longer rest by 429 is that of one lane.


def throttled_answer(status: int) -> Answer:
    return Answer(status, (("retry-after", str(REST_SECONDS[status])),), b"")


def throttle(world: Harness, status: int, url: str) -> None:
    queue_answers(world, throttled_answer(status), url=url)


@asynccontextmanager
async def throttled(world: Harness) -> AsyncIterator[tuple[dict[str, Any], Dispatcher]]:
    """Attach the worker after the receiver at HERE has asked for a rest; yield its subscriber."""
    subscriber = await world.subscribe(HERE, **ONE)
    throttle(world, 429, HERE)
    async with attach_worker(world) as dispatcher:
        await world.generate()
        await dispatcher.settle()
        yield subscriber, dispatcher


async def patch(world: Harness, subscriber: dict[str, Any], **changes: Any) -> None:
    answer = await world.client.patch(f"/v1/subscribers/{subscriber['id']}", json=changes)
    assert answer.status_code == 200, answer.text


def counts(world: Harness, *urls: str) -> list[int]:
    return [len(world.subscribers.webhooks_to(url)) for url in urls]


@pytest.mark.parametrize(("status", "beside"), [(503, 4), (429, 0)])
async def test_a_restart_rests_exactly_what_rested_before(
    tmp_path: Path, status: int, beside: int
) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(HERE, **ONE)
        throttle(world, status, HERE)
        await world.generate()
        await world.run()
        await world.subscribe(BESIDE, **ONE)
        for _ in range(2):
            for _ in range(2):
                await world.generate()
                await world.run(1)
            await world.restart()
        assert counts(world, HERE, BESIDE) == [1, beside]
        await world.run(HOUR)
        assert counts(world, HERE, BESIDE) == [6, 4]


async def test_a_commit_of_another_process_rests_no_healthy_lane(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(HERE, **ONE)
        beside = await world.subscribe(BESIDE, **ONE)
        throttle(world, 503, HERE)
        await begin(world)
        await world.generate()
        worker = world.app.worker
        await worker.dispatcher.settle()
        async with another_process(world):
            await patch(world, beside, description="changed")
            await world.generate()
        await worker.session.watch(world.clock())
        await worker.dispatcher.run_due(world.clock())
        await worker.dispatcher.settle()
        assert counts(world, HERE, BESIDE) == [1, 2]
        await worker.end_session()


@pytest.mark.parametrize(("status", "beside"), [(503, 1), (429, 0)])
async def test_a_rest_stays_with_the_origin_that_asked_for_it(
    tmp_path: Path, status: int, beside: int
) -> None:
    async with opened(tmp_path) as world:
        moved = await world.subscribe(HERE, **ONE)
        throttle(world, status, HERE)
        await world.generate()
        await world.run()
        await world.subscribe(BESIDE, **ONE)
        await world.subscribe(THERE, **ONE)
        await patch(world, moved, url=FURTHER)
        for sent in (1, 2):
            await world.generate()
            await world.run(10 * sent)
            assert counts(world, HERE, BESIDE, THERE) == [1, beside * sent, sent]
            assert counts(world, FURTHER) == [sent]
            await world.restart()


async def test_an_answer_of_the_old_url_rests_nothing_at_the_new_one(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        moved = await world.subscribe(HERE, **ONE)
        gate = Gate(throttled_answer(429))
        queue_answers(world, gate, url=HERE)
        async with attach_worker(world) as dispatcher:
            await world.generate()
            await gate.wait_for(1)
            await patch(world, moved, url=THERE)
            gate.is_open.set()
            await dispatcher.settle()
            await world.subscribe(BESIDE, **ONE)
            await world.generate()
            await dispatcher.settle()
        assert counts(world, THERE, BESIDE) == [1, 0]
        await world.restart()
        await world.generate()
        await world.run()
        assert counts(world, THERE, BESIDE) == [2, 0]


@pytest.mark.parametrize(("status", "listed"), [(503, 1), (429, 0)])
async def test_what_throttles_a_notify_url_rests_those_of_its_origin(
    tmp_path: Path, status: int, listed: int
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        throttle(world, status, HERE)
        await world.generate(notify_url=HERE)
        await world.call_back()
        await world.run()
        await world.restart()
        await world.subscribe(THERE.replace(".2", ".1"), **ONE)
        await world.generate(notify_url=BESIDE)
        await world.call_back()
        await world.run()
        assert counts(world, HERE, BESIDE) == [1, 0]
        assert counts(world, THERE.replace(".2", ".1")) == [listed]
        await world.run(HOUR)
        assert counts(world, HERE, BESIDE) == [2, 1]


async def test_a_change_of_a_subscriber_does_not_end_the_rest_of_its_origin(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world, throttled(world) as (asked, dispatcher):
        beside = await world.subscribe(BESIDE, **ONE)
        for subscriber in (beside, asked):
            await patch(world, subscriber, description="changed")
        await world.generate()
        await dispatcher.settle()
        assert counts(world, HERE, BESIDE) == [1, 0]


async def test_a_person_who_enables_a_subscriber_ends_the_rest_of_its_origin(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        async with throttled(world) as (asked, dispatcher):
            await world.subscribe(BESIDE, **ONE)
            await world.generate()
            await dispatcher.settle()
            for status in ("disabled", "active"):
                await patch(world, asked, status=status)
            await dispatcher.run_due(world.clock())
            await dispatcher.settle()
        assert counts(world, HERE, BESIDE) == [2, 1]


async def asked_again(world: Harness) -> int:
    """Ask for one more attempt of the oldest delivery; return how many webhooks leave by it."""
    sent, [first, *_] = len(world.subscribers.webhooks), await deliveries(world)
    answer = await world.client.post(f"/v1/deliveries/{first['id']}/retry")
    assert answer.status_code == 202, answer.text
    worker = world.app.worker
    await worker.session.watch(world.clock())
    await worker.dispatcher.settle()
    return len(world.subscribers.webhooks) - sent


@pytest.mark.parametrize("held", [0, 3])
@pytest.mark.parametrize("status", [503, 429])
async def test_a_retry_that_a_person_asks_for_passes_the_rest(
    tmp_path: Path, status: int, held: int
) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(HERE, **ONE, max_in_flight=1)
        await begin(world)
        throttle(world, status, HERE)
        throttle(world, status, HERE)
        for _ in range(1 + held):
            await world.generate()
        dispatcher = world.app.worker.dispatcher
        await dispatcher.settle()
        assert counts(world, HERE) == [1]
        assert await asked_again(world) == 1  # It is throttled, so the others go on waiting.
        assert counts(world, HERE) == [2]
        assert await asked_again(world) == 1 + held  # A good answer ends the rest.
        assert await rows(world, "SELECT * FROM rests") == []
        assert {found["status"] for found in await deliveries(world)} == {"delivered"}
        await world.app.worker.end_session()


async def test_a_retry_that_a_person_asks_for_leaves_during_the_rest_once_the_rate_allows_it(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(HERE, **ONE, rate_per_second=0.1)
        await begin(world)
        throttle(world, 429, HERE)
        await world.generate()
        dispatcher = world.app.worker.dispatcher
        await dispatcher.settle()
        assert await asked_again(world) == 0
        for seconds, sent in ((9.999, 1), (0.001, 2)):
            world.clock.advance(seconds)
            await dispatcher.run_due(world.clock())
            await dispatcher.settle()
            assert counts(world, HERE) == [sent]
        await world.app.worker.end_session()


async def test_a_retry_asked_for_by_another_process_passes_the_rest_too(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(HERE, **ONE)
        await begin(world)
        throttle(world, 429, HERE)
        await world.generate()
        worker = world.app.worker
        await worker.dispatcher.settle()
        async with another_process(world):
            [found] = await deliveries(world)
            assert (await world.client.post(f"/v1/deliveries/{found['id']}/retry")).is_success
        await worker.session.watch(world.clock())
        await worker.dispatcher.run_due(world.clock())
        await worker.dispatcher.settle()
        assert counts(world, HERE) == [2]
        await worker.end_session()


async def test_a_paused_lane_holds_a_retry_that_a_person_asks_for(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(HERE, **ONE)
        await begin(world)
        throttle(world, 429, HERE)
        await world.generate()
        await world.app.worker.dispatcher.settle()
        await patch(world, subscriber, status="paused")
        assert await asked_again(world) == 0
        await patch(world, subscriber, status="active")
        await world.app.worker.dispatcher.run_due(world.clock())
        await world.app.worker.dispatcher.settle()
        assert counts(world, HERE) == [2]
        await world.app.worker.end_session()


async def test_rests_that_are_over_are_deleted(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(HERE, **ONE)
        throttle(world, 429, HERE)
        await world.generate()
        await world.run()
        assert len(await rows(world, "SELECT * FROM rests")) == 1
        for _ in range(3):
            await world.run(HOUR)
        assert await rows(world, "SELECT * FROM rests") == []


@pytest.mark.parametrize("how", ["retry", "enable"])
@pytest.mark.parametrize("status", [503, 429])
async def test_what_ends_the_rest_of_an_origin_ends_that_of_each_of_its_lanes(
    tmp_path: Path, status: int, how: str
) -> None:
    async with opened(tmp_path) as world:
        here, _ = [await world.subscribe(url, **ONE) for url in (HERE, BESIDE)]
        await begin(world)
        gate = Gate(throttled_answer(status))
        for url in (HERE, BESIDE):
            queue_answers(world, gate, url=url)
        await world.generate()
        await gate.wait_for(2)
        gate.is_open.set()
        dispatcher = world.app.worker.dispatcher
        await dispatcher.settle()
        await world.generate()
        await dispatcher.settle()
        assert counts(world, HERE, BESIDE) == [1, 1]  # Each was throttled itself.
        world.clock.advance(1)
        if how == "retry":
            await asked_again(world)
        else:
            for state in ("disabled", "active"):
                await patch(world, here, status=state)
        await dispatcher.run_due(world.clock())
        await dispatcher.settle()
        assert sum(counts(world, HERE, BESIDE)) == 2 + 2 + (how == "retry")
        await world.app.worker.end_session()


async def test_a_rest_that_was_asked_for_during_a_good_attempt_holds(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(HERE, **ONE)
        await begin(world)
        gate = Gate()
        throttle(world, 503, HERE)
        queue_answers(world, gate, url=HERE)
        await world.generate()
        worker = world.app.worker
        await worker.dispatcher.settle()
        [first] = await deliveries(world)
        await world.client.post(f"/v1/deliveries/{first['id']}/retry")
        await gate.wait_for(1)
        world.clock.advance(1)
        await world.subscribe(BESIDE, **ONE)
        throttle(world, 429, BESIDE)
        await world.generate()
        while len(await rows(world, "SELECT * FROM rests")) < 2:
            await worker.dispatcher.run_due(world.clock())
        gate.is_open.set()
        await worker.dispatcher.settle()
        await world.generate()
        await worker.dispatcher.settle()
        assert counts(world, HERE, BESIDE) == [2, 1]
        await worker.end_session()


async def test_a_rest_that_cannot_be_stored_yet_survives_a_change_of_the_subscriber(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world, attach_worker(world) as dispatcher:
        subscriber = await world.subscribe(HERE, **ONE)
        throttle(world, 429, HERE)

        async def fail(*_: object) -> None:
            raise StorageError("the disk is full")

        with monkeypatch.context() as patched:
            patched.setattr(health, "_record_with_health", fail)
            await world.generate()
            while not dispatcher.unrecorded:
                await dispatcher.context.database.schema_problem()
        await patch(world, subscriber, description="changed")
        await world.generate()
        await dispatcher.settle()
        assert counts(world, HERE) == [1]
        world.clock.advance(1)
        await dispatcher.run_due(world.clock())
        await dispatcher.settle()
        assert counts(world, HERE) == [1]
        assert len(await rows(world, "SELECT * FROM rests")) == 1


async def test_a_rest_that_can_never_be_stored_holds_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise ValueError("no such row")

    async with opened(tmp_path) as world, attach_worker(world) as dispatcher:
        subscriber = await world.subscribe(HERE, **ONE)
        throttle(world, 429, HERE)
        with monkeypatch.context() as patched:
            patched.setattr(health, "_record_with_health", fail)
            await world.generate()
            await dispatcher.settle()
        for seconds, sent in ((0, 1), (60, 4)):
            world.clock.advance(seconds)
            await patch(world, subscriber, description=f"changed after {seconds} s")
            await world.generate()
            await dispatcher.run_due(world.clock())
            await dispatcher.settle()
            assert counts(world, HERE) == [sent]


async def test_one_that_is_throttled_alone_at_its_origin_rests_alone(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        for url in (HERE, BESIDE):
            await world.subscribe(url, **ONE)
        async with attach_worker(world) as dispatcher:
            await world.generate()
            await dispatcher.settle()
            throttle(world, 429, HERE)
            for _ in range(3):
                await world.generate()
                await dispatcher.settle()
            assert counts(world, HERE, BESIDE) == [2, 4]


async def test_a_long_rest_is_that_of_the_one_that_was_told_of_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(HERE, **ONE)
        queue_answers(world, Answer(429, (("retry-after", str(HOUR)),), b""), url=HERE)
        async with attach_worker(world) as dispatcher:
            await world.generate()
            await dispatcher.settle()
            await world.subscribe(BESIDE, **ONE)
            await world.generate()
            await dispatcher.settle()
            assert counts(world, HERE, BESIDE) == [1, 1]
