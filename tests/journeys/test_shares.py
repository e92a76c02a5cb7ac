"""One tenant's refreshes delay nobody else's refresh, confirmation or poll."""

import asyncio
from pathlib import Path

import httpx
import pytest

from service.generations import poll
from service.generations.budget import Budget
from service.generations.refreshes import Refreshes
from tests.faults import DelayedAnswer, status_of
from tests.harness import Harness, opened

pytestmark = pytest.mark.sqlite_only("it runs due work hundreds of times")

POLLED = "ideogram-v3-turbo"  # No callbacks; usually done after 3 s.


async def client_of(world: Harness, tenant: str) -> httpx.AsyncClient:
    body = {"name": tenant, "scopes": ["submit", "read"], "tenant": tenant}
    answer = await world.client.post("/v1/keys", json=body)
    assert answer.status_code == 201, answer.text
    return world.new_client(answer.json()["key"])


class Neighbour:
    """Another tenant, with generations that it refreshes all at once."""

    def __init__(self, client: httpx.AsyncClient, model: str = "imagen4") -> None:
        self.client = client
        self.model = model
        self.paths: list[str] = []

    async def generate(self, count: int) -> None:
        body = {"model": self.model, "input": {"prompt": "a small harbour"}}
        for _ in range(count):
            answer = await self.client.post("/v1/generations", json=body)
            self.paths.append(f"/v1/generations/{answer.json()['id']}/refresh")

    async def refresh_all(self) -> None:
        await asyncio.gather(*map(self.client.post, self.paths))


@pytest.mark.parametrize("rate", [10.0, 2.0])
async def test_refreshes_of_one_tenant_delay_no_other_by_a_second(
    tmp_path: Path, rate: float
) -> None:
    async with opened(tmp_path, poll_rate_per_second=rate) as world:
        neighbour = Neighbour(await client_of(world, "neighbour"))
        await neighbour.generate(200)
        refreshed, confirmed, polled = [
            (await world.generate(model))["id"] for model in ("imagen4", "imagen4", POLLED)
        ]
        for number in (201, 202, 203):
            world.upstream.finish(f"task{number}")
        world.clock.advance(4)
        await neighbour.refresh_all()
        refresh = await world.client.post(f"/v1/generations/{refreshed}/refresh")
        assert refresh.json()["status"] == "succeeded" or rate < 10
        await world.call_back({}, index=201)
        for _ in range(round(4 * 10 / rate)):  # Within a second, or the time of a few tokens.
            await neighbour.refresh_all()
            await world.run(0.25)
        assert await status_of(world, confirmed) == "succeeded"
        assert await status_of(world, polled) == "succeeded"
        await neighbour.client.aclose()


async def test_refreshes_have_their_share_while_planned_polls_use_the_whole_rate(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, poll_rate_per_second=10.0) as world:
        neighbour = Neighbour(await client_of(world, "neighbour"), POLLED)
        await neighbour.generate(300)
        mine = await world.generate()
        task_id = "task301"
        for _ in range(10):  # Until all tokens are used.
            await world.run(1)
        before = len(world.upstream.polls)
        for _ in range(20):
            await world.run(1)
            answer = await world.client.post(f"/v1/generations/{mine['id']}/refresh")
            assert answer.is_success
        assert world.upstream.polls.count(task_id) >= 10  # Half of a tenth of the rate.
        assert len(world.upstream.polls) - before <= 20 * 10 + 2
        await neighbour.client.aclose()


async def test_refreshes_that_hang_leave_places_for_others(tmp_path: Path) -> None:
    async with opened(tmp_path, poll_rate_per_second=1_000.0) as world:
        neighbour = Neighbour(await client_of(world, "neighbour"))
        await neighbour.generate(40)
        mine = await world.generate()
        hanging = DelayedAnswer(httpx.Response(500))
        world.upstream.poll_replies.extend([hanging.reply] * 40)
        tasks = {asyncio.create_task(neighbour.client.post(path)) for path in neighbour.paths}
        under_way = tasks
        poller = world.app.worker.poller
        while len(under_way) > 4:  # As many as one tenant has places.
            _, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            assert len(poller.in_flight) <= 4  # Later, those that hang end by their timeout.
        assert len(poller.in_flight) == 4
        world.upstream.poll_replies.clear()
        world.upstream.finish("task41")
        answer = await world.client.post(f"/v1/generations/{mine['id']}/refresh")
        assert answer.json()["status"] == "succeeded"
        hanging.release()
        await asyncio.wait(tasks)
        assert poller.refreshes.places.taken == 0
        await neighbour.client.aclose()


