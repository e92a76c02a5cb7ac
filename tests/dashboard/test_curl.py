"""The commands that pages show: each does what its page or button does, with the same answer."""

import httpx
import pytest

from service.dashboard.acts import ACTS, Act
from service.dashboard.app import NOTICES
from service.dashboard.pages import PARTS, Page
from tests.contract.scenes import Ids, populate
from tests.dashboard.browser import Browser, commands, text_of
from tests.dashboard.test_pages import path_of
from tests.harness import Harness

WRITES = {"-X", "-d"}
# Where a button is that is not on the page of its noun.
PLACES = {
    "replays.create": "/dead-letters",
    "subscribers.create": "/subscribers",
    "keys.create": "/keys",
    "keys.revoke": "/keys",
}
FIELDS = {
    "subscribers.create": {"url": "https://hooks.example.com/genhook"},
    "keys.create": {"name": "reader", "scopes": "read"},
}


async def ready(world: Harness, act: Act) -> tuple[str, dict[str, str]]:
    """Make the act possible; return the id it is about, and the fields of its form."""
    ids = await populate(world)
    noun, _, name = act.name.partition(".")
    fields = dict(FIELDS.get(act.name, {}))
    if act.name in ("generations.refresh", "generations.cancel"):
        return (await world.generate())["id"], fields
    if act.name == "subscribers.resume":
        path = f"/v1/subscribers/{ids['sub']}"
        assert (await world.client.patch(path, json={"status": "paused"})).is_success
    if act.name == "replays.create":
        assert (await world.client.post(f"/v1/replays/{ids['rpl']}/cancel")).is_success
        span = {"since": "2026-11-18T00:00", "until": "2026-12-18T00:00"}
        fields = {"subscriber_id": ids["sub"], "only": "dead", "confirmed": "yes"}
        return "", {**fields, **span}
    if name == "create":
        return "", fields
    if act.name == "generations.retry":
        return ids["canceled"], fields
    of = {"generations": "gen", "subscribers": "sub", "deliveries": "dlv", "replays": "rpl"}
    return ids[of.get(noun, "key")], fields


async def offered(browser: Browser, act: Act, id_: str) -> str:
    """The command of a button, on the page where it is."""
    place = PLACES.get(act.name, f"/{act.path.split('/')[1]}/{id_}")
    url = f'"$GENHOOK_URL{act.api.replace("{id}", id_)}"'
    found = [
        each
        for each in commands(await browser.get(place))
        if url in each and WRITES & {*each.split()}
    ]
    found = [each for each in found if f"-X {act.method} " in each or act.method == "POST"]
    if act.method == "PATCH":  # Pausing and disabling differ by what they send.
        assert act.read
        found = [each for each in found if f'"{act.read({})["status"]}"' in each]
    if "rotate-secret" in act.api:  # So do rotating and replacing.
        is_replaced = act.name == "subscribers.replace-secret"
        found = [each for each in found if ('"overlap_seconds":0' in each) is is_replaced]
    [command] = found
    return command


async def run_gets(browser: Browser, page: httpx.Response) -> None:
    """Run what a page shows of reading."""
    for command in commands(page):
        if not WRITES & {*command.split()}:
            answer = await browser.run(command)
            assert answer.status_code == 200, (command, answer.text)


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.name)
async def test_the_command_of_a_button_is_answered_as_its_form_is(
    world: Harness, browser: Browser, act: Act
) -> None:
    id_, _ = await ready(world, act)
    by_curl = await browser.run(await offered(browser, act, id_))
    assert by_curl.is_success, by_curl.text
    id_, fields = await ready(world, act)  # Another one, in the same state.
    by_form = await browser.post(act.path.replace("{id}", id_), **fields)
    if not act.result:
        page = await browser.follow(by_form)
        assert NOTICES[act.name] in text_of(page)
        await run_gets(browser, page)
        return
    assert by_form.status_code == 200, text_of(by_form)
    [command] = commands(by_form)
    again = await browser.run(command)
    assert again.status_code == by_curl.status_code, again.text
    assert again.json().keys() == by_curl.json().keys()


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        ("/generations/{gen}/cancel", {}, 409),
        ("/generations/{canceled}x/retry", {}, 404),
        ("/subscribers/create", {"url": "nothing"}, 422),
        ("/replays/create", {"subscriber_id": "{sub}", "since": "2026-11-18T00:00",
                             "until": "2026-12-18T00:00", "confirmed": "yes"}, 409),
        ("/keys/create", {"name": "", "scopes": "read"}, 422),
    ],
)  # fmt: skip
async def test_the_command_of_an_act_that_was_refused_is_refused_for_the_same_reason(
    world: Harness, browser: Browser, path: str, fields: dict[str, str], status: int
) -> None:
    ids = await populate(world)
    filled = {name: value.format(**ids) for name, value in fields.items()}
    page = await browser.post(path.format(**ids), **filled)
    assert page.status_code == status, text_of(page)
    command, *_ = commands(page)  # The first one; the page may have needed others.
    answer = await browser.run(command)
    assert answer.status_code == status, answer.text
    assert answer.json()["detail"] in text_of(page)


@pytest.mark.parametrize("page", PARTS, ids=lambda page: page.path)
async def test_a_part_shows_no_command_and_the_page_that_asks_for_it_shows_its_calls(
    world: Harness, browser: Browser, page: Page
) -> None:
    ids: Ids = await populate(world)
    part = await browser.get(path_of(page, ids), HX_Request="true")
    assert part.status_code == 200
    assert commands(part) == []
    overview = await browser.get()
    assert page.path.replace("{id}", ids["sub"]) in overview.text
    assert "/stats" in " ".join(commands(overview))
    await run_gets(browser, overview)


@pytest.mark.parametrize("path", ["/generations", "/deliveries", "/dead-letters", "/callbacks"])
async def test_an_open_page_that_asks_again_shows_commands_that_run(
    world: Harness, browser: Browser, path: str
) -> None:
    await populate(world)
    before = await browser.get(path)
    again = await browser.get(f"{path}?seen=0&hosts=https://cdn.example", HX_Request="true")
    assert again.status_code == 200
    assert set(commands(again)) <= set(commands(before)), "the page shows what it asks for"
    await run_gets(browser, again)
