"""The pages offer what the reader's key and the API allow, and nothing that is refused."""

import re
from typing import Any

import pytest

from service.delivery.retry import DEFAULT_RETRY_SECONDS
from tests.contract.scenes import NOTIFY_URL, REFUSING_URL, Ids, populate
from tests.dashboard.browser import Browser, links, text_of
from tests.harness import Harness

OPTION = re.compile(r'<option value="(sub_\w+)?"( selected)?>')


@pytest.fixture
async def ids(world: Harness) -> Ids:
    return await populate(world)


async def reader_with(world: Harness, *scopes: str) -> Browser:
    key = await world.client.post("/v1/keys", json={"name": "reader", "scopes": scopes})
    reader = Browser(world)
    assert (await reader.sign_in(key.json()["key"])).status_code == 303
    return reader


async def notified(world: Harness) -> str:
    """The id of the subscriber of a `notify_url`, which refused an event."""
    world.subscribers.answers[NOTIFY_URL].extend([410] * 20)
    generation = await world.generate(notify_url=NOTIFY_URL)
    world.upstream.fail(f"task{len(world.upstream.creates)}")
    await world.run(60)
    rows = (await world.get("/v1/deliveries", generation_id=generation["id"]))["data"]
    own = {each["id"] for each in (await world.get("/v1/subscribers"))["data"]}
    [id_] = {each["subscriber_id"] for each in rows} - own
    return str(id_)


async def test_the_api_says_which_subscriber_is_that_of_a_notify_url(
    world: Harness, ids: Ids
) -> None:
    assert (await world.get(f"/v1/subscribers/{await notified(world)}"))["for_notify_url"] is True
    assert (await world.get(f"/v1/subscribers/{ids['sub']}"))["for_notify_url"] is False


async def test_the_subscriber_of_a_notify_url_has_no_button_that_the_api_refuses(
    world: Harness, browser: Browser
) -> None:
    id_ = await notified(world)
    page = await browser.get(f"/subscribers/{id_}")
    acts = {link.rpartition("/")[2] for link in links(page) if f"/subscribers/{id_}/" in link}
    assert acts == {"test", "resume", "stats", "delete"}  # It is disabled: it answered 410.
    assert "Only its status can change" in text_of(page)
    edit = await browser.follow(await browser.get(f"/subscribers/{id_}/edit"))
    assert edit.url.path == f"/dashboard/subscribers/{id_}"
    for act in ("resume", "pause", "disable", "test", "delete"):
        answer = await browser.post(f"/subscribers/{id_}/{act}")
        assert answer.status_code < 400, (act, answer.text)


async def test_dead_letters_of_a_notify_url_are_replayed_to_nobody_else(
    world: Harness, browser: Browser, ids: Ids
) -> None:
    id_ = await notified(world)
    page = await browser.get(f"/dead-letters?subscriber_id={id_}")
    assert page.status_code == 200
    assert "/dashboard/replays/create" not in links(page)
    assert "this is none of them" in text_of(page)


async def test_a_replay_goes_to_the_subscriber_that_was_chosen_among_any_number(
    world: Harness, browser: Browser
) -> None:
    first = await world.subscribe(REFUSING_URL)
    for index in range(101):
        await world.subscribe(f"http://127.0.0.1:7/{index}")
    page = await browser.get(f"/dead-letters?subscriber_id={first['id']}")
    assert [id_ for id_, is_chosen in OPTION.findall(page.text) if is_chosen] == [first["id"]]


async def test_the_replay_that_is_offered_reaches_the_dead_letters_that_are_shown(
    world: Harness, browser: Browser, ids: Ids
) -> None:
    await world.run(9 * 86_400)  # Later than the span that is offered otherwise.
    await browser.sign_in()
    [dead] = {
        each["subscriber_id"] for each in (await world.get("/v1/deliveries", status="dead"))["data"]
    }
    page = await browser.get("/dead-letters")
    assert [id_ for id_, is_chosen in OPTION.findall(page.text) if is_chosen] == [dead]
    fields = dict(re.findall(r'name="(since|until)" required value="([^"]+)"', page.text))
    replay = await browser.follow(
        await browser.post(
            "/replays/create", subscriber_id=dead, only="dead", confirmed="yes", **fields
        )
    )
    count = len((await world.get("/v1/deliveries", status="dead", limit=100))["data"])
    assert f"of {count} events" in text_of(replay)


async def test_nobody_is_chosen_where_the_first_dead_letter_cannot_be_replayed(
    world: Harness, browser: Browser
) -> None:
    await world.subscribe()
    world.subscribers.answers[NOTIFY_URL].extend([500] * 100)
    await world.generate(notify_url=NOTIFY_URL)
    world.upstream.fail("task1")
    await world.run(60)
    for seconds in DEFAULT_RETRY_SECONDS:
        await world.run(seconds * 1.3 + 60)
    await browser.sign_in()
    page = await browser.get("/dead-letters")
    assert "generation.failed" in text_of(page)
    assert OPTION.findall(page.text)[0] == ("", "")
    assert not any(is_chosen for _id, is_chosen in OPTION.findall(page.text))


