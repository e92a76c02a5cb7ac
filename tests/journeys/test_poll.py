"""Polls: on schedule, within the budget, confirmations first, and until the deadline."""

import asyncio
import itertools
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import rounds
from service.generations.budget import Budget
from service.model.generation import Generation
from service.store import generations, rows
from service.store.database import Transaction
from tests.faults import DelayedAnswer, status_of, storage_failure, timeline_of
from tests.harness import Harness, opened, success_report
from tests.journeys.gates import by_hand
from tests.logs import Console

POLLED = "ideogram-v3-turbo"  # No callbacks; usually done after 3 s.
HOUR = 3_600


def response(status: int, body: Any = None, **headers: str) -> httpx.Response:
    return httpx.Response(status, json=body, headers=headers)


def still_running(word: str = "IN_PROGRESS") -> httpx.Response:
    return response(200, {"code": 200, "data": {"task_id": "task1", "status": word}})


async def poll_times(world: Harness, seconds: int, step: float = 1.0) -> list[float]:
    """Return when upstream was polled within `seconds`, in seconds from now."""
    times: list[float] = []
    for tick in range(1, int(seconds / step) + 1):
        before = len(world.upstream.polls)
        await world.run(step)
        times += [tick * step] * (len(world.upstream.polls) - before)
    return times


