"""The form of a replay: it offers every subscriber, keeps its values, and asks before it acts."""

import re

import pytest

from tests.contract.scenes import Ids, populate
from tests.dashboard.browser import Browser, text_of
from tests.harness import Harness

SPAN = {"since": "2026-11-18T00:00", "until": "2026-12-18T00:00"}
OPTION = re.compile(r'<option value="(sub_\w+)"(?: selected)?>([^<]*)</option>')


@pytest.fixture
async def ids(world: Harness) -> Ids:
    ids = await populate(world)
    assert (await world.client.post(f"/v1/replays/{ids['rpl']}/cancel")).is_success
    return ids


async def running(world: Harness) -> int:
    rows = (await world.get("/v1/replays"))["data"]
    return sum(each["status"] == "running" for each in rows)


async def test_each_subscriber_is_offered_and_told_apart_from_its_equals(
    world: Harness, browser: Browser
) -> None:
    made = [await world.subscribe(description="d" * 70) for _ in range(260)]
    offered = dict(OPTION.findall((await browser.get("/dead-letters")).text))
    assert offered.keys() == {each["id"] for each in made}
    assert len({*offered.values()}) == len(made)


async def test_a_replay_names_the_count_and_asks_before_it_sends(
    world: Harness, browser: Browser, ids: Ids
) -> None:
    fields = {"subscriber_id": ids["sub"], "only": "all", **SPAN}
    asked = await browser.post("/replays/create", **fields)
    assert asked.status_code == 200
    [count] = re.findall(r"<h1>Replay (\d+) events\?</h1>", asked.text)
    assert ids["sub"] in text_of(asked)
    assert "all events" in text_of(asked)
    assert await running(world) == 0
    again = await browser.post("/replays/create", edit="yes", **fields)
    assert 'value="2026-11-18T00:00"' in again.text
    assert f'<option value="{ids["sub"]}" selected>' in again.text
    assert '<option value="all" selected>' in again.text
    begun = await browser.follow(await browser.post("/replays/create", confirmed="yes", **fields))
    assert f"of {count} events" in text_of(begun)
    assert await running(world) == 1


async def test_a_wrong_value_keeps_the_form_and_marks_the_field(
    world: Harness, browser: Browser, ids: Ids
) -> None:
    wrong = {"subscriber_id": ids["sub"], "since": "2026-12-18T00:00", "until": SPAN["since"]}
    for confirmed in ({}, {"confirmed": "yes"}):
        page = await browser.post("/replays/create", only="all", **wrong, **confirmed)
        assert page.status_code == 422
        assert "Nothing was sent: 1 field is wrong." in text_of(page)
        assert re.findall(r'name="(\w+)"[^>]* aria-invalid', page.text) == ["until"]
        assert "must be after since" in text_of(page)
        assert 'name="since" required value="2026-12-18T00:00"' in page.text
        assert f'<option value="{ids["sub"]}" selected>' in page.text