@pytest.mark.parametrize(
    ("scopes", "first"),
    [
        (["read"], "Overview"),
        (["submit"], "Workers"),
        (["manage"], "Subscribers"),
        (["operator"], "Callbacks"),
    ],
)
async def test_each_key_begins_at_a_page_that_it_may_see(
    world: Harness, scopes: list[str], first: str
) -> None:
    reader = await reader_with(world, *scopes)
    page = await reader.get()
    while page.status_code == 303:
        page = await reader.follow(page)
    assert page.status_code == 200
    assert f"<h1>{first}" in page.text


async def test_a_key_that_only_manages_sees_subscribers_and_no_link_that_is_refused(
    world: Harness, ids: Ids
) -> None:
    reader = await reader_with(world, "manage")
    for path in (
        "/subscribers",
        f"/subscribers/{ids['sub']}",
        "/replays",
        f"/replays/{ids['rpl']}",
    ):
        page = await reader.get(path)
        assert page.status_code == 200, text_of(page)
        assert 'hx-trigger="load' not in page.text
        for link in {each for each in links(page) if "/static/" not in each}:
            assert (await reader.client.get(link)).status_code != 403, (path, link)


async def test_a_form_of_another_sign_in_says_what_to_do_and_blames_no_key(
    browser: Browser,
) -> None:
    answer = await browser.post("/subscribers/create", "stale", url="http://127.0.0.1:7/")
    assert answer.status_code == 403
    assert "The form is not of this sign-in. Go back" in text_of(answer)
    assert "Your key" not in text_of(answer)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/dead-letters", "There are no dead letters."),
        ("/deliveries", "There are no deliveries yet. They go to subscribers ."),
        ("/deliveries?status=dead", "Nothing matches on this page of the list. Show all ."),
        ("/callbacks?verdict=accepted", "Nothing matches on this page of the list. Show all ."),
        ("", "of the latest none waited"),
    ],
)
async def test_an_empty_list_has_words_and_says_what_to_do_next(
    browser: Browser, path: str, words: str
) -> None:
    assert words in text_of(await browser.get(path))


async def test_what_is_wrong_with_a_field_stands_apart_from_its_limits(browser: Browser) -> None:
    answer = await browser.post("/models/try", model="imagen4-fast", **{"input.prompt": "ab"})
    assert "must have at least 3 characters. From 3 to" in re.sub("<[^>]+>", "", answer.text)


async def test_the_address_of_a_form_is_no_page_and_says_so(browser: Browser, ids: Ids) -> None:
    answer = await browser.get(f"/subscribers/{ids['sub']}/pause")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert "it is no page" in text_of(answer)


@pytest.mark.parametrize("noun", ["generations", "subscribers"])
async def test_an_open_page_of_what_was_deleted_loads_anew(
    world: Harness, browser: Browser, ids: Ids, noun: str
) -> None:
    path = {
        "generations": f"/generations/{ids['gen']}",
        "subscribers": f"/subscribers/{ids['sub']}",
    }
    part = path[noun] + "/health" * (noun == "subscribers")
    assert (await world.client.delete(f"/v1{path[noun]}")).is_success
    answer = await browser.get(part, HX_Request="true")
    assert (answer.status_code, answer.headers["hx-refresh"]) == (204, "true")
    assert (await browser.get(path[noun])).status_code == 404


@pytest.mark.parametrize("blank", [" ", "\u200b", "\u202e\u2066", "\t \u3000"])
async def test_a_name_that_nobody_sees_gives_way_to_the_url(
    world: Harness, browser: Browser, blank: str
) -> None:
    subscriber: dict[str, Any] = await world.subscribe(description=blank)
    for path in ("", "/subscribers"):
        page = await browser.get(path)
        [shown] = re.findall(rf'href="[^"]*{subscriber["id"]}" dir="auto">([^<]*)<', page.text)
        assert shown == subscriber["url"]


async def test_a_subscriber_of_any_length_is_cut_in_lists_and_whole_on_its_page(
    world: Harness, browser: Browser
) -> None:
    url, name = "http://127.0.0.1:7/" + "u" * 2_000, "n" * 500
    subscriber = await world.subscribe(url, description=name)
    for path in ("", "/subscribers", f"/subscribers/{subscriber['id']}"):
        page = (await browser.get(path)).text
        assert re.search(rf'class="(muted )?long"[^>]*>{name}', page), path
    assert f'<dd dir="auto">{url}</dd>' in page
    assert f'<dd class="text" dir="auto">{name}</dd>' in page
