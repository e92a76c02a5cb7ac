"""Generations that share a task: one question about it, and its answer counts for each."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.generations import judge
from service.store import generations, tasks
from service.store.database import Transaction
from tests.faults import DelayedAnswer, crash, execute, rows, status_of, storage_failure
from tests.harness import Harness, create_answer, opened, success_report
from tests.journeys.gates import by_hand

WORKING = httpx.Response(200, json=create_answer("shared"))


async def share(world: Harness, count: int, *, apart: float = 0) -> list[str]:
    """Submit equal generations, of which upstream makes one task; return their ids."""
    ids = []
    for _ in range(count):
        world.upstream.create_replies.append(httpx.Response(200, json=create_answer("shared")))
        ids.append((await world.generate())["id"])
        world.clock.advance(apart)
    return ids


async def polls_of(world: Harness, id_: str) -> list[str]:
    """Return the outcomes of the polls in the timeline of a generation."""
    timeline = await world.get(f"/v1/generations/{id_}/timeline")
    return [each["detail"]["outcome"] for each in timeline["data"] if each["type"] == "poll"]


async def questions(path: Path, count: int, jitters: Sequence[float]) -> int:
    """Return how often so many generations that share a task are asked about in 4 minutes."""
    path.mkdir()  # noqa: ASYNC240  nothing else runs
    async with opened(path, public_url=None) as world:
        if jitters:
            world.app.context.jitter = cycle(jitters).__next__
        ids = await share(world, count, apart=0.3 if jitters else 0)
        for _ in range(240):
            await world.run(1)
        asked = len(world.upstream.polls)
        assert [await polls_of(world, id_) for id_ in ids] == [["processing"] * asked] * count
        return asked


async def test_those_that_share_a_task_get_as_many_questions_as_one_alone(tmp_path: Path) -> None:
    alone = await questions(tmp_path / "alone", 1, ())
    assert alone > 10
    assert await questions(tmp_path / "shared", 6, ()) == alone


async def test_who_shares_a_task_is_asked_about_with_the_others_though_not_due(
    tmp_path: Path,
) -> None:
    # The plans differ, by jitter and age: even the shortest delays of one alone are asked so often.
    most = await questions(tmp_path / "alone", 1, ())
    assert await questions(tmp_path / "shared", 6, (0.7, 0.1, 0.9, 0.4, 0.0, 0.6, 0.3)) <= most + 1


async def plan(world: Harness, id_: str, due_at: int) -> None:
    sql = "UPDATE generations SET next_poll_at = :due_at WHERE id = :id"
    await execute(world, sql, id=id_, due_at=due_at)


async def planned(world: Harness) -> dict[str, int]:
    found = await rows(world, "SELECT id, next_poll_at FROM generations")
    return {row["id"]: row["next_poll_at"] for row in found}


async def test_a_planned_poll_leaves_the_first_safety_poll_of_a_younger_one(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        first, second = await share(world, 2)
        before = await planned(world)
        await plan(world, first, world.clock.now)
        await world.run()
        after = await planned(world)
        assert world.upstream.polls == ["shared"]
        assert after[second] == before[second]


async def test_a_refresh_or_confirmation_moves_no_plan_of_another(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        first, second = await share(world, 2)
        await plan(world, second, world.clock.now + 55_000)
        before = await planned(world)
        await world.run(10)
        await world.call_back(create_answer("shared"), 0)
        await world.run()
        assert world.upstream.polls == ["shared"]
        assert await polls_of(world, second) == ["processing"]
        assert (await planned(world))[second] == before[second]
        world.clock.advance(10)
        await world.client.post(f"/v1/generations/{first}/refresh")
        assert (await planned(world))[second] == before[second]


async def confirmations(path: Path, count: int) -> list[int]:
    """Return how many questions there were by each second after callbacks to so many URLs."""
    path.mkdir()  # noqa: ASYNC240  nothing else runs
    async with opened(path) as world:
        await share(world, count)
        await world.run(5)
        for index in range(count):
            await world.call_back(success_report("shared"), index)
        asked = []
        for _ in range(70):  # The task route lags behind the callbacks: it is asked again.
            await world.run()
            asked.append(len(world.upstream.polls))
            world.clock.advance(1)
        assert await rows(world, "SELECT * FROM confirmations") == []
        return asked


async def test_callbacks_to_each_url_lead_to_one_question_a_step(tmp_path: Path) -> None:
    alone = await confirmations(tmp_path / "alone", 1)
    assert [alone.index(number) for number in range(1, 7)] == [0, 1, 3, 7, 15, 30]
    assert await confirmations(tmp_path / "shared", 5) == alone


async def test_an_end_reaches_all_that_share_its_task(tmp_path: Path) -> None:
    count = generations.SHARERS_LOCKED_MAX + 5
    async with opened(tmp_path, public_url=None) as world:
        await world.subscribe()
        ids = await share(world, count)
        world.upstream.finish("shared")
        await world.run(60)
        assert world.upstream.polls == ["shared"]
        for id_ in ids:
            assert await status_of(world, id_) == "succeeded"
            assert await polls_of(world, id_) == ["succeeded"]
        assert world.subscribers.event_types().count("generation.succeeded") == count


async def test_those_that_share_a_task_learn_its_other_name(tmp_path: Path) -> None:
    behind = {"task_id": "behind", "status": "IN_PROGRESS"}
    async with opened(tmp_path, public_url=None) as world:
        ids = await share(world, 2)
        world.upstream.tasks["shared"] = behind
        for _ in range(4):
            await world.run(300)
        ids += await share(world, 1)
        other = await world.generate(input={"prompt": "another thing"})
        world.upstream.finish("shared")
        world.upstream.tasks["shared"] |= behind | {"status": "completed"}
        await world.run(300)
        assert [await status_of(world, id_) for id_ in ids] == ["succeeded"] * 3
        assert await status_of(world, other["id"]) == "processing"


async def test_a_second_task_revokes_a_name_of_those_that_share_one(tmp_path: Path) -> None:
    behind = {"task_id": "behind", "status": "IN_PROGRESS"}
    async with opened(tmp_path, public_url=None) as world:
        await share(world, 2)
        world.upstream.tasks["shared"] = behind
        for _ in range(4):
            await world.run(300)
        assert [row["is_revoked"] for row in await rows(world, "SELECT * FROM task_names")] == [0]
        await world.generate(input={"prompt": "another thing"})
        world.upstream.tasks["task3"] = behind
        await world.run(300)
        assert [row["is_revoked"] for row in await rows(world, "SELECT * FROM task_names")] == [1]


async def test_a_callback_may_name_what_another_that_shares_its_task_has_learned(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        first, second = await share(world, 2)
        await world.app.database.write(tasks.learn_name, "behind", first)
        report = success_report("shared")
        report["data"]["taskId"] = "behind"
        await world.call_back(report)
        assert await status_of(world, second) == "succeeded"


@asynccontextmanager
async def asking(world: Harness) -> AsyncIterator[Any]:
    """Start the questions that are due, without waiting for their answers; at the end wait."""
    ownership, poller = world.app.worker.ownership, world.app.worker.poller
    assert await ownership.acquire()
    try:
        await poller.run_due(world.clock.now)
        yield poller
        await poller.settle()
    finally:
        await ownership.release()


async def test_who_is_due_or_refreshed_while_a_question_hangs_follows_it(tmp_path: Path) -> None:
    async with opened(tmp_path, public_url=None, poll_rate_per_second=2) as world:
        ids = await share(world, 1)
        hanging = DelayedAnswer(WORKING)
        world.upstream.poll_replies.append(hanging.reply)
        world.clock.advance(60)
        async with asking(world) as poller:
            await hanging.requested.wait()
            ids += await share(world, 1)
            await plan(world, ids[1], world.clock.now)
            tokens = poller.budget.tokens
            await poller.run_due(world.clock.now)
            ids += await share(world, 1)
            url = f"/v1/generations/{ids[2]}/refresh"
            refreshed = asyncio.create_task(world.client.post(url))
            while len(poller.in_flight) < 3 and not refreshed.done():  # noqa: ASYNC110  a test
                await asyncio.sleep(0)  # noqa: TID251  it waits for no time
            assert (poller.budget.tokens, poller.places.all.taken) == (tokens, 1)
            hanging.release()
            await refreshed
        assert world.upstream.polls == ["shared"]
        assert [await polls_of(world, id_) for id_ in ids] == [["processing"]] * 3
        assert (poller.in_flight, poller.places.all.taken) == ({}, 0)
        assert min((await planned(world)).values()) > world.clock.now


@pytest.mark.parametrize("is_shared", [False, True])
async def test_more_than_may_follow_a_question_that_hangs_get_another_one(
    tmp_path: Path, *, is_shared: bool
) -> None:
    count = generations.SHARERS_READ_MAX + 3
    async with opened(tmp_path, public_url=None) as world:
        await share(world, count)
        hanging = DelayedAnswer(WORKING)
        world.upstream.poll_replies.extend([hanging.reply] * 2)
        world.clock.advance(60)
        world.app.worker.poller.budget.is_shared = is_shared  # By other processes, in turn.
        async with asking(world) as poller:
            looks, next_at = 0, world.clock.now
            while next_at <= world.clock.now + 1_000:
                looks, world.clock.now = looks + 1, max(next_at, world.clock.now)
                assert looks < 10, "it looks at the rows again and again"
                _, next_at = await poller.run_due(world.clock.now)
                next_at = next_at or 2**62
            assert len(poller.in_flight) == count
            hanging.release()
        assert world.upstream.polls == ["shared"] * 2


async def test_who_becomes_due_once_the_answer_has_come_is_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judging, goes_on = asyncio.Event(), asyncio.Event()

    async def wait(*args: Any) -> Any:
        judging.set()
        await goes_on.wait()
        return await judge_(*args)

    judge_ = judge.judge
    monkeypatch.setattr(judge, "judge", wait)
    async with opened(tmp_path, public_url=None) as world:
        await share(world, 1)
        world.clock.advance(60)
        async with asking(world) as poller:
            await judging.wait()
            [second] = await share(world, 1)
            await plan(world, second, world.clock.now)
            await poller.run_due(world.clock.now)
            goes_on.set()
        assert world.upstream.polls == ["shared"] * 2
        assert await polls_of(world, second) == ["processing"]


async def test_an_answer_that_is_not_recorded_leaves_all_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_args: object) -> None:
        raise storage_failure()

    async with opened(tmp_path, public_url=None) as world:
        ids = await share(world, 3)
        world.clock.advance(60)
        with monkeypatch.context() as patched:
            patched.setattr(world.app.worker.poller, "record_answers", fail)
            async with asking(world) as poller:
                pass
        assert (world.upstream.polls, poller.in_flight) == (["shared"], {})
        await world.run(2)
        assert world.upstream.polls == ["shared"] * 2
        assert [await polls_of(world, id_) for id_ in ids] == [["processing"]] * 3


async def test_one_that_cannot_be_recorded_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(context: Any, sightings: Any, generation: Any, reply: Any) -> Any:
        if generation.id == broken:
            raise ValueError(generation.id)
        return await judge_(context, sightings, generation, reply)

    judge_ = judge.judge
    monkeypatch.setattr(judge, "judge", fail)
    async with opened(tmp_path, public_url=None) as world:
        ids = await share(world, 3)
        for broken in ids[:2]:  # The one that is asked about, or another.
            world.clock.advance(60)
            for id_ in ids:
                await plan(world, id_, world.clock.now - 1_000 * (id_ == ids[0]))
            before = {id_: len(await polls_of(world, id_)) for id_ in ids}
            async with asking(world):
                pass
            after = {id_: len(await polls_of(world, id_)) for id_ in ids}
            assert [id_ for id_ in ids if after[id_] == before[id_]] == [broken]
        assert world.upstream.polls == ["shared"] * 2


async def test_a_process_that_is_killed_within_a_question_leaves_all_due(tmp_path: Path) -> None:
    async with opened(tmp_path, public_url=None) as world:
        ids = await share(world, 3)
        hanging = DelayedAnswer(WORKING)
        world.upstream.poll_replies.append(hanging.reply)
        world.clock.advance(60)
        await by_hand(world, world.app.worker.poller.run_due(world.clock.now))
        await hanging.requested.wait()
        await crash(world)
        world.upstream.finish("shared")
        await world.run(2)
        assert world.upstream.polls == ["shared"] * 2
        assert {await status_of(world, id_) for id_ in ids} == {"succeeded"}


async def test_where_nobody_shares_no_sharers_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[object] = []

    async def list_sharers(tx: Any, choice: generations.Choice) -> Any:
        reads.append(choice.shared)
        return await list_(tx, choice)

    list_ = generations.list_sharers
    monkeypatch.setattr(generations, "list_sharers", list_sharers)
    async with opened(tmp_path, public_url=None) as world:
        await world.generate()
        await world.generate()
        await world.run(60)
        assert (len(world.upstream.polls), reads) == (2, [])
        await share(world, 2)
        await world.run(3)
        assert len(reads) == 1


async def test_an_answer_is_stored_in_the_generation_before_its_confirmation_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def note(name: str) -> None:
        write = getattr(generations, name)

        async def noted(tx: Transaction, values: Any) -> None:
            order.append(name)
            await write(tx, values)

        monkeypatch.setattr(generations, name, noted)

    async with opened(tmp_path) as world:
        await world.generate()
        note("update")
        note("delete_confirmations")
        world.upstream.finish("task1")
        assert (await world.call_back()).status_code == 200
        await world.run()
        assert order[:2] == ["update", "delete_confirmations"]


async def test_a_rate_that_others_share_is_not_unused_while_due_polls_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def take(_tx: Transaction, count: int, _rate: float) -> int:
        return min(count, 2)

    async with opened(tmp_path, public_url=None, poll_rate_per_second=10.0) as world:
        for number in range(8):
            reply = httpx.Response(200, json=create_answer(f"t{number}"))
            world.upstream.create_replies.append(reply)
            await world.generate(input={"prompt": f"thing {number}"})
        world.clock.advance(60)
        poller = world.app.worker.poller
        assert await world.app.worker.ownership.acquire()
        poller.budget.is_shared = True
        monkeypatch.setattr("service.store.poll_rate.take", take)
        assert (await poller.run_due(world.clock.now))[0] == 2
        await poller.settle()
        assert not poller._has_unused(world.clock.now)
        await world.app.worker.ownership.release()
