"""What upstream is asked, and when: hints, the plan, the deadline, pauses, shares and bad rows."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.generations import ingest, judge
from service.generations.hints import ABSENT_MAX
from service.store import generations
from tests.faults import DelayedAnswer, crash, execute, rows, status_of
from tests.harness import Harness, opened, success_report
from tests.journeys.gates import by_hand

POLLED = "ideogram-v3-turbo"  # No callbacks; usually done after 3 s.
HOUR = 3_600
PROGRESS = {"data": {"task_id": "task1", "status": "running"}}


async def seconds_until(world: Harness, generation_id: str, status: str, at_most: int) -> int:
    for second in range(at_most):
        if await status_of(world, generation_id) == status:
            return second
        await world.run(1)
    raise AssertionError(f"not {status} within {at_most} s")


async def next_poll_at(world: Harness) -> int:
    [row] = await rows(world, "SELECT next_poll_at FROM generations")
    at: int = row["next_poll_at"]
    return at


async def test_a_callback_holds_a_submission_until_upstream_confirmed_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.append(httpx.Response(503))
        world.upstream.poll_replies.append(httpx.Response(500))
        generation = await world.generate()
        await world.call_back(PROGRESS)
        for _ in range(30):
            await world.run(1)
        assert len(world.upstream.creates) == 1
        assert await status_of(world, generation["id"]) == "processing"


@pytest.mark.parametrize("word", ["running", "completed"])
async def test_a_callback_that_names_a_task_ends_the_repetition_though_its_route_knows_none(
    tmp_path: Path, word: str
) -> None:
    async with opened(tmp_path, deadline_seconds=1_000) as world:
        world.upstream.create_replies.append(httpx.Response(503))
        world.upstream.poll_replies.extend([httpx.Response(404, text="no such task")] * 100)
        generation = await world.generate()
        await world.call_back({"data": {"task_id": "task1", "status": word}})
        for _ in range(100):
            await world.run(10)
        assert len(world.upstream.creates) == 1
        assert await rows(world, "SELECT * FROM confirmations") == []  # It was given up long ago,
        assert len(world.upstream.polls) > ABSENT_MAX  # and the plan was not.
        stored = await world.get(f"/v1/generations/{generation['id']}")
        assert (stored["status"], stored["task_id"]) == ("timed_out", None)
        assert "no such task" in stored["error"]["message"]
        world.upstream.poll_replies.clear()
        world.upstream.finish("task1")
        await world.run(HOUR)
        assert await status_of(world, generation["id"]) == "succeeded"


async def test_a_callback_that_names_no_task_ends_the_repetition(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.append(httpx.Response(503))
        await world.generate()
        await world.call_back({"status": "running"})
        for _ in range(5):
            await world.run(30)
        assert len(world.upstream.creates) == 1


async def test_a_put_off_answer_after_the_proof_repeats_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        delayed_answer = DelayedAnswer(httpx.Response(503))
        world.upstream.create_replies.append(delayed_answer.reply)
        creating = asyncio.create_task(world.generate())
        await delayed_answer.requested.wait()
        await world.call_back(PROGRESS)
        delayed_answer.release()
        await creating
        [row] = await rows(world, "SELECT submission, submit_at FROM generations")
        assert dict(row) == {"submission": "taken", "submit_at": None}
        await world.run(100)
        assert len(world.upstream.creates) == 1


async def test_a_late_callback_is_asked_about_until_upstream_answers(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        await world.run(HOUR)
        await world.run(7 * HOUR)
        world.upstream.finish("task1")
        world.upstream.poll_replies.append(httpx.Response(500))
        await world.call_back()
        await world.run(1)
        assert len(world.upstream.poll_replies) == 0
        assert await status_of(world, generation["id"]) == "timed_out"
        await world.run(10)
        assert await status_of(world, generation["id"]) == "succeeded"


async def test_a_hint_about_a_task_that_upstream_does_not_know_is_given_up(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.append(httpx.ReadTimeout("slow"))
        await world.generate()
        world.upstream.poll_replies.extend([httpx.Response(404)] * 50)
        await world.call_back(PROGRESS)
        for _ in range(60):
            await world.run(30)
        assert await rows(world, "SELECT * FROM confirmations") == []


async def test_a_task_route_that_lags_behind_the_callback_costs_seconds(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        await world.run(5)
        await world.call_back()
        await world.run()
        await world.run(2)
        world.upstream.finish("task1")
        assert await seconds_until(world, generation["id"], "succeeded", 10) <= 2


async def test_after_the_lag_the_questions_of_a_callback_end(tmp_path: Path) -> None:
    async with opened(tmp_path, safety_poll_seconds=1_000) as world:
        await world.generate()
        await world.call_back()
        asked: list[int] = []
        for second in range(120):
            before = len(world.upstream.polls)
            await world.run(1 if second else 0)
            asked += [second] * (len(world.upstream.polls) - before)
        assert asked == [0, 1, 3, 7, 15, 30, 60]


async def test_a_callback_that_came_while_the_clock_was_ahead_causes_few_polls(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, safety_poll_seconds=1_000) as world:
        await world.generate()
        world.clock.advance(1_800)
        await world.call_back()
        world.clock.advance(-1_800)
        await world.call_back()
        for _ in range(120):
            await world.run(1)
        assert len(world.upstream.polls) <= 7


ENDED: list[dict[str, Any]] = [
    success_report("task1"),
    {"code": 200, "data": {"task_id": "task1", "status": "completed"}},  # Without a file.
    {"code": 200, "data": {"task_id": "task1", "status": "failed"}},
    {"status": "completed"},  # Only the callback's URL says what it is about.
    {"status": "failed", "error": "nsfw"},
]


@pytest.mark.parametrize("body", ENDED)
async def test_a_callback_after_the_deadline_is_asked_about_until_its_route_follows(
    tmp_path: Path, body: dict[str, Any]
) -> None:
    async with opened(tmp_path, deadline_seconds=25) as world:
        generation = await world.generate()
        await world.run(25)
        assert await status_of(world, generation["id"]) == "timed_out"
        await world.run(5)
        world.upstream.polls.clear()
        await world.call_back(body)
        asked: list[int] = []
        for second in range(100):
            before = len(world.upstream.polls)
            await world.run(1 if second else 0)
            asked += [second] * (len(world.upstream.polls) - before)
        assert asked == [0, 1, 3, 7, 15, 30, 60]


async def test_the_same_callback_again_asks_again(tmp_path: Path) -> None:
    async with opened(tmp_path, safety_poll_seconds=1_000) as world:
        generation = await world.generate()
        await world.call_back()
        for _ in range(100):
            await world.run(1)
        world.upstream.finish("task1")
        await world.call_back()
        await world.run()
        assert await status_of(world, generation["id"]) == "succeeded"


async def test_confirmations_and_refreshes_move_no_planned_poll_away(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        for delay_minutes in (2, 5):  # And not the tenth delay.
            planned_at, polls = await next_poll_at(world), len(world.upstream.polls)
            for _ in range(5):
                world.clock.advance(2)
                await world.call_back({**PROGRESS, "number": world.clock.now})
                await world.run()
                world.clock.advance(1)
                await world.client.post(f"/v1/generations/{generation['id']}/refresh")
            assert len(world.upstream.polls) > polls + 5
            assert await next_poll_at(world) == planned_at
            await world.run((planned_at - world.clock.now) // 1_000)
            assert await next_poll_at(world) == planned_at + delay_minutes * 60 * 0.8 * 1_000


async def test_after_a_callback_that_says_running_the_next_poll_is_soon(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        await world.run(5)
        await world.call_back(PROGRESS)
        await world.run()
        world.upstream.finish("task1")
        assert await seconds_until(world, generation["id"], "succeeded", 30) < 15


async def test_after_an_outage_upstream_is_asked_before_anything_times_out(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe()
        for number in range(20):
            await world.generate()
            world.upstream.finish(f"task{number + 1}")
        world.upstream.poll_replies.append(httpx.Response(429))
        world.clock.advance(3 * HOUR)
        await world.restart()
        for _ in range(12):
            await world.run(1)
        types = Counter(world.subscribers.event_types())
        assert types == {"generation.submitted": 20, "generation.succeeded": 20}


async def test_a_lost_callback_of_a_finished_task_is_asked_about_before_it_times_out(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, deadline_seconds=30) as world:
        await world.subscribe()
        generation = await world.generate()  # Its first safety poll would be after a minute.
        world.upstream.finish("task1")
        for _ in range(40):
            await world.run(1)
        assert await status_of(world, generation["id"]) == "succeeded"
        assert world.subscribers.event_types() == ["generation.submitted", "generation.succeeded"]


async def test_a_known_task_without_a_plan_is_asked_about_before_it_times_out(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        world.upstream.finish("task1")
        await execute(world, "UPDATE generations SET next_poll_at = NULL")
        await world.run(HOUR)
        await world.run()
        assert await status_of(world, generation["id"]) == "succeeded"
        types = await rows(world, "SELECT type FROM events WHERE type = 'generation.timed_out'")
        assert types == []


async def test_a_hint_is_not_used_up_by_a_process_that_dies_while_it_asks(tmp_path: Path) -> None:
    async with opened(tmp_path, shutdown_seconds=0, safety_poll_seconds=1_000) as world:
        generation = await world.generate()
        await world.call_back()
        delayed_answer = DelayedAnswer(httpx.Response(500))
        world.upstream.poll_replies.append(delayed_answer.reply)
        await by_hand(world, world.app.worker.poller.run_due(world.clock.now))
        await delayed_answer.requested.wait()
        await crash(world)
        world.upstream.finish("task1")
        await world.run()
        assert await status_of(world, generation["id"]) == "succeeded"


@pytest.mark.sqlite_only("it runs due work hundreds of times")
async def test_more_open_tasks_than_can_be_asked_about_time_out_only_when_asked(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, poll_rate_per_second=1.0, deadline_seconds=30) as world:
        for number in range(60):
            await world.generate(POLLED)
            world.upstream.finish(f"task{number + 1}")
        for _ in range(80):
            await world.run(1)
        counts = await rows(world, "SELECT status, count(*) AS n FROM generations GROUP BY status")
        assert [dict(row) for row in counts] == [{"status": "succeeded", "n": 60}]


async def test_a_hint_at_the_deadline_is_asked_about_before_it_times_out(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe()
        world.upstream.create_replies.append(httpx.ReadTimeout("slow"))
        generation = await world.generate()
        world.upstream.finish("task1")
        world.clock.advance(HOUR)
        await world.call_back()
        await by_hand(world, world.app.worker.poller.expire_due(world.clock.now))
        await world.run()
        assert await status_of(world, generation["id"]) == "succeeded"
        assert world.subscribers.event_types() == ["generation.succeeded"]


async def test_what_could_never_be_asked_ends_a_day_after_its_deadline(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        world.upstream.poll_replies.extend([httpx.Response(429)] * 1_000)
        await world.run(HOUR)
        assert await status_of(world, generation["id"]) == "processing"
        for _ in range(5):
            await world.run(6 * HOUR)
        stored = await world.get(f"/v1/generations/{generation['id']}")
        assert (stored["status"], stored["error"]["code"]) == ("timed_out", "not_asked")
        assert stored["error"]["message"].endswith(" The outcome of the last poll was: throttled.")


async def test_overdue_questions_come_before_planned_ones(tmp_path: Path) -> None:
    async with opened(tmp_path, poll_rate_per_second=1.0) as world:
        for _ in range(3):
            await world.generate(POLLED)
        world.clock.advance(10)
        sql = "UPDATE generations SET deadline_at = next_poll_at + 1 WHERE task_id = 'task3'"
        await execute(world, sql)
        await world.run()
        assert world.upstream.polls == ["task3"]


FAR = 1_795_000_000 + 86_400


@pytest.mark.parametrize("header", ["86400", "9999999999", str(FAR), str(FAR * 1_000)])
async def test_no_retry_after_pauses_longer_than_a_tenth_of_the_deadline(
    tmp_path: Path, header: str
) -> None:
    async with opened(tmp_path, deadline_seconds=100) as world:
        first, second = await world.generate(POLLED), await world.generate(POLLED)
        for task in ("task1", "task2"):
            world.upstream.finish(task)
        world.upstream.poll_replies.append(httpx.Response(429, headers={"retry-after": header}))
        await by_hand(world, world.app.worker.poller.run_due(world.clock.now))
        for _ in range(16):
            await world.run(1)
        assert await status_of(world, first["id"]) == "succeeded"
        assert await status_of(world, second["id"]) == "succeeded"


async def test_a_clock_time_in_retry_after_is_read_as_one(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate(POLLED)
        world.clock.advance(3)
        at = world.clock.now // 1_000 + 7
        world.upstream.poll_replies.append(httpx.Response(429, headers={"retry-after": str(at)}))
        await world.run()
        await world.run(6)
        assert len(world.upstream.polls) == 1
        await world.run(1)
        assert len(world.upstream.polls) == 2


async def test_while_everything_is_paused_one_question_a_minute_goes_through(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        for _ in range(5):
            await world.generate(POLLED)
        world.clock.advance(2)
        reply = httpx.Response(429, headers={"retry-after": "300"})
        world.upstream.poll_replies.extend([reply] * 10)
        world.app.worker.poller.budget.tokens = 1.0
        world.app.worker.poller.budget.updated_at = world.clock.now + 1_000
        await world.run(1)
        assert len(world.upstream.polls) == 1
        counts = []
        for _ in range(4):
            for _ in range(6):
                await world.run(10)
            counts.append(len(world.upstream.polls))
        assert counts == [2, 3, 4, 5]


@pytest.mark.parametrize("end", ["restart", "crash"])
async def test_a_pause_that_upstream_asked_for_outlives_the_process(
    tmp_path: Path, end: str
) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        for _ in range(5):
            await world.generate(POLLED)
        world.upstream.poll_replies.append(httpx.Response(429, headers={"retry-after": "40"}))
        await world.client.post(f"/v1/generations/{generation['id']}/refresh")
        world.clock.advance(5)
        await (world.restart() if end == "restart" else crash(world))
        await world.client.post(f"/v1/generations/{generation['id']}/refresh")
        for _ in range(3):  # As ticks of a platform without a worker.
            await world.run(10)
            await world.restart()
        assert len(world.upstream.polls) == 1
        await world.run(5)
        assert len(world.upstream.polls) == 6


async def test_a_pause_that_another_process_was_asked_for_is_kept(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate(POLLED)
        now = world.clock.now
        await world.app.database.write(generations.put_pause, now + 150_000, now + 300_000)
        counts = []
        for _ in range(16):
            await world.run(10)
            counts.append(len(world.upstream.polls))
        assert counts.index(1) == 6  # A minute after it is known, one question goes through.
        assert counts[13] <= 2
        assert counts[15] > counts[13]


async def test_a_row_that_cannot_be_worked_moves_on_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_for_some(_context: Any, answer: Any) -> Any:
        if answer.task_id in ("task1", "task2"):
            raise OverflowError("too large for a column")
        return update_of(_context, answer)

    update_of = ingest.update_of
    monkeypatch.setattr(ingest, "update_of", fail_for_some)
    async with opened(tmp_path, poll_rate_per_second=2.0) as world:
        monkeypatch.setattr(ingest, "update_of", update_of)
        for number in range(7):
            await world.generate(POLLED)
            world.upstream.finish(f"task{number + 1}")
        monkeypatch.setattr(ingest, "update_of", fail_for_some)
        for _ in range(60):
            await world.run(1)
        asked = Counter(world.upstream.polls)
        assert asked["task1"] < 8
        counts = await rows(world, "SELECT status, count(*) AS n FROM generations GROUP BY status")
        assert {row["status"]: row["n"] for row in counts} == {"processing": 2, "succeeded": 5}
        for _ in range(30):
            await world.run(HOUR)
        ended = await rows(world, "SELECT id FROM generations WHERE status = 'timed_out'")
        assert len(ended) == 2


async def test_a_poll_that_fails_while_a_callback_ends_its_generation_plans_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await world.generate()

        async def fail(*_: object) -> None:
            monkeypatch.undo()
            assert (await world.call_back()).status_code == 200
            raise RuntimeError("a passing fault")

        monkeypatch.setattr(judge, "judge", fail)
        await world.run(400)
        [row] = await rows(world, "SELECT status, next_poll_at FROM generations")
        assert (row["status"], row["next_poll_at"]) == ("succeeded", None)


async def test_late_polls_that_always_fail_end_a_day_after_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise OverflowError("too large for a column")

    async with opened(tmp_path) as world:
        await world.generate(POLLED)
        await world.run(HOUR)
        await world.run(1)
        monkeypatch.setattr(judge, "judge", fail)
        for _ in range(30):
            await world.run(HOUR)
        [row] = await rows(world, "SELECT status, next_poll_at FROM generations")
        assert (row["status"], row["next_poll_at"]) == ("timed_out", None)


async def test_a_late_poll_that_is_throttled_is_asked_again_while_a_result_may_come(
    tmp_path: Path,
) -> None:
    sql = "SELECT status, next_poll_at, late_poll_count FROM generations"
    async with opened(tmp_path) as world:
        await world.generate(POLLED)
        await world.run(HOUR)
        world.upstream.poll_replies.extend([httpx.Response(429)] * 1_000)
        for hours in (1, 24, 24, 100):  # A process that was down asks late.
            polls = len(world.upstream.polls)
            await world.run(hours * HOUR)
            await world.run(1)
            assert len(world.upstream.polls) == polls + 1
            [row] = await rows(world, sql)
            assert (row["status"], row["late_poll_count"]) == ("timed_out", 0)
            assert row["next_poll_at"] > world.clock() + 400 * 1_000
        await world.run(7 * 24 * HOUR)
        [row] = await rows(world, sql)
        assert (row["status"], row["next_poll_at"]) == ("timed_out", None)


async def test_a_result_is_fetched_though_its_last_late_poll_was_throttled(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate(POLLED)
        await world.run(HOUR)
        for _ in range(40):
            await world.run(HOUR)
            [row] = await rows(world, "SELECT late_poll_count FROM generations")
            if row["late_poll_count"] == 3:
                break
        world.upstream.poll_replies.append(httpx.Response(429, headers={"retry-after": "5"}))
        world.upstream.finish("task1")
        for _ in range(30):
            await world.run(HOUR)
        assert await status_of(world, generation["id"]) == "succeeded"


@pytest.mark.sqlite_only("its trigger is of SQLite")
async def test_a_generation_that_cannot_be_timed_out_holds_no_other(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.extend([httpx.ReadTimeout("slow")] * 3)
        ids = [(await world.generate())["id"] for _ in range(3)]
        sql = (
            "CREATE TRIGGER refuse BEFORE INSERT ON events "
            f"WHEN NEW.generation_id = '{ids[0]}' BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
        await world.app.database.apply(lambda c: c.execute(sql))
        await world.run(HOUR)
        await world.run()
        assert [await status_of(world, id_) for id_ in ids] == ["queued", "timed_out", "timed_out"]


async def test_a_number_beyond_64_bits_in_an_answer_is_stored_as_far_as_it_fits(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate(POLLED)
        odd = {"code": 10**30, "message": "odd"}
        world.upstream.poll_replies.append(httpx.Response(200, json=odd))
        world.upstream.finish("task1")
        for _ in range(20):
            await world.run(1)
        assert await status_of(world, generation["id"]) == "succeeded"


async def test_confirmations_take_at_most_half_while_polls_wait(tmp_path: Path) -> None:
    async with opened(tmp_path, poll_rate_per_second=10.0) as world:
        for _ in range(12):
            await world.generate()
        healthy = [(await world.generate(POLLED))["id"] for _ in range(5)]
        for number in range(13, 18):
            world.upstream.finish(f"task{number}")
        for second in range(6):
            for index in range(12):
                report = {"data": {"task_id": f"task{index + 1}", "status": "running"}}
                await world.call_back({**report, "second": second}, index=index)
            await world.run(1)
        assert {await status_of(world, id_) for id_ in healthy} == {"succeeded"}
        assert {f"task{number}" for number in range(1, 13)} <= {*world.upstream.polls}


async def test_with_one_token_at_a_time_confirmations_and_polls_take_turns(tmp_path: Path) -> None:
    async with opened(tmp_path, poll_rate_per_second=1.0) as world:
        for _ in range(2):
            await world.generate()
        await world.generate(POLLED)
        world.clock.advance(5)
        for index in range(2):
            await world.call_back(success_report(f"task{index + 1}"), index=index)
        for _ in range(3):
            await world.run(1)
        assert world.upstream.polls[:2] == ["task1", "task3"]


async def test_refreshes_spend_the_budget_and_only_a_share_of_it(tmp_path: Path) -> None:
    async with opened(tmp_path, poll_rate_per_second=10.0) as world:
        ids = [(await world.generate())["id"] for _ in range(60)]
        path = "/v1/generations/{}/refresh"
        await asyncio.gather(*(world.client.post(path.format(id_)) for id_ in ids))
        assert len(world.upstream.polls) <= 7
        world.clock.advance(1)
        before = len(world.upstream.polls)
        await asyncio.gather(*(world.client.post(path.format(id_)) for id_ in ids))
        assert len(world.upstream.polls) - before <= 10
