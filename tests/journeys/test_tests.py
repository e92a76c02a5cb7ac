"""Tests of a subscriber keep to its limits, together with its deliveries."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from service.delivery.attempt import read_recipient
from tests.harness import Harness, opened
from tests.journeys.gates import Gate, attach_worker, queue_answers
from tests.journeys.test_rests import throttled_answer
from tests.journeys.test_sessions import another_process, begin

ONE: dict[str, Any] = {"event_types": ["generation.submitted"]}


async def status_of_test(world: Harness, subscriber: dict[str, Any]) -> int:
    answer = await world.client.post(f"/v1/subscribers/{subscriber['id']}/test")
    return answer.status_code


async def test_a_test_is_one_of_the_attempts_that_a_subscriber_allows(tmp_path: Path) -> None:
    async with opened(tmp_path) as world, attach_worker(world) as dispatcher:
        subscriber = await world.subscribe(**ONE, max_in_flight=1)
        delivery, ping = Gate(), Gate()
        queue_answers(world, delivery)
        await world.generate()
        await delivery.wait_for(1)
        assert await status_of_test(world, subscriber) == 429
        queue_answers(world, ping)
        delivery.is_open.set()
        await dispatcher.settle()
        testing = asyncio.create_task(status_of_test(world, subscriber))
        await ping.wait_for(1)
        await world.generate()
        await dispatcher.settle()
        assert len(world.subscribers.webhooks) == 2
        ping.is_open.set()
        assert await testing == 200
        await dispatcher.settle()
        assert len(world.subscribers.webhooks) == 3  # It waited for the test only.


async def test_a_refused_test_says_when_the_rate_allows_one(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE, rate_per_second=0.1)
        async with attach_worker(world):
            assert await status_of_test(world, subscriber) == 200
            world.clock.advance(2.5)
            refused = await world.client.post(f"/v1/subscribers/{subscriber['id']}/test")
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "8")


async def test_a_test_by_another_process_takes_a_place_in_the_rate(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE, rate_per_second=0.1)
        await begin(world)
        await world.generate()
        worker = world.app.worker
        await worker.dispatcher.settle()
        world.clock.advance(10)
        async with another_process(world):
            assert await status_of_test(world, subscriber) == 200
            await world.generate()
        for seconds, sent in ((0, 2), (9.999, 2), (0.001, 3)):
            world.clock.advance(seconds)
            await worker.session.watch(world.clock())
            await worker.dispatcher.run_due(world.clock())
            await worker.dispatcher.settle()
            assert len(world.subscribers.webhooks) == sent
        await worker.end_session()


async def test_a_test_takes_a_place_in_the_rate(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE, rate_per_second=0.1)
        async with attach_worker(world) as dispatcher:
            assert await status_of_test(world, subscriber) == 200
            assert await status_of_test(world, subscriber) == 429
            await world.generate()
            await dispatcher.settle()
            assert len(world.subscribers.webhooks) == 1
            world.clock.advance(10)
            await dispatcher.run_due(world.clock())
            await dispatcher.settle()
            assert len(world.subscribers.webhooks) == 2
            assert await status_of_test(world, subscriber) == 429
        world.clock.advance(9)
        assert await status_of_test(world, subscriber) == 429  # No matter who works.
        world.clock.advance(1)
        assert await status_of_test(world, subscriber) == 200


async def test_a_test_takes_a_place_in_the_rate_before_it_has_ended(tmp_path: Path) -> None:
    async with opened(tmp_path) as world, attach_worker(world) as dispatcher:
        subscriber = await world.subscribe(**ONE, rate_per_second=0.1)
        await world.generate()
        await dispatcher.settle()
        world.clock.advance(10)
        ping = Gate()
        queue_answers(world, ping)
        testing = asyncio.create_task(status_of_test(world, subscriber))
        await ping.wait_for(1)
        await world.generate()
        await dispatcher.settle()
        assert len(world.subscribers.webhooks) == 2  # Its attempt is not stored yet.
        ping.is_open.set()
        assert await testing == 200
        for seconds, sent in ((0, 2), (9.999, 2), (0.001, 3)):
            world.clock.advance(seconds)
            await dispatcher.run_due(world.clock())
            await dispatcher.settle()
            assert len(world.subscribers.webhooks) == sent


async def test_a_test_that_was_read_before_a_rest_ended_brings_the_rest_back_to_no_lane(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world, attach_worker(world) as dispatcher:
        subscriber = await world.subscribe(**ONE)
        queue_answers(world, throttled_answer(503))
        await world.generate()
        await dispatcher.settle()
        path, has_read = f"/v1/subscribers/{subscriber['id']}", asyncio.Event()
        enabled, read = asyncio.Event(), type(dispatcher.context.database).read

        async def read_early(database: Any, unit: Any, *values: Any) -> Any:
            result = await read(database, unit, *values)
            if unit is read_recipient and not has_read.is_set():
                has_read.set()
                await enabled.wait()
            return result

        monkeypatch.setattr(type(dispatcher.context.database), "read", read_early)
        testing = asyncio.create_task(status_of_test(world, subscriber))
        await has_read.wait()
        for status in ("disabled", "active"):
            await world.client.patch(path, json={"status": status})
        await dispatcher.run_due(world.clock())
        await dispatcher.settle()
        enabled.set()
        assert await testing == 429
        await world.generate()
        await dispatcher.settle()
        assert len(world.subscribers.webhooks) == 2


async def test_a_test_leaves_no_lane_where_another_process_works_on_the_subscriber(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world, attach_worker(world) as dispatcher:
        subscriber = await world.subscribe(**ONE)
        await dispatcher.settle()
        dispatcher.lanes.clear()
        monkeypatch.setattr(dispatcher.context.database, "holds", lambda _id: False)
        assert await status_of_test(world, subscriber) == 200
        assert dispatcher.lanes == {}


async def test_a_test_of_a_subscriber_that_is_deleted_meanwhile_finds_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def find_none(*_: object) -> None:
        """Read as after the deletion."""

    async with opened(tmp_path) as world:
        subscriber = await world.subscribe()
        monkeypatch.setattr("service.delivery.ping.read_recipient", find_none)
        assert await status_of_test(world, subscriber) == 404


async def test_tests_leave_nothing_in_a_lane(tmp_path: Path) -> None:
    async with opened(tmp_path) as world, attach_worker(world) as dispatcher:
        subscriber = await world.subscribe()
        gates = Gate(), Gate()
        queue_answers(world, *gates)
        testing = [asyncio.create_task(status_of_test(world, subscriber)) for _ in gates]
        for gate in gates:
            await gate.wait_for(1)
        for gate in gates:
            gate.is_open.set()
        assert [await each for each in testing] == [200, 200]
        await dispatcher.settle()
        lane = dispatcher.lanes[subscriber["id"]]
        assert (lane.held_ids, lane.read_again, lane.in_flight) == (set(), set(), 0)
