"""Every page of the router's table: what it shows, to whom, and which API calls it is made of."""

import re
from typing import Any

import pytest

from service.api.routes import OPERATIONS
from service.dashboard.acts import ACTS
from service.dashboard.app import FOLDER, STATIC
from service.dashboard.pages import PAGES, PARTS, Page
from service.model.errors import StorageError
from tests.contract.scenes import Ids, another_tenant, populate
from tests.dashboard.browser import Browser, commands, links, policy_of, text_of
from tests.harness import ADMIN_KEY, Harness
from tests.markup import Markup

NOUNS = {
    "generations": "gen",
    "subscribers": "sub",
    "deliveries": "dlv",
    "replays": "rpl",
    "callbacks": "cb",
    "keys": "key",
}
HOSTILE = (
    "<script>alert(1)</script>",
    "'\"><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }} {% raw %}",
    "منارة عند الغروب",
    "🦊🌲 a fox",
    "a harbour " * 500,
    "\u202eevil\u2066",
)


def path_of(page: Page, ids: Ids) -> str:
    noun = page.path.split("/")[1] if page.path else ""
    return page.path.replace("{id}", ids.get(NOUNS.get(noun, ""), ""))


@pytest.fixture
async def ids(world: Harness) -> Ids:
    return await populate(world)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path or "/")
async def test_a_page_is_shown_and_its_calls_can_be_made_with_curl(
    world: Harness, ids: Ids, browser: Browser, page: Page
) -> None:
    if page.path == "/dead-letters":  # One replay to a subscriber runs at a time.
        assert (await world.client.post(f"/v1/replays/{ids['rpl']}/cancel")).is_success
    answer = await browser.get(path_of(page, ids))
    assert answer.status_code == 200, text_of(answer)
    assert ADMIN_KEY not in answer.text
    shown = commands(answer)
    assert shown or page.path == "/models/try"
    for command in shown:
        assert '"Authorization: Bearer $GENHOOK_API_KEY"' in command
        done = await browser.run(command)
        assert done.is_success, (command, done.text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path or "/")
async def test_a_page_runs_and_loads_nothing_inline_or_from_elsewhere(
    world: Harness, ids: Ids, browser: Browser, page: Page
) -> None:
    answer = await browser.get(path_of(page, ids))
    policy = policy_of(answer)
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
    assert set(policy["img-src"].split()) <= {"'self'", "https://cdn.example"}
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "same-origin"
    markup = Markup(answer.text)
    names = {name for _tag, name, _value in markup.attributes}
    assert not any(name.startswith("on") or name == "style" for name in names)
    assert "style" not in markup.tags
    assert markup.tags.count("script") == 2
    assert markup.tags.count("h1") == markup.tags.count("main") == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path or "/")
async def test_a_page_holds_one_primary_act_at_most(
    world: Harness, ids: Ids, browser: Browser, page: Page
) -> None:
    answer = await browser.get(path_of(page, ids))
    classes = [v or "" for _t, name, v in Markup(answer.text).attributes if name == "class"]
    assert sum("primary" in value.split() for value in classes) <= 1


@pytest.mark.parametrize(
    "page", [each for each in PAGES if "{id}" in each.path], ids=lambda page: page.path
)
async def test_pages_of_another_tenant_are_not_there(world: Harness, ids: Ids, page: Page) -> None:
    async with await another_tenant(world) as client:
        secret = client.headers["authorization"].removeprefix("Bearer ")
    stranger = Browser(world)
    await stranger.sign_in(secret)
    answer = await stranger.get(path_of(page, ids))
    assert answer.status_code == 404
    assert "belongs to somebody else" in text_of(answer)
    assert answer.headers["x-request-id"] in text_of(answer)  # The log has both under it.