@pytest.mark.sqlite_only("it runs due work hundreds of times")
async def test_polls_of_a_model_without_callbacks_grow_apart(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate(POLLED)
        first, *rest = await poll_times(world, 60)
        assert first == 3  # 3 s, 20 % less by this world's jitter, on a clock of whole seconds.
        gaps = [later - sooner for sooner, later in itertools.pairwise([first, *rest])]
        assert gaps == sorted(gaps)
        assert gaps[0] == 2
        assert gaps[-1] == 12  # 15 s less 20 %.


@pytest.mark.sqlite_only("it runs due work hundreds of times")
async def test_after_five_minutes_polls_are_a_minute_apart(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate(POLLED)
        await world.run(400)
        assert await poll_times(world, 200, step=4) == [48, 96, 144, 192]  # 60 s less 20 %.


@pytest.mark.sqlite_only("it runs due work hundreds of times")
async def test_while_a_callback_is_expected_only_safety_polls_are_made(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        assert await poll_times(world, 3_000, step=8) == [
            48,
            144,
            384,
            864,
            1_344,
            1_824,
            2_304,
            2_784,
        ]


async def test_the_safety_poll_gets_the_outcome_of_a_lost_callback(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe()
        generation = await world.generate()
        world.upstream.finish("task1")
        await world.run(60)
        assert await status_of(world, generation["id"]) == "succeeded"
        types = sorted(world.subscribers.event_types())
        assert types == ["generation.submitted", "generation.succeeded"]


async def test_the_delay_of_the_safety_poll_can_be_set(tmp_path: Path) -> None:
    async with opened(tmp_path, safety_poll_seconds=2.0) as world:
        await world.generate()
        assert (await poll_times(world, 5))[0] == 2


async def test_polls_are_no_faster_than_the_budget(tmp_path: Path) -> None:
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


def test_the_budget_refills_with_time_up_to_one_second() -> None:
    budget = Budget(4.0)
    assert budget.available(0) == 4
    for _ in range(4):
        budget.spend()
    assert budget.available(0) == 0
    next_at = budget.next_at(0)
    assert 250 <= next_at <= 251
    assert budget.available(next_at) == 1
    assert budget.available(3_600_000) == 4
    budget.pause(3_650_000, 3_600_000)
    assert budget.available(3_649_999) == 0
    assert budget.next_at(3_600_000) == 3_650_000
    budget.pause(3_620_000, 3_600_000)
    assert budget.next_at(3_600_000) == 3_650_000
    assert budget.available(3_650_000) == 4


def test_a_budget_below_one_poll_a_second_still_allows_polls() -> None:
    budget = Budget(0.1)
    assert budget.available(0) == 1
    budget.spend()
    assert budget.available(9_000) == 0
    assert budget.available(10_001) == 1


async def test_confirmations_come_before_scheduled_polls(tmp_path: Path) -> None:
    async with opened(tmp_path, poll_rate_per_second=2.0) as world:
        for _ in range(6):
            await world.generate(POLLED)
        await world.generate()
        world.clock.advance(30)
        await world.call_back(success_report("task7"))
        await world.run()
        assert world.upstream.polls[0] == "task7"
        assert len(world.upstream.polls) == 2


@pytest.mark.parametrize(("header", "seconds"), [({"Retry-After": "30"}, 30), ({}, 5)])
async def test_a_429_pauses_every_poll_for_its_retry_after(
    tmp_path: Path, header: dict[str, str], seconds: int
) -> None:
    async with opened(tmp_path) as world:
        await world.generate(POLLED)
        world.clock.advance(1)
        await world.generate(POLLED)
        world.upstream.poll_replies.append(response(429, None, **header))
        await world.run(2)
        assert world.upstream.polls == ["task1"]
        await world.run(seconds - 1)
        assert world.upstream.polls == ["task1"]
        await world.run(1)
        assert sorted(world.upstream.polls[1:]) == ["task1", "task2"]


async def test_a_throttled_confirmation_is_repeated_right_after_the_pause(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        world.upstream.finish("task1")
        world.upstream.poll_replies.append(response(429, None, **{"Retry-After": "7"}))
        await world.call_back()
        await world.run()
        await world.run(6)
        assert await status_of(world, generation["id"]) == "processing"
        await world.run(1)
        assert await status_of(world, generation["id"]) == "succeeded"


FAILED_POLLS = [
    response(500),
    response(503),
    response(200, {"code": 500}),
    httpx.ReadTimeout("slow"),
    response(404),
]


@pytest.mark.parametrize("reply", FAILED_POLLS, ids=lambda reply: repr(reply)[:30])
async def test_failed_polls_back_off_for_their_generation_alone(
    tmp_path: Path, reply: httpx.Response | Exception
) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        await world.generate(POLLED)
        world.upstream.poll_replies.extend([reply] * 4)
        await world.call_back(success_report("task1"), index=0)
        times = [1.0 * tick for tick in range(33)]
        polls: list[tuple[float, str]] = []
        for at in times:
            before = len(world.upstream.polls)
            await world.run(0 if at == 0 else 1)
            polls += [(at, task) for task in world.upstream.polls[before:]]
            if at == 0:
                world.upstream.poll_replies.clear()
                world.upstream.poll_replies.append(reply)  # For the next poll.
        assert [at for at, task in polls if task == "task2"][:2] == [3, 7]
        assert [at for at, task in polls if task == "task1"][:2] == [0, 4]


@pytest.mark.sqlite_only("it runs due work hundreds of times")
async def test_failed_polls_back_off_to_five_minutes(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate(POLLED)
        world.upstream.poll_replies.extend([response(500)] * 40)
        times = await poll_times(world, 1_400, step=4)
        gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
        assert gaps == [4, 8, 16, 32, 64, 128, 240, 240, 240, 240]  # 5 s doubled, less 20 %.


@pytest.mark.sqlite_only("it runs due work hundreds of times")
async def test_retry_after_takes_precedence_over_the_back_off(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate(POLLED)
        world.upstream.poll_replies.append(response(503, None, **{"Retry-After": "100"}))
        assert await poll_times(world, 110) == [3, 103, 106, 110]


async def test_a_generation_stays_open_after_a_404(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate(POLLED)
        world.upstream.poll_replies.extend([response(404), response(404)])
        await world.run(3)
        await world.run(5)
        assert await status_of(world, generation["id"]) == "processing"
        world.upstream.finish("task1")
        await world.run(10)
        assert await status_of(world, generation["id"]) == "succeeded"


async def test_a_generation_with_an_unknown_status_word_stays_open(
    tmp_path: Path, console: Console
) -> None:
    console.configure("info")
    async with opened(tmp_path) as world:
        generation = await world.generate(POLLED)
        world.upstream.poll_replies.append(still_running("PONDERING"))
        await world.run(3)
        assert await status_of(world, generation["id"]) == "processing"
        assert ("poll", "processing") in await timeline_of(world, generation["id"])
        lines = [line for line in console.lines() if line["event"] == "upstream.unknown_word"]
        assert [line["word"] for line in lines] == ["PONDERING"]
        world.upstream.finish("task1")
        await world.run(10)
        assert await status_of(world, generation["id"]) == "succeeded"


async def test_a_failed_generation_has_its_error_and_costs_no_credits(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate(POLLED)
        world.upstream.fail("task1", "no such luck")
        await world.run(3)
        stored = await world.get(f"/v1/generations/{generation['id']}")
        assert stored["status"] == "failed"
        assert stored["error"] == {"code": "bad", "message": "no such luck"}
        assert (stored["credits"], stored["output"]) == (0, None)


@pytest.mark.sqlite_only("it runs due work hundreds of times")
async def test_a_generation_times_out_at_its_deadline_and_is_still_polled(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe()
        generation = await world.generate()
        await world.run(HOUR - 1)
        assert await status_of(world, generation["id"]) == "processing"
        await world.run(1)
        stored = await world.get(f"/v1/generations/{generation['id']}")
        assert stored["status"] == "timed_out"
        assert stored["error"]["code"] == "deadline_exceeded"
        late_polls = await poll_times(world, 30 * HOUR, step=240)
        minutes = [round(at / 60) for at in late_polls]
        assert minutes == [8, 48, 288, 1_152]  # 10 min, 1, 6 and 24 h, less 20 %.
        assert sorted(world.subscribers.event_types()) == [
            "generation.submitted",
            "generation.timed_out",
        ]


@pytest.mark.parametrize("outcome", ["succeeded", "failed"])
@pytest.mark.parametrize("source", ["poll", "callback", "refresh"])
async def test_a_late_result_is_stored_and_delivered(
    tmp_path: Path, outcome: str, source: str
) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe()
        generation = await world.generate()
        await world.run(HOUR)
        await world.run(2)
        if outcome == "succeeded":
            world.upstream.finish("task1")
        else:
            world.upstream.fail("task1")
        if source == "callback":
            await world.call_back({"done": True})
            await world.run()
        elif source == "refresh":
            await world.client.post(f"/v1/generations/{generation['id']}/refresh")
        await world.run(10 * 60 if source == "poll" else 0)
        stored = await world.get(f"/v1/generations/{generation['id']}")
        assert stored["status"] == outcome
        assert stored["completed_at"] > stored["deadline_at"]
        [usage] = (await world.get("/v1/usage"))["data"]
        assert (usage["generations"], usage[outcome], usage["timed_out"]) == (1, 1, 0)
        await world.run(30 * HOUR)
        types = ["generation.submitted", "generation.timed_out", f"generation.{outcome}"]
        assert sorted(world.subscribers.event_types()) == sorted(types)


@pytest.mark.sqlite_only("it runs due work hundreds of times")
async def test_refreshing_does_not_use_up_the_late_polls(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        await world.run(HOUR)
        for _ in range(6):
            world.clock.advance(2)
            await world.client.post(f"/v1/generations/{generation['id']}/refresh")
        before = len(world.upstream.polls)
        assert len(await poll_times(world, 30 * HOUR, step=240)) == 4
        assert len(world.upstream.polls) == before + 4


async def test_a_deadline_that_passed_before_a_restart_is_enforced_after_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe()
        first = await world.generate()
        second = await world.generate(POLLED)
        world.clock.advance(5 * HOUR)
        await world.restart()
        await world.run()
        for generation in (first, second):
            assert await status_of(world, generation["id"]) == "timed_out"
        assert world.subscribers.event_types().count("generation.timed_out") == 2


async def test_a_poll_and_a_callback_with_the_same_outcome_make_one_event(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await world.subscribe()
        generation = await world.generate()
        answer = {"code": 200, "data": success_report("task1")["data"]}
        delayed_answer = DelayedAnswer(response(200, answer))
        world.upstream.poll_replies.append(delayed_answer.reply)
        tick = asyncio.create_task(world.run(60))
        await delayed_answer.requested.wait()
        assert (await world.call_back({**success_report("task1"), "extra": 1})).status_code == 200
        delayed_answer.release()
        await tick
        await world.run(24 * HOUR)
        assert await status_of(world, generation["id"]) == "succeeded"
        types = sorted(world.subscribers.event_types())
        assert types == ["generation.submitted", "generation.succeeded"]


async def test_contradictory_outcomes_at_once_make_one_event(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await world.subscribe()
        for _ in range(20):
            await world.generate()
        for number in range(1, 21):
            world.upstream.fail(f"task{number}")
        world.clock.advance(60)
        tick = asyncio.create_task(world.run())
        answers = await asyncio.gather(
            *(world.call_back(success_report(f"task{i + 1}"), index=i) for i in range(20))
        )
        assert {answer.status_code for answer in answers} == {200}
        await tick
        await world.run(60)
        ended_ids = [
            sent.event["data"]["id"]
            for sent in world.subscribers.webhooks
            if sent.event["type"] in ("generation.succeeded", "generation.failed")
        ]
        assert len(ended_ids) == len(set(ended_ids)) == 20
        events = (await world.get("/v1/events", limit=250))["data"]
        assert len(events) == 40


async def test_refresh_polls_at_once_but_at_most_once_a_second(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        await world.run()  # Nobody waits for a token.
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


async def test_a_refresh_stops_no_submission_that_waits(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.append(httpx.Response(503))
        generation = await world.generate()
        answer = await world.client.post(f"/v1/generations/{generation['id']}/refresh")
        assert (answer.status_code, answer.json()["status"]) == (200, "queued")
        await world.run(60)
        assert await status_of(world, generation["id"]) == "processing"
        assert len(world.upstream.creates) == 2


async def test_refreshes_at_the_same_time_share_a_poll(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        world.upstream.finish("task1")
        path = f"/v1/generations/{generation['id']}/refresh"
        answers = await asyncio.gather(*(world.client.post(path) for _ in range(8)))
        assert {answer.json()["status"] for answer in answers} == {"succeeded"}
        assert world.upstream.polls == ["task1"]


async def test_a_refresh_that_read_before_another_was_recorded_polls_no_second_time(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, poll_rate_per_second=100) as world:  # There are tokens.
        created = await world.generate()
        database = world.app.context.database
        before = await database.read(rows.read_by_id, Generation, created["id"])
        poller, now = world.app.worker.poller, world.clock.now
        assert before is not None
        first = poller.refresh(before, 0, now)
        assert first is not None
        await first
        assert poller.refresh(before, 0, now) is None
        assert poller.refresh(before, 0, now + 2_000) is not None
        await poller.settle()


async def test_a_refresh_without_a_task_id_makes_no_poll(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.append(httpx.ReadTimeout("slow"))
        generation = await world.generate()
        answer = await world.client.post(f"/v1/generations/{generation['id']}/refresh")
        assert (answer.status_code, answer.json()["status"]) == (200, "queued")
        assert world.upstream.polls == []


async def test_a_poll_that_becomes_due_during_the_read_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_due = generations.list_due

    async def list_slowly(
        tx: Transaction, work: generations.Work, choice: generations.Choice, after: str
    ) -> Any:
        due = await list_due(tx, work, choice, after)
        world.clock.advance(5)  # Time passes during the read.
        return due

    async with opened(tmp_path) as world:
        await world.generate(POLLED)
        due_at = world.clock.now + 2_400
        monkeypatch.setattr(generations, "list_due", list_slowly)
        _, next_at = await by_hand(world, world.app.worker.poller.run_due(world.clock.now))
        assert next_at == due_at


async def test_a_poll_that_cannot_be_recorded_is_repeated(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate(POLLED)
        database = world.app.database
        answer = {"code": 200, "data": success_report("task1")["data"]}

        def answer_and_fill_the_queue(_request: httpx.Request) -> httpx.Response:
            database._queue.items_max = 0
            return response(200, answer)

        world.upstream.poll_replies.append(answer_and_fill_the_queue)
        world.clock.advance(3)
        await by_hand(world, world.app.worker.poller.run_due(world.clock.now))
        await world.app.worker.poller.settle()
        assert await status_of(world, generation["id"]) == "processing"
        database._queue.items_max = 10_000
        world.upstream.finish("task1")
        await world.run(1)
        assert await status_of(world, generation["id"]) == "succeeded"


async def fail_to_store(*_args: object) -> None:
    raise storage_failure()


async def the_disk_is_full() -> str:
    return "the disk is full"


async def test_upstream_is_asked_nothing_while_the_database_commits_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        ids = [(await world.generate(POLLED))["id"] for _ in range(3)]
        world.clock.advance(3)
        with monkeypatch.context() as patched:
            patched.setattr(world.app.worker.poller, "record_answers", fail_to_store)
            patched.setattr(world.app.database, "commit_problem", the_disk_is_full)
            patched.setattr(rounds, "HELD_UP_SECONDS_MAX", 0)  # The test's clock stands still.
            assert await poll_times(world, 100) == [1.0] * 3
        for number in range(3):
            world.upstream.finish(f"task{number + 1}")
        await world.run(1)
        assert [await status_of(world, id_) for id_ in ids] == ["succeeded"] * 3


async def test_polls_whose_answers_alone_cannot_be_stored_come_ever_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate(POLLED)
        world.clock.advance(3)
        with monkeypatch.context() as patched:
            patched.setattr(world.app.worker.poller, "record_answers", fail_to_store)
            patched.setattr(rounds, "HELD_UP_SECONDS_MAX", 0)  # The test's clock stands still.
            assert await poll_times(world, 200) == [1, 2, 4, 8, 16, 32, 64, 124, 184]
        world.upstream.finish("task1")
        await world.run(60)
        assert await status_of(world, generation["id"]) == "succeeded"


async def test_a_refresh_asks_nothing_just_after_an_answer_was_not_stored_and_then_ends_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate(POLLED)
        poller, path = world.app.worker.poller, f"/v1/generations/{generation['id']}/refresh"
        world.clock.advance(3)
        with monkeypatch.context() as patched:
            patched.setattr(poller, "record_answers", fail_to_store)
            patched.setattr(rounds, "HELD_UP_SECONDS_MAX", 0)  # The test's clock stands still.
            await poll_times(world, 10)
            world.clock.advance(6)
            await world.run()  # It fails again.
            asked = len(world.upstream.polls)
            await world.client.post(path)
            assert len(world.upstream.polls) == asked
        world.clock.advance(1)
        assert poller.stuck.ids(world.clock()) == [generation["id"]]
        await world.client.post(path)
        assert len(world.upstream.polls) == asked + 1
        assert poller.stuck.ids(world.clock()) == []


async def test_concurrent_ticks_do_the_work_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        for _ in range(5):
            await world.generate(POLLED)
        world.clock.advance(3)
        hanging = DelayedAnswer(httpx.Response(200, json=success_report("task1")))
        world.upstream.poll_replies.append(hanging.reply)
        ticks = [asyncio.create_task(world.client.post("/v1/tick")) for _ in range(4)]
        for refused in itertools.islice(asyncio.as_completed(ticks), 3):
            await refused
        hanging.release()
        answers = await asyncio.gather(*ticks)
        assert {answer.status_code for answer in answers} == {200}
        assert sum(answer.json()["polled"] for answer in answers) == 5
        assert len(world.upstream.polls) == 5
        assert [answer.json()["more"] for answer in answers].count(False) == 1