async def test_a_route_that_hangs_takes_at_most_half_of_the_places(tmp_path: Path) -> None:
    async with opened(tmp_path, poll_rate_per_second=100.0) as world:
        poller = world.app.worker.poller
        hanging = DelayedAnswer(httpx.Response(500))
        for number in range(6):
            client = await client_of(world, f"tenant-{number}")
            for _ in range(20):
                body = {"model": POLLED, "input": {"prompt": "a small harbour"}}
                await client.post("/v1/generations", json=body)
            await client.aclose()
        world.upstream.poll_replies.extend([hanging.reply] * 120)
        world.clock.advance(3)
        for _ in range(6):
            await poller.run_due(world.clock.now)
        assert poll.IN_FLIGHT_MAX // 4 < len(poller.in_flight) <= poll.IN_FLIGHT_MAX // 2
        hanging.release()
        await poller.settle()


async def test_a_route_that_hangs_for_models_nobody_knows_holds_up_no_other_route(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, poll_rate_per_second=1_000.0, public_url=None) as world:
        body = {"model": "unheard-of", "input": {"prompt": "a small harbour"}}
        song = {"model": "chirp-v4-5", "input": {"gpt_description_prompt": "the sea"}}
        song_ids = {(await world.client.post("/v1/generations", json=song)).json()["id"]}
        for tenant, count in (("a", poll.IN_FLIGHT_MAX), ("b", 2 * poll.IN_FLIGHT_MAX)):
            client = await client_of(world, tenant)
            for _ in range(count):
                await client.post("/v1/generations", json=body)
            # The turns of the tenants do not bring it forward: it is behind those of its own one.
            song_ids.add((await client.post("/v1/generations", json=song)).json()["id"])
            await client.aclose()
        poller = world.app.worker.poller
        hanging = DelayedAnswer(httpx.Response(500))
        world.upstream.poll_replies.extend([hanging.reply] * (poll.IN_FLIGHT_MAX // 2))
        world.clock.advance(300)
        for _ in range(2):  # The first look fills the places of the route that hangs.
            await poller.run_due(world.clock.now)
        assert song_ids <= poller.in_flight.keys()
        hanging.release()
        await poller.settle()


async def test_a_process_that_does_not_work_leaves_the_rate_to_the_one_that_does(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, poll_rate_per_second=10.0) as world:
        paths = [f"/v1/generations/{(await world.generate())['id']}/refresh" for _ in range(60)]
        for _ in range(10):
            world.clock.advance(1)
            await asyncio.gather(*map(world.client.post, paths))
        assert 5 <= len(world.upstream.polls) <= 12  # A tenth of the rate, and two at first.


async def test_with_a_token_at_a_time_refreshes_starve_no_poll(tmp_path: Path) -> None:
    async with opened(tmp_path, poll_rate_per_second=1.0) as world:
        neighbour = Neighbour(await client_of(world, "neighbour"))
        await neighbour.generate(30)
        ids = [(await world.generate(POLLED))["id"] for _ in range(5)]
        for number in range(31, 36):
            world.upstream.finish(f"task{number}")
        world.clock.advance(3)
        await world.run()
        for _ in range(12):
            world.clock.advance(1)
            await neighbour.refresh_all()
            await world.run()
        assert {await status_of(world, id_) for id_ in ids} == {"succeeded"}
        await neighbour.client.aclose()


def test_among_many_processes_each_keeps_refreshes_to_the_share_of_its_own_part() -> None:
    shared = Budget(10.0)
    refreshes = Refreshes(shared.rate, 32)
    shared.take_share(1 / 32, 0)
    refreshes.keep_to(shared.rate)
    taken = 0
    for now in range(0, 600_000, 50):
        for tenant in ("a", "b"):
            if refreshes.has_share(tenant, now):
                refreshes.note("gen_a", tenant, now, has_share=True)
                taken += 1
    assert taken <= 600 * 10 / 32 / 10 + 4


async def test_a_refresh_follows_the_part_of_the_rate_that_its_process_has(tmp_path: Path) -> None:
    async with opened(tmp_path, poll_rate_per_second=10.0) as world:
        generation = await world.generate()
        poller = world.app.worker.poller
        poller.budget.take_share(1 / 32, world.clock.now)
        await world.client.post(f"/v1/generations/{generation['id']}/refresh")
        assert poller.refreshes.rate == poller.budget.rate == 10.0 / 32


def test_no_tenant_takes_all_of_the_share() -> None:
    for rate in (0.1, 1.0, 10.0, 400.0):
        refreshes = Refreshes(rate, 32)
        taken = 0
        for now in range(0, 600_000, 50):
            if refreshes.has_share("a", now):
                refreshes.note("gen_a", "a", now, has_share=True)
                taken += 1
            assert refreshes.has_share("b", now)
        assert taken <= 600 * rate / 20 + max(1, rate / 20)
