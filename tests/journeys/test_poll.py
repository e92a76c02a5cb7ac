"""Polling: on schedule, within its budget, confirmations first, and until the deadline."""

import asyncio
import itertools
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.generations.budget import Budget
from service.store import generations
from service.store.sqlite.database import Transaction
from tests.disaster import Held, status_of, story
from tests.harness import Harness, completed, opened
from tests.logs import Console

POLLED = "ideogram-v3-turbo"  # No callbacks; usually done after 3 s.
HOUR = 3_600


def said(status: int, body: Any = None, **headers: str) -> httpx.Response:
    return httpx.Response(status, json=body, headers=headers)


def running(word: str = "IN_PROGRESS") -> httpx.Response:
    return said(200, {"code": 200, "data": {"task_id": "task1", "status": word}})


async def polled_at(world: Harness, seconds: int, step: float = 1.0) -> list[float]:
    """When upstream was asked, in seconds from now, within `seconds`."""
    found: list[float] = []
    for tick in range(1, int(seconds / step) + 1):
        before = len(world.upstream.polls)
        await world.run(step)
        found += [tick * step] * (len(world.upstream.polls) - before)
    return found


async def test_a_model_without_callbacks_is_asked_about_ever_more_slowly(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate(POLLED)
        first, *rest = await polled_at(world, 60)
        assert first == 3  # 3 s, 20 % less by this world's jitter, on a clock of whole seconds.
        gaps = [later - sooner for sooner, later in itertools.pairwise([first, *rest])]
        assert gaps == sorted(gaps)
        assert gaps[0] == 2
        assert gaps[-1] == 12  # 15 s less 20 %.


async def test_after_five_minutes_it_is_asked_once_a_minute(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate(POLLED)
        await world.run(400)
        assert await polled_at(world, 200, step=4) == [48, 96, 144, 192]  # 60 s less 20 %.


async def test_where_a_callback_is_expected_upstream_is_left_alone_for_a_minute(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        assert await polled_at(world, 3_000, step=8) == [48, 144, 384, 864, 1_824, 2_784]


async def test_a_lost_callback_is_made_up_for_by_the_safety_poll(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe()
        generation = await world.generate()
        world.upstream.finish("task1")
        await world.run(60)
        assert await status_of(world, generation["id"]) == "succeeded"
        types = sorted(world.subscribers.types())
        assert types == ["generation.submitted", "generation.succeeded"]


async def test_the_safety_poll_can_be_set(tmp_path: Path) -> None:
    async with opened(tmp_path, safety_poll_seconds=2.0) as world:
        await world.generate()
        assert (await polled_at(world, 5))[0] == 2


async def test_upstream_is_asked_no_faster_than_the_budget(tmp_path: Path) -> None:
    async with opened(tmp_path, poll_rate_per_second=5.0) as world:
        for _ in range(40):
            await world.generate(POLLED)
        world.clock.advance(3)
        counts = []
        for _ in range(8):
            before = len(world.upstream.polls)
            await world.run()
            counts.append(len(world.upstream.polls) - before)
            world.clock.advance(1)
        assert counts == [5] * 8
        first_round = world.upstream.polls[:40]
        assert sorted(first_round) == sorted(f"task{i + 1}" for i in range(40))


def test_the_budget_gains_by_time_up_to_one_second_and_never_more() -> None:
    budget = Budget(4.0)
    assert budget.available(0) == 4
    for _ in range(4):
        budget.spend()
    assert budget.available(0) == 0
    next_at = budget.next_at(0)
    assert 250 <= next_at <= 251
    assert budget.available(next_at) == 1
    assert budget.available(3_600_000) == 4
    budget.pause(3_700_000)
    assert budget.available(3_699_999) == 0
    assert budget.next_at(3_600_000) == 3_700_000
    budget.pause(3_650_000)
    assert budget.next_at(3_600_000) == 3_700_000
    assert budget.available(3_700_000) == 4


def test_a_budget_of_less_than_one_a_second_still_asks() -> None:
    budget = Budget(0.1)
    assert budget.available(0) == 1
    budget.spend()
    assert budget.available(9_000) == 0
    assert budget.available(10_001) == 1


async def test_confirmations_of_callbacks_come_before_routine_questions(tmp_path: Path) -> None:
    async with opened(tmp_path, poll_rate_per_second=2.0) as world:
        for _ in range(6):
            await world.generate(POLLED)
        await world.generate()
        world.clock.advance(30)
        await world.call_back(completed("task7"))
        await world.run()
        assert world.upstream.polls[0] == "task7"
        assert len(world.upstream.polls) == 2


@pytest.mark.parametrize(("header", "seconds"), [({"Retry-After": "30"}, 30), ({}, 5)])
async def test_a_429_pauses_every_question_for_as_long_as_it_says(
    tmp_path: Path, header: dict[str, str], seconds: int
) -> None:
    async with opened(tmp_path) as world:
        await world.generate(POLLED)
        world.clock.advance(1)
        await world.generate(POLLED)
        world.upstream.poll_replies.append(said(429, None, **header))
        await world.run(2)
        assert world.upstream.polls == ["task1"]
        await world.run(seconds - 1)
        assert world.upstream.polls == ["task1"]
        await world.run(1)
        assert sorted(world.upstream.polls[1:]) == ["task1", "task2"]


async def test_a_confirmation_that_is_throttled_is_made_right_after_the_pause(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        world.upstream.finish("task1")
        world.upstream.poll_replies.append(said(429, None, **{"Retry-After": "7"}))
        await world.call_back()
        await world.run()
        await world.run(6)
        assert await status_of(world, generation["id"]) == "processing"
        await world.run(1)
        assert await status_of(world, generation["id"]) == "succeeded"


TROUBLE = [said(500), said(503), said(200, {"code": 500}), httpx.ReadTimeout("slow"), said(404)]


@pytest.mark.parametrize("reply", TROUBLE, ids=lambda reply: repr(reply)[:30])
async def test_trouble_backs_off_alone(tmp_path: Path, reply: httpx.Response | Exception) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        await world.generate(POLLED)
        world.upstream.poll_replies.extend([reply] * 4)
        await world.call_back(completed("task1"), index=0)
        times = [1.0 * tick for tick in range(33)]
        seen: list[tuple[float, str]] = []
        for at in times:
            before = len(world.upstream.polls)
            await world.run(0 if at == 0 else 1)
            seen += [(at, task) for task in world.upstream.polls[before:]]
            if at == 0:
                world.upstream.poll_replies.clear()
                world.upstream.poll_replies.append(reply)  # For whoever comes next.
        assert [at for at, task in seen if task == "task2"][:2] == [3, 7]
        assert [at for at, task in seen if task == "task1"][:2] == [0, 4]


async def test_trouble_is_asked_about_ever_more_slowly_up_to_five_minutes(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate(POLLED)
        world.upstream.poll_replies.extend([said(500)] * 40)
        found = await polled_at(world, 1_400, step=4)
        gaps = [later - sooner for sooner, later in itertools.pairwise(found)]
        assert gaps == [4, 8, 16, 32, 64, 128, 240, 240, 240, 240]  # 5 s doubled, less 20 %.


async def test_retry_after_wins_over_the_back_off(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate(POLLED)
        world.upstream.poll_replies.append(said(503, None, **{"Retry-After": "100"}))
        assert await polled_at(world, 110) == [3, 103, 106, 110]


async def test_a_404_stays_open(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate(POLLED)
        world.upstream.poll_replies.extend([said(404), said(404)])
        await world.run(3)
        await world.run(5)
        assert await status_of(world, generation["id"]) == "processing"
        world.upstream.finish("task1")
        await world.run(10)
        assert await status_of(world, generation["id"]) == "succeeded"


async def test_an_unknown_word_stays_open_and_is_logged(tmp_path: Path, console: Console) -> None:
    console.configure("info")
    async with opened(tmp_path) as world:
        generation = await world.generate(POLLED)
        world.upstream.poll_replies.append(running("PONDERING"))
        await world.run(3)
        assert await status_of(world, generation["id"]) == "processing"
        assert ("poll", "processing") in await story(world, generation["id"])
        lines = [line for line in console.lines() if line["event"] == "upstream.unknown_word"]
        assert [line["word"] for line in lines] == ["PONDERING"]
        world.upstream.finish("task1")
        await world.run(10)
        assert await status_of(world, generation["id"]) == "succeeded"


async def test_a_failure_is_published_with_its_reason_and_costs_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate(POLLED)
        world.upstream.fail("task1", "no such luck")
        await world.run(3)
        found = await world.get(f"/v1/generations/{generation['id']}")
        assert found["status"] == "failed"
        assert found["error"] == {"code": "bad", "message": "no such luck"}
        assert (found["credits"], found["output"]) == (0, None)


async def test_at_its_deadline_a_generation_times_out_and_is_still_asked_about(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe()
        generation = await world.generate()
        await world.run(HOUR - 1)
        assert await status_of(world, generation["id"]) == "processing"
        await world.run(1)
        found = await world.get(f"/v1/generations/{generation['id']}")
        assert found["status"] == "timed_out"
        assert found["error"]["code"] == "deadline_exceeded"
        late = await polled_at(world, 30 * HOUR, step=240)
        minutes = [round(at / 60) for at in late]
        assert minutes == [8, 48, 288, 1_152]  # 10 min, 1, 6 and 24 h, less 20 %.
        assert sorted(world.subscribers.types()) == ["generation.submitted", "generation.timed_out"]


@pytest.mark.parametrize("outcome", ["succeeded", "failed"])
@pytest.mark.parametrize("by", ["poll", "callback", "refresh"])
async def test_a_late_result_is_taken_and_told(tmp_path: Path, outcome: str, by: str) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe()
        generation = await world.generate()
        await world.run(HOUR)
        await world.run(2)
        if outcome == "succeeded":
            world.upstream.finish("task1")
        else:
            world.upstream.fail("task1")
        if by == "callback":
            await world.call_back({"done": True})
            await world.run()
        elif by == "refresh":
            await world.client.post(f"/v1/generations/{generation['id']}/refresh")
        await world.run(10 * 60 if by == "poll" else 0)
        found = await world.get(f"/v1/generations/{generation['id']}")
        assert found["status"] == outcome
        assert found["completed_at"] > found["deadline_at"]
        await world.run(30 * HOUR)
        told = ["generation.submitted", "generation.timed_out", f"generation.{outcome}"]
        assert sorted(world.subscribers.types()) == sorted(told)


async def test_refreshing_does_not_use_up_the_late_polls(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        await world.run(HOUR)
        for _ in range(6):
            world.clock.advance(2)
            await world.client.post(f"/v1/generations/{generation['id']}/refresh")
        before = len(world.upstream.polls)
        assert len(await polled_at(world, 30 * HOUR, step=240)) == 4
        assert len(world.upstream.polls) == before + 4


async def test_the_deadline_is_kept_by_a_process_that_was_away(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe()
        first = await world.generate()
        second = await world.generate(POLLED)
        world.clock.advance(5 * HOUR)
        await world.restart()
        await world.run()
        for generation in (first, second):
            assert await status_of(world, generation["id"]) == "timed_out"
        assert world.subscribers.types().count("generation.timed_out") == 2


async def test_a_poll_and_a_callback_with_the_same_news_yield_one_event(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await world.subscribe()
        generation = await world.generate()
        answer = {"code": 200, "data": completed("task1")["data"]}
        held = Held(said(200, answer))
        world.upstream.poll_replies.append(held.reply)
        ticking = asyncio.create_task(world.run(60))
        await held.asked.wait()
        assert (await world.call_back({**completed("task1"), "extra": 1})).status_code == 200
        held.release()
        await ticking
        await world.run(24 * HOUR)
        assert await status_of(world, generation["id"]) == "succeeded"
        types = sorted(world.subscribers.types())
        assert types == ["generation.submitted", "generation.succeeded"]


async def test_contradictory_news_at_once_yield_one_event(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await world.subscribe()
        for _ in range(20):
            await world.generate()
        for number in range(1, 21):
            world.upstream.fail(f"task{number}")
        world.clock.advance(60)
        ticking = asyncio.create_task(world.run())
        answers = await asyncio.gather(
            *(world.call_back(completed(f"task{i + 1}"), index=i) for i in range(20))
        )
        assert {answer.status_code for answer in answers} == {200}
        await ticking
        await world.run(60)
        ended = [
            sent.event["data"]["id"]
            for sent in world.subscribers.sent
            if sent.event["type"] in ("generation.succeeded", "generation.failed")
        ]
        assert len(ended) == len(set(ended)) == 20
        events = (await world.get("/v1/events", limit=250))["data"]
        assert len(events) == 40


async def test_refresh_asks_now_and_once_a_second_at_most(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        path = f"/v1/generations/{generation['id']}/refresh"
        for _ in range(3):
            answer = await world.client.post(path)
            assert (answer.status_code, answer.json()["status"]) == (200, "processing")
        assert world.upstream.polls == ["task1"]
        world.upstream.finish("task1")
        world.clock.advance(1)
        assert (await world.client.post(path)).json()["status"] == "succeeded"
        world.clock.advance(1)
        assert (await world.client.post(path)).json()["status"] == "succeeded"
        assert len(world.upstream.polls) == 2


async def test_refreshes_at_the_same_time_share_a_question(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        world.upstream.finish("task1")
        path = f"/v1/generations/{generation['id']}/refresh"
        answers = await asyncio.gather(*(world.client.post(path) for _ in range(8)))
        assert {answer.json()["status"] for answer in answers} == {"succeeded"}
        assert world.upstream.polls == ["task1"]


async def test_without_a_task_there_is_nothing_to_refresh(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.append(httpx.ReadTimeout("slow"))
        generation = await world.generate()
        answer = await world.client.post(f"/v1/generations/{generation['id']}/refresh")
        assert (answer.status_code, answer.json()["status"]) == (200, "queued")
        assert world.upstream.polls == []


async def test_nothing_that_is_due_between_two_looks_is_overlooked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = generations.to_poll

    async def slowly(tx: Transaction, limit: int) -> Any:
        found = await look(tx, limit)
        world.clock.advance(5)  # Time moves while the database is asked.
        return found

    async with opened(tmp_path) as world:
        await world.generate(POLLED)
        due_at = world.clock.now + 2_400
        monkeypatch.setattr(generations, "to_poll", slowly)
        _, next_at = await world.app.parts.poller.run_due(world.clock.now)
        assert next_at == due_at


async def test_a_question_that_cannot_be_recorded_is_asked_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate(POLLED)
        database = world.app.database
        answer = {"code": 200, "data": completed("task1")["data"]}

        def fails(_request: httpx.Request) -> httpx.Response:
            database._queue_max = 0
            return said(200, answer)

        world.upstream.poll_replies.append(fails)
        world.clock.advance(3)
        await world.app.parts.poller.run_due(world.clock.now)
        await world.app.parts.poller.settle()
        assert await status_of(world, generation["id"]) == "processing"
        database._queue_max = 10_000
        world.upstream.finish("task1")
        await world.run(1)
        assert await status_of(world, generation["id"]) == "succeeded"


async def test_two_ticks_at_once_do_the_work_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        for _ in range(5):
            await world.generate(POLLED)
        world.clock.advance(3)
        answers = await asyncio.gather(*(world.client.post("/v1/tick") for _ in range(4)))
        assert {answer.status_code for answer in answers} == {200}
        assert sum(answer.json()["polled"] for answer in answers) == 5
        assert len(world.upstream.polls) == 5
        assert [answer.json()["more"] for answer in answers].count(False) == 1
