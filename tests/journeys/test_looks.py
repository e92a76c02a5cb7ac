"""Who works looks for what others have committed: while a tick waits, and after it has let go."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.right import Right
from service.session import Session
from service.store.shards import ALL
from tests.harness import ADMIN_KEY, PUBLIC_URL, Harness, success_report
from tests.journeys.gates import Gate, queue_answers, tick_until_asked
from tests.journeys.test_drives import (
    beside,
    call_back_until_polled,
    driven,
    driving,
    submit_without_a_drive,
    until_told,
    works,
)

LOOK_SECONDS = "service.store.postgres.ownership.LOOK_SECONDS"


async def rest(world: Harness) -> None:
    """Wait for the requests that outlived a tick or drive, and for what follows them."""
    ticks = world.app.worker.ticks
    async with asyncio.timeout(60):
        while under_way := [task for task in ticks.under_way if not task.done()]:
            await asyncio.wait(under_way)


async def rested(_shards: object) -> None:
    """After a rest, do nothing."""


async def store_an_attempt(world: Harness, gate: Gate) -> None:
    """Make an attempt due that will wait at the gate; nothing drives it."""
    queue_answers(world, gate)
    await world.subscribe(event_types=["generation.submitted"])
    await submit_without_a_drive(world)


async def begin_a_rest(world: Harness, gate: Gate) -> None:
    """Let an attempt of a tick wait at the gate when the tick is over."""
    await store_an_attempt(world, gate)
    await tick_until_asked(world, gate)


async def test_after_a_rest_nothing_is_driven_because_time_has_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On PostgreSQL a worker looks every few seconds, as a notice may be lost."""
    monkeypatch.setattr(LOOK_SECONDS, 0)
    async with driven(tmp_path) as world:
        gate = Gate()
        await begin_a_rest(world, gate)
        gate.is_open.set()
        await rest(world)
        assert world.app.worker.ticks.driving == []
        assert not works(world.app)


async def test_a_tick_does_not_say_that_more_is_due_because_time_has_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LOOK_SECONDS, 0)
    async with driven(tmp_path) as world:
        async with asyncio.timeout(60):  # Retention may take several ticks on a busy machine.
            while (await world.app.worker.tick(60)).more:
                pass


async def test_commits_of_others_keep_a_process_at_work_once_beyond_the_time_of_a_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def always(_shards: object = None) -> bool:
        return True

    async with driven(tmp_path, drive_seconds=0.1) as world:
        await world.generate()
        monkeypatch.setattr(world.app.worker.ownership, "other_process_committed", always)
        await world.generate()
        await rest(world)
        assert not works(world.app)


def refuse_at_the_end(
    world: Harness, monkeypatch: pytest.MonkeyPatch, other: httpx.AsyncClient, index: int
) -> None:
    """Have another process commit a callback, and be refused, while this one lets go."""
    right = world.app.worker.right
    close = right._close

    async def close_late() -> None:
        monkeypatch.undo()
        url, body = world.upstream.callback_url(index), success_report(f"task{index + 1}")
        assert (await other.post(url, json=body)).status_code == 200
        await driving(other._transport.app)  # type: ignore[attr-defined]
        await until_told(world)
        await close()

    monkeypatch.setattr(right, "_close", close_late)


async def test_a_tick_says_that_more_is_due_if_others_commit_while_it_lets_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with driven(tmp_path) as world, beside(world) as other:
        await submit_without_a_drive(world)
        world.upstream.finish("task1")
        worker = world.app.worker
        while (await worker.tick(60)).more:
            pass
        refuse_at_the_end(world, monkeypatch, other, 0)
        assert (await worker.tick(60)).more
        assert (worker.ticks.driving, world.upstream.polls) == ([], [])
        await worker.tick(60)
        assert world.upstream.polls == ["task1"]


async def test_a_drive_in_the_rest_of_a_tick_looks_again_in_every_shard_that_it_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with driven(tmp_path) as world, beside(world) as other:
        for task in ("task1", "task2"):
            await world.generate()
            world.upstream.finish(task)
        gate = Gate()
        await begin_a_rest(world, gate)
        calling = await call_back_until_polled(world)
        refuse_at_the_end(world, monkeypatch, other, 1)
        assert world.upstream.polls == ["task1"]
        gate.is_open.set()
        await calling
        await rest(world)
        assert world.upstream.polls == ["task1", "task2"]
        assert not works(world.app)


async def test_no_drive_repeats_what_a_tick_has_done_for_its_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Any] = []
    begin = Right._begin

    async def counted(right: Right, shards: Any) -> Any:
        begun.append(shards)
        return await begin(right, shards)

    async with driven(tmp_path) as world:
        await world.generate()
        world.upstream.finish("task1")
        gate = Gate()
        await store_an_attempt(world, gate)
        monkeypatch.setattr(Right, "_begin", counted)
        tick = asyncio.create_task(world.app.worker.tick(60))
        await gate.wait_for(1)
        calling = await call_back_until_polled(world)
        gate.is_open.set()
        await asyncio.gather(tick, calling)
        await driving(world.app)
        assert len(begun) == 1


async def test_a_drive_that_is_refused_tries_once_more_for_the_latest_of_its_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each, the holder of the shard may have let go before it heard of the commit."""
    monkeypatch.setattr("service.ticks.HEARD_SECONDS", 0)
    turns = 0

    async with driven(tmp_path) as world:
        ticks = world.app.worker.ticks

        async def refuse() -> str:
            nonlocal turns
            turns += 1
            ticks._begin_turn()
            if turns == 2:
                ticks._request({1})  # It comes when the first one is tried once more.
            return "refused"

        monkeypatch.setattr(ticks, "_drive_once", refuse)
        await ticks.drive(1)
        await driving(world.app)
        assert turns == 4


async def test_a_step_that_fails_is_left_out_until_another_request_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = 0

    async def fail(_now: int) -> int | None:
        nonlocal failures
        failures += 1
        raise RuntimeError("a damaged row")

    async with driven(tmp_path) as world:
        await world.generate()
        world.upstream.finish("task1")
        gate = Gate()
        await store_an_attempt(world, gate)
        new_session = world.app.worker.right.new_session

        def new_failing_session() -> Session:
            session = new_session()
            session.tick_steps = (*session.tick_steps, fail)
            return session

        monkeypatch.setattr(world.app.worker.right, "new_session", new_failing_session)
        tick = asyncio.create_task(world.app.worker.tick(60))
        await gate.wait_for(1)
        calling = await call_back_until_polled(world)  # The tick takes another turn for it.
        gate.is_open.set()
        await calling
        assert (await tick).more
        assert failures == 2


async def test_a_request_waits_for_no_refusal_of_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.ticks.HEARD_SECONDS", 60)
    async with driven(tmp_path) as world, beside(world) as other:
        async with world.app.worker.right.hold(lambda: ALL, rested):
            for _ in range(3):
                url = f"{PUBLIC_URL}/v1/generations"
                body = {"model": "imagen4", "input": {"prompt": "a small harbour"}}
                key = {"authorization": f"Bearer {ADMIN_KEY}"}
                async with asyncio.timeout(20):
                    answer = await other.post(url, json=body, headers=key)
                assert answer.status_code == 202
        other._transport.app.worker.ticks._requested.set()  # type: ignore[attr-defined]
