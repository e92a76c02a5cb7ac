"""The age of the oldest undelivered delivery over time, on the overview."""

import re
from typing import Any

from service.dashboard.backlog import POINTS, draw_backlog
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
