"""The form of a replay: it offers every subscriber, keeps its values, and asks before it acts."""

import re
from typing import Any

import httpx
import pytest

from service.dashboard import calls
from service.model.clock import rfc3339
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


def hidden_of(page: httpx.Response) -> dict[str, str]:
    """The fields of the form that asks: what its button posts."""
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page.text))
    del fields["token"]
    return fields


async def test_what_is_confirmed_is_what_was_counted(
    world: Harness, browser: Browser, ids: Ids
) -> None:
    fields = {"subscriber_id": ids["sub"], "only": "all", **SPAN}
    asked = await browser.post("/replays/create", **fields)
    [count] = re.findall(r"<h1>Replay (\d+) events\?</h1>", asked.text)
    await world.run(1)
    generation = await world.generate()
    assert (await world.client.post(f"/v1/generations/{generation['id']}/cancel")).is_success
    await world.run(1)
    begun = await browser.post("/replays/create", confirmed="yes", **hidden_of(asked))
    assert f"of {count} events" in text_of(await browser.follow(begun))
    again = await browser.post("/replays/create", **fields)
    [more] = re.findall(r"<h1>Replay (\d+) events\?</h1>", again.text)
    assert int(more) > int(count)
    edited = await browser.post("/replays/create", edit="yes", **hidden_of(again))
    assert f'name="until" required value="{SPAN["until"]}"' in edited.text


async def test_a_count_or_a_replay_of_which_nobody_knows_is_sent_again_as_it_was(
    world: Harness, browser: Browser, ids: Ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[calls.Reply] = []
    real = calls.send

    async def send(api: Any, call: calls.ApiCall, headers: Any, state: Any) -> calls.Reply:
        is_replay = call.method == "POST" and call.target == "/v1/replays"
        return answers.pop() if is_replay and answers else await real(api, call, headers, state)

    monkeypatch.setattr("service.dashboard.visit.send", send)
    fields = {"subscriber_id": ids["sub"], "only": "all", **SPAN, "once": "a" * 32}
    detail = "It may have been stored: repeat it with the same Idempotency-Key."
    unknown = {"code": "storage_unavailable", "title": "Not now", "detail": detail, "status": 503}
    answers.append(calls.Reply(503, unknown))
    asked = await browser.post("/replays/create", **fields)
    assert "Repeat the request" in asked.text
    asked = await browser.post("/replays/create", **hidden_of(asked))
    assert "events?</h1>" in asked.text
    answers.append(calls.Reply(503, unknown))
    begun = await browser.post("/replays/create", confirmed="yes", **hidden_of(asked))
    again = await browser.post("/replays/create", **hidden_of(begun))
    assert again.status_code == 303

    running = {**unknown, "code": "idempotency_key_in_use", "status": 409}
    monkeypatch.setattr("service.dashboard.visit._pauses", lambda _settings: [])
    answers.append(calls.Reply(409, running))
    begun = await browser.post("/replays/create", confirmed="yes", **hidden_of(asked))
    assert "Repeat the request" in begun.text
    assert "Nothing was sent" not in begun.text


async def test_an_end_in_the_past_stays_as_it_was_chosen(
    world: Harness, browser: Browser, ids: Ids
) -> None:
    fields = {"subscriber_id": ids["sub"], "only": "all", **SPAN}
    await world.run(120)
    now = rfc3339(world.clock())
    asked = await browser.post("/replays/create", **{**fields, "until": now})
    assert hidden_of(asked)["counted_until"] == now


async def test_a_disabled_subscriber_is_named_and_not_asked_about(
    world: Harness, browser: Browser, ids: Ids
) -> None:
    fields = {"subscriber_id": ids["sub"], "only": "all", **SPAN}
    await browser.post(f"/subscribers/{ids['sub']}/disable")
    page = await browser.post("/replays/create", **fields)
    assert "The subscriber is disabled" in text_of(page)
    assert "Resume it first" in text_of(page)
    assert 'name="confirmed"' not in page.text
    assert 'name="edit"' in page.text


async def test_what_is_refused_keeps_the_form(world: Harness, browser: Browser, ids: Ids) -> None:
    fields = {"subscriber_id": ids["sub"], "only": "all", **SPAN}
    assert (await browser.post("/replays/create", confirmed="yes", **fields)).status_code == 303
    page = await browser.post("/replays/create", confirmed="yes", **fields)
    assert page.status_code == 409
    assert "A replay to this subscriber is running" in text_of(page)
    assert f'<option value="{ids["sub"]}" selected>' in page.text
    assert f'name="since" required value="{SPAN["since"]}"' in page.text
    assert await running(world) == 1
    page = await browser.post("/replays/create", **{**fields, "subscriber_id": f"sub_{32 * '0'}"})
    assert page.status_code == 404
    assert "Nothing was sent" in text_of(page)
    assert '<option value="">choose one</option>' in page.text
    assert f'name="since" required value="{SPAN["since"]}"' in page.text


async def test_clicks_count_once_and_another_form_or_a_later_one_counts_again(
    world: Harness, browser: Browser, ids: Ids
) -> None:
    async def counts() -> int:
        return sum(each["dry_run"] for each in (await world.get("/v1/replays"))["data"])

    fields = {"subscriber_id": ids["sub"], "only": "all", **SPAN, "once": "c0ffee"}
    before = await counts()
    asked = [await browser.post("/replays/create", **fields) for _ in range(3)]
    assert [page.status_code for page in asked] == [200, 200, 200]
    assert await counts() == before + 1
    assert (await browser.post("/replays/create", **{**fields, "only": "dead"})).is_success
    assert await counts() == before + 2
    await world.run(60)
    assert (await browser.post("/replays/create", **fields)).is_success
    assert await counts() == before + 3
    begun = await browser.post("/replays/create", **fields, confirmed="yes")
    assert begun.status_code == 303