def test_pages_and_acts_ask_for_the_scope_of_their_api_call() -> None:
    scopes = {(each.method, each.path): each.scope for each in OPERATIONS}
    for act in ACTS:
        assert scopes[act.method, act.api] == act.scope, act.path
    for page in (*PAGES, *PARTS):
        if page.scope == "open":
            continue  # It has parts that a key without the scope does not see.
        own, first = f"/v1{page.path}", page.path.split("/")[1] if page.path else "generations"
        path = own if ("GET", own) in scopes else f"/v1/{first}"
        if ("GET", path) in scopes:
            assert scopes["GET", path] == page.scope, page.path


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.name)
async def test_without_the_scope_there_is_no_button_and_the_form_is_refused(
    world: Harness, ids: Ids, act: Any
) -> None:
    key = await world.client.post("/v1/keys", json={"name": "r", "scopes": ["read"]})
    reader = Browser(world)
    await reader.sign_in(key.json()["key"])
    noun = act.path.split("/")[1]
    path = act.path.replace(
        "{id}", {**ids, "key": key.json()["id"]}[{"keys": "key"}.get(noun) or NOUNS[noun]]
    )
    for page in PAGES:
        answer = await reader.get(path_of(page, ids))
        assert f"/dashboard{path}" not in links(answer)
    answer = await reader.post(path, url="https://example.com", name="x", scopes="read")
    assert answer.status_code == 403
    assert act.scope in text_of(answer)


@pytest.mark.parametrize("prompt", HOSTILE, ids=range(len(HOSTILE)))
async def test_the_texts_of_strangers_are_shown_as_texts(
    world: Harness, browser: Browser, prompt: str
) -> None:
    generation = await world.generate(
        input={"prompt": prompt[:5000]}, metadata={"note": prompt[:500]}
    )
    world.upstream.fail("task1", message=prompt)
    await world.call_back({"data": {"task_id": "task1", "status": "completed", "said": prompt}})
    await world.run(1)
    [callback] = (await world.get("/v1/callbacks"))["data"]
    for path in (
        "/generations",
        f"/generations/{generation['id']}",
        f"/callbacks/{callback['id']}",
    ):
        answer = await browser.get(path)
        markup = Markup(answer.text)
        assert markup.tags.count("script") == 2
        assert not any(name == "onerror" for _tag, name, _value in markup.attributes)
        assert "49" not in "".join(t for t in markup.texts if "7 * 7" in t)
    page = await browser.get(f"/generations/{generation['id']}")
    assert " ".join(prompt[:5000].split()) in text_of(page)


async def test_only_the_hosts_of_the_files_shown_are_in_the_policy(
    world: Harness, browser: Browser
) -> None:
    for index, url in enumerate(
        (
            "https://cdn.example:8443/a.png",
            "javascript:alert(1)",
            "https://x.example;script-src/a.png",
        )
    ):
        await world.generate()
        world.upstream.finish(f"task{index + 1}", url)
        await world.run(60)
    answer = await browser.get("/generations")
    assert policy_of(answer)["img-src"] == "'self' https://cdn.example:8443"
    assert (await browser.get()).headers["content-security-policy"].count("cdn.example") == 0
    for generation in (await world.get("/v1/generations"))["data"]:
        page = await browser.get(f"/generations/{generation['id']}")
        assert 'href="javascript' not in page.text
        assert 'src="javascript' not in page.text
        assert "x.example" not in page.headers["content-security-policy"]


async def test_an_open_generation_asks_again_and_an_ended_one_is_loaded_anew(
    world: Harness, browser: Browser
) -> None:
    generation = await world.generate()
    path = f"/generations/{generation['id']}"
    assert 'hx-trigger="every' in (await browser.get(path)).text
    assert (await browser.get(path, HX_Request="true")).status_code == 200
    [seen] = re.findall(r"\?seen=[a-z0-9.]+", (await browser.get(path)).text)
    assert (await browser.get(path + seen, HX_Request="true")).status_code == 204
    world.upstream.finish("task1")
    await world.run(60)
    answer = await browser.get(path, HX_Request="true")
    assert answer.headers["hx-refresh"] == "true"
    page = await browser.get(path)
    assert 'hx-trigger="every' not in page.text
    assert 'src="https://cdn.example/1.png"' in page.text


async def test_the_overview_asks_for_the_health_of_each_subscriber(
    world: Harness, ids: Ids, browser: Browser
) -> None:
    overview = await browser.get()
    rows = re.findall(r'<tr hx-get="dashboard(/subscribers/\w+/health)"', overview.text)
    assert len(rows) == 2
    dead = [text_of(await browser.get(row, HX_Request="true")) for row in rows]
    assert any("500" not in text and "dead" not in text.lower() for text in dead)
    assert all("active" in text for text in dead)
    assert (await browser.get(rows[0])).status_code == 303  # Without htmx: to its page.


