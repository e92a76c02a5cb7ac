"""What waited over time, on the overview: the oldest delivery, open and overdue generations."""

import re
from typing import Any

from service.dashboard.backlog import POINTS, draw_backlog, draw_open
from service.model.clock import DAY, HOUR, MINUTE, SECOND, rfc3339
from tests.dashboard.browser import Browser, text_of
from tests.harness import SUBSCRIBER_URL, Harness

NOW = 1_795_000_000_000


def row(name: str, created: int, delivered: int | None, status: str = "delivered") -> Any:
    at = None if delivered is None else rfc3339(NOW - delivered)
    return {"id": name, "status": status, "created_at": rfc3339(NOW - created), "delivered_at": at}


def ages_of(plot: Any) -> list[str]:
    return [bar.text.partition(": ")[2] for bar in plot["bars"]]


def test_the_age_grows_until_the_delivery_and_dead_letters_do_not_count() -> None:
    first = row("a", 47 * MINUTE, 7 * MINUTE)
    plot = draw_backlog([row("c", 50 * SECOND, None, "dead"), row("b", MINUTE, 0), first], [], NOW)
    ages = ages_of(plot)
    assert len(ages) == POINTS
    assert ages[:3] == ["0 ms", "1 min 0 s", "2 min 0 s"]
    assert ages[39:42] == ["39 min 0 s", "0 ms", "0 ms"]
    assert (plot["longest"], plot["now"]) == (39 * 60, 0)


def test_one_that_is_pending_counts_up_to_now_though_it_is_older_than_the_latest() -> None:
    waits = row("old", 3 * DAY, None, "pending")
    plot = draw_backlog([row("b", HOUR, HOUR - SECOND)], [waits, waits], NOW)
    assert plot["now"] == plot["longest"] == 3 * DAY / SECOND
    assert plot["first"] == rfc3339(NOW - HOUR)
    assert draw_backlog([row("b", 9 * DAY, 0)], [], NOW)["first"] == rfc3339(NOW - DAY)
    assert draw_backlog([], [], NOW)["bars"] == []


async def test_the_overview_shows_how_long_a_delivery_waits(
    world: Harness, browser: Browser
) -> None:
    assert "Oldest undelivered none" in text_of(await browser.get())
    await world.subscribe(retry_schedule_seconds=[7_200])
    world.subscribers.answers[SUBSCRIBER_URL] += [500] * 2
    await world.generate()
    await world.run(1)
    world.clock.advance(600)
    page = await browser.get()
    assert re.search(r"Oldest undelivered 10 min \d s now", text_of(page))
    assert page.text.count("<title>2026-") >= POINTS


def generation(name: str, created: int, deadline: int, completed: int | None) -> Any:
    at = None if completed is None else rfc3339(NOW - completed)
    due = rfc3339(NOW - deadline)
    return {"id": name, "created_at": rfc3339(NOW - created), "deadline_at": due} | {
        "completed_at": at
    }


def counts_of(drawn: list[Any]) -> list[int]:
    return [int(bar.text.split(" ")[1]) for bar in drawn]


def test_open_generations_count_until_they_end_and_overdue_ones_from_their_deadline() -> None:
    ended = generation("a", 47 * MINUTE, 17 * MINUTE, 7 * MINUTE)
    waits = generation("b", 3 * DAY, 20 * MINUTE, None)
    plots = draw_open([ended], [waits], NOW)
    opened, overdue = counts_of(plots["open"]), counts_of(plots["overdue"])
    assert len(opened) == len(overdue) == POINTS
    assert opened == [2] * 40 + [1] * 8
    assert overdue == [0] * 27 + [1] * 3 + [2] * 10 + [1] * 8
    assert [bar.is_bad for bar in plots["overdue"]] == [count > 0 for count in overdue]
    assert not any(bar.is_bad for bar in plots["open"])
    assert plots["first"] == rfc3339(NOW - 47 * MINUTE)
    assert draw_open([], [], NOW)["open"] == []


async def test_the_overview_draws_what_is_open_and_overdue(
    world: Harness, browser: Browser
) -> None:
    assert "Open generations over time" not in (await browser.get()).text
    for _ in range(2):
        await world.generate()
    canceled = await world.generate()
    world.clock.advance(1)
    await world.client.post(f"/v1/generations/{canceled['id']}/cancel")
    world.clock.advance(600)
    page = await browser.get()
    titles = re.findall(r"<title>(2026-\S+: \d+ (?:open|overdue))</title>", page.text)
    assert len(titles) == 2 * POINTS
    assert titles[0].endswith(" 3 open")
    assert titles[POINTS - 1].endswith(" 2 open")
    assert titles[-1].endswith(" 0 overdue")
    world.clock.advance(7_200)  # Nobody works, so they stay open behind their deadline.
    page = await browser.get()
    assert ": 2 overdue</title>" in page.text
    assert "2 overdue" in text_of(page)
