"""Receivers that answer do not wait for others of their tenant that hang."""

from pathlib import Path
from typing import Any

import pytest

from service.delivery.dispatch import Dispatcher
from service.delivery.receivers import PROVEN
from tests.harness import SUBSCRIBER_URL, Harness, opened
from tests.journeys.gates import Gate, attach_worker, queue_answers
from tests.journeys.test_many_lanes import url_of
from tests.journeys.test_sessions import wait_until

ONE: dict[str, Any] = {"event_types": ["generation.submitted"]}
SLOTS, HANGING = 20, 30


async def wait_for_slots(world: Harness, dispatcher: Dispatcher, hanging: Gate) -> None:
    """Wait until receivers that hang have all the slots that they get."""
    lanes, slots = dispatcher.lanes, dispatcher.slots
    await hanging.wait_for(SLOTS // 2)
    await wait_until(
        world,
        lambda: (
            hanging.waiting == slots.in_use and not any(lane.is_loading for lane in lanes.values())
        ),
    )


async def test_a_subscriber_that_answers_does_not_wait_for_new_ones_of_its_tenant_that_hang(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, max_in_flight=SLOTS) as world:
        hanging = Gate()
        await world.subscribe(**ONE)
        async with attach_worker(world) as dispatcher:
            await world.generate()
            await dispatcher.settle()
            for number in range(HANGING):
                queue_answers(world, hanging, hanging, url=url_of(number))
                await world.subscribe(url_of(number), **ONE)
            await world.generate()
            await wait_for_slots(world, dispatcher, hanging)
            await world.generate()
            await wait_until(world, lambda: len(world.subscribers.webhooks_to()) == 3)
            assert hanging.waiting == hanging.requests < HANGING
            hanging.is_open.set()


async def test_a_notify_url_that_answers_does_not_wait_for_others_of_its_tenant_that_hang(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, max_in_flight=SLOTS, callback_trust="body") as world:
        hanging = Gate()

        async def notify(url: str) -> None:
            await world.generate(notify_url=url)
            assert (await world.call_back()).status_code == 200

        async with attach_worker(world) as dispatcher:
            await notify(f"{SUBSCRIBER_URL}?job=1")
            await dispatcher.settle()
            for number in range(HANGING):
                queue_answers(world, hanging, url=url_of(number))
                await notify(url_of(number))
            await wait_for_slots(world, dispatcher, hanging)
            await notify(f"{SUBSCRIBER_URL}?job=2")  # Another lane of the same receiver.
            await wait_until(world, lambda: len(world.subscribers.webhooks) > hanging.requests + 1)
            hanging.is_open.set()


async def test_a_subscriber_that_answers_waits_one_timeout_for_a_few_origins_that_hang_by_now(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, max_in_flight=SLOTS) as world:
        hanging = Gate(500)
        await world.subscribe(**ONE)
        async with attach_worker(world) as dispatcher:
            for number in range(2 * HANGING):
                url = f"{url_of(number % 2 + 1)}/{number}"
                queue_answers(world, 200, hanging, hanging, url=url)
                await world.subscribe(url, **ONE)
            await world.generate()
            await dispatcher.settle()
            world.clock.advance(1)
            await world.generate()
            await wait_for_slots(world, dispatcher, hanging)
            first = hanging.requests
            hanging.time_out()
            await hanging.wait_for(first + SLOTS // 2)
            await wait_for_slots(world, dispatcher, hanging)
            answered = len(world.subscribers.webhooks_to())
            await world.generate()
            await wait_until(world, lambda: len(world.subscribers.webhooks_to()) > answered)
            assert hanging.waiting == hanging.requests - first < 2 * HANGING - first
            hanging.is_open.set()


@pytest.mark.parametrize(("status", "is_trouble"), [(500, True), (404, False)])
async def test_what_an_origin_fails_is_doubt_of_its_other_subscribers_until_they_answer(
    tmp_path: Path, *, status: int, is_trouble: bool
) -> None:
    async with opened(tmp_path) as world:
        other_url = f"{SUBSCRIBER_URL}/other"
        queue_answers(world, 200, status, url=other_url)
        subscriber = await world.subscribe(**ONE)
        await world.subscribe(other_url, **ONE)
        async with attach_worker(world) as dispatcher:
            await world.generate()
            await dispatcher.settle()
            receiver = dispatcher.lanes[subscriber["id"]].receiver
            world.clock.advance(1)
            gate = Gate()
            queue_answers(world, gate)
            await world.generate()
            await gate.wait_for(1)
            await wait_until(world, lambda: len(world.subscribers.webhooks_to(other_url)) == 2)
            await wait_until(world, lambda: dispatcher.slots.in_use == 1)
            assert receiver.is_doubted() is is_trouble
            gate.is_open.set()
            await dispatcher.settle()
            assert not receiver.is_doubted()


async def test_a_subscriber_that_failed_is_as_a_new_one_at_another_url(tmp_path: Path) -> None:
    async with opened(tmp_path, max_in_flight=SLOTS) as world:
        hanging = Gate(500)
        queue_answers(world, *[500] * 3)
        subscriber = await world.subscribe(**ONE)
        async with attach_worker(world) as dispatcher:
            await world.generate()
            await dispatcher.settle()
            for number in range(HANGING):
                queue_answers(world, 500, hanging, url=url_of(number))
                await world.subscribe(url_of(number), **ONE)
            await world.generate()
            await dispatcher.settle()
            await world.generate()
            await wait_for_slots(world, dispatcher, hanging)
            path, other_url = f"/v1/subscribers/{subscriber['id']}", f"{SUBSCRIBER_URL}/new"
            assert (await world.client.patch(path, json={"url": other_url})).status_code == 200
            await world.generate()
            await wait_until(world, lambda: world.subscribers.webhooks_to(other_url))
            hanging.is_open.set()


async def test_what_the_old_url_answers_late_says_nothing_about_the_new_one(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        gate = Gate(500)
        queue_answers(world, gate)
        subscriber = await world.subscribe(**ONE)
        async with attach_worker(world) as dispatcher:
            await world.generate()
            await gate.wait_for(1)
            path, other_url = f"/v1/subscribers/{subscriber['id']}", f"{SUBSCRIBER_URL}/new"
            assert (await world.client.patch(path, json={"url": other_url})).status_code == 200
            lane = dispatcher.lanes[subscriber["id"]]
            size = lane.window.size
            await world.generate()
            await wait_until(world, lambda: len(world.subscribers.webhooks) == 2)
            await wait_until(world, lambda: lane.in_flight == 1)
            gate.is_open.set()
            await dispatcher.settle()
            assert (lane.receiver.standing, lane.window.size) == (PROVEN, size)