async def test_files_are_named_by_their_content_and_kept(world: Harness, browser: Browser) -> None:
    found = set()
    for link in links(await browser.get()):
        if "/static/" in link:
            answer = await browser.client.get(link)
            assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
            found.add(answer.content)
            assert re.search(r"\.[0-9a-f]{12}\.", link)
    assert found >= {(FOLDER / "static" / name).read_bytes() for name in ("style.css", "icon.svg")}
    assert len(STATIC) == 4
    assert (await browser.get("/static/style.css")).status_code == 404
    assert (await browser.get("/static/..%2Fapp.py")).status_code == 404


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/nothing", 404),
        ("/generations/gen_nothing", 404),
        ("/generations?status=wild", 400),
        ("/generations?name=a&value=" + "x" * 501, 400),
        ("/subscribers/create", 404),
        ("/generations?from=yesterday", 400),
        ("/models/try?model=nobody", 404),
    ],
)
async def test_an_error_is_a_page_with_words(browser: Browser, path: str, status: int) -> None:
    answer = await browser.get(path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "script-src 'self'" in answer.headers["content-security-policy"]


async def test_a_wall_has_pages_and_filters(world: Harness, browser: Browser) -> None:
    for index in range(26):
        await world.generate(metadata={"order": str(index)})
    first = await browser.get("/generations")
    assert first.text.count('class="card"') == 24
    [older] = re.findall(r'rel="next" href="([^"]+)"', first.text)
    second = await browser.get("/generations" + older.rpartition("generations")[2])
    assert second.text.count('class="card"') == 2
    one = await browser.get("/generations?name=order&value=7&status=&from=2026-11-01T00:00")
    assert one.text.count('class="card"') == 1
    none = await browser.get("/generations?status=failed")
    assert "Nothing matches" in text_of(none)


async def test_operators_see_the_usage_and_the_keys_of_any_tenant(
    world: Harness, browser: Browser
) -> None:
    async with await another_tenant(world) as client:
        world.client, own = client, world.client
        await world.generate("flux-2")
        world.upstream.finish("task1")
        await world.run(60)
        world.client = own
    assert "flux-2" in text_of(await browser.get("/usage?tenant=other"))
    assert "other" in text_of(await browser.get("/keys?tenant=other"))
    assert "flux-2" not in text_of(await browser.get("/usage"))


async def test_an_operator_looks_at_a_tenant_by_a_key_of_it_which_the_tenant_sees(
    world: Harness, browser: Browser, capsys: pytest.CaptureFixture[str]
) -> None:
    async with await another_tenant(world) as client:
        ids = await populate(world, client)
        path = f"/generations/{ids['gen']}"
        assert (await browser.get(path)).status_code == 404
        assert "To look at what a tenant has" in text_of(await browser.get("/keys"))
        made = await browser.post("/keys/create", name="a look", scopes="read", tenant="other")
        [key] = re.findall(r"ghk_[\w-]{32,}", text_of(made))
        looker = Browser(world)
        await looker.sign_in(key)
        assert (await looker.get(path)).status_code == 200
        for page in PAGES:
            if page.scope == "read" and "{id}" not in page.path:
                assert (await looker.get(page.path)).status_code == 200, page.path
        refused = await looker.post(f"{path}/delete")
        assert refused.status_code == 403
        [own] = [k for k in (await client.get("/v1/keys")).json()["data"] if k["name"] == "a look"]
        assert (await client.delete(f"/v1/keys/{own['id']}")).status_code == 204
        assert (await looker.get(path)).status_code == 303  # To sign in.
    [line] = [each for each in capsys.readouterr().err.splitlines() if own["id"] in each][:1]
    assert '"act":"key.create"' in line
    assert '"key_id":"key_admin"' in line
    assert '"of_tenant":"other"' in line


async def test_a_fault_of_ours_is_a_page_with_words_and_a_line_in_the_log(
    world: Harness,
    browser: Browser,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def fail(_visit: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("service.dashboard.sign_in.show_sign_in", fail)
    await world.restart()
    answer = await Browser(world).get("/sign-in")
    assert answer.status_code == 500
    assert "Something went wrong here" in text_of(answer)
    assert "ZeroDivisionError" not in answer.text
    assert "page.failed" in capsys.readouterr().err


async def test_a_database_that_fails_is_a_page_with_words(
    world: Harness, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_args: object) -> None:
        raise StorageError("gone")

    monkeypatch.setattr(type(world.app.database), "read", fail)
    answer = await browser.get("/generations")
    assert answer.status_code == 503
    assert "The database does not answer" in text_of(answer)
