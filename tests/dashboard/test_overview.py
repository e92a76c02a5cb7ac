"""The numbers and plots of the overview, of a subscriber and of usage."""

import re

import pytest

from service.dashboard.account import DAYS_MAX, _fill
from service.dashboard.plots import HEIGHT, bars
from tests.contract.scenes import REFUSING_URL
from tests.dashboard.browser import Browser, text_of
from tests.harness import Harness


def test_a_plot_of_shares_is_as_high_as_the_whole() -> None:
    half, none = bars([0.5, 0], ["a", "b"], top=1)
    assert half.height == (HEIGHT - 2) / 2
    assert none.height < 1


async def test_half_of_all_is_half_as_high_on_the_overview(
    world: Harness, browser: Browser
) -> None:
    for end in (world.upstream.finish, world.upstream.fail):
        await world.generate()
        end(f"task{len(world.upstream.creates)}")
        await world.run(60)
    page = (await browser.get()).text
    [bar] = re.findall(r'height="([\d.]+)" class="bad"><title>[\d-]+: 50%', page)
    assert float(bar) == (HEIGHT - 2) / 2


async def test_what_is_overdue_begins_with_what_was_due_first(
    world: Harness, browser: Browser
) -> None:
    due = []
    for _ in range(3):
        due.append(await world.generate())
        world.clock.advance(10)
    world.clock.advance(3 * 86_400)
    await browser.sign_in()
    page = await browser.get()
    shown = re.findall(r'<li><a class="id" href="dashboard/generations/(\w+)"', page.text)
    assert shown == [each["id"] for each in due]
    assert f"the oldest was due {due[0]['deadline_at'][:10]}" in text_of(page)


async def test_a_hundred_that_are_open_are_a_hundred_and_one_more_says_so(
    world: Harness, browser: Browser
) -> None:
    for _ in range(100):
        await world.generate()
    world.clock.advance(86_400)
    await browser.sign_in()
    page = text_of(await browser.get())
    assert "100 open 100 overdue" in page
    assert "These are 10 of 100." in page
    await world.generate()
    page = text_of(await browser.get())
    assert "100+ open" in page
    assert "+ overdue" in page
    assert "the oldest was due" not in page


async def test_the_overview_says_how_many_subscribers_there_are_and_shows_those_in_trouble_first(
    world: Harness, browser: Browser
) -> None:
    world.subscribers.answers[REFUSING_URL].extend([500] * 20)
    failing = await world.subscribe(REFUSING_URL)
    gone = await world.subscribe("http://127.0.0.1:7/gone")
    world.subscribers.answers["http://127.0.0.1:7/gone"].append(410)
    paused = await world.subscribe("http://127.0.0.1:7/paused")
    body = {"status": "paused"}
    assert (await world.client.patch(f"/v1/subscribers/{paused['id']}", json=body)).is_success
    newer = [await world.subscribe(f"http://127.0.0.1:7/{index}") for index in range(9)]
    await world.generate()
    world.upstream.fail("task1")
    await world.run(60)
    page = await browser.get()
    shown = re.findall(r'<tr hx-get="dashboard/subscribers/(\w+)/health"', page.text)
    rest = [each["id"] for each in reversed(newer)]
    assert shown == [gone["id"], failing["id"], paused["id"], *rest[:7]]
    assert "These are 10 of 12: first those that" in text_of(page)
    assert "All subscribers" in text_of(page)
    live = await browser.get(HX_Request="true")
    assert "Subscribers" not in text_of(live).partition("Open")[2]


async def test_a_plot_without_a_value_is_not_drawn(world: Harness, browser: Browser) -> None:
    subscriber = await world.subscribe()
    page = await browser.get(f"/subscribers/{subscriber['id']}/stats")
    assert "<svg" not in page.text


@pytest.mark.parametrize(
    ("days", "count"),
    [
        ({}, 0),
        ({"2026-11-30": 4}, 1),
        ({"2026-11-30": 4, "2026-12-03": 1}, 4),
        ({"1999-01-01": 4, "2026-12-03": 1}, DAYS_MAX),
    ],
)
def test_days_on_which_nothing_was_used_have_their_place(days: dict[str, int], count: int) -> None:
    filled = _fill(days)
    assert len(filled) == count
    assert dict(filled).items() >= {d: n for d, n in days.items() if d > "2026"}.items()
    assert [day for day, _ in filled] == sorted(day for day, _ in filled)
