"""What pages do: each form makes one API call, and the page says what became of it."""

import asyncio
import re
from typing import Any, NoReturn
from urllib.parse import urljoin, urlsplit

import httpx
import msgspec
import pytest

from service.api import idempotency
from service.api.problem import Problem
from service.context import wait_for
from service.dashboard import visit
from service.dashboard.calls import ApiCall
from service.dashboard.models import _parse
from service.model.errors import StorageError
from tests.contract.scenes import populate
from tests.dashboard.browser import Browser, commands, policy_of, text_of, token_of
from tests.harness import SUBSCRIBER_URL, Harness

FORM = re.compile(r'<form[^>]* action="([^"]+/create)">(.*?)</form>', re.DOTALL)
CONFIRM = re.compile(r'name="once" value="([0-9a-f]+)"')


async def done(browser: Browser, path: str, **fields: str) -> httpx.Response:
    """Post a form, and go where it leads."""
    return await browser.follow(await browser.post(path, **fields))


async def test_a_subscriber_is_created_tested_paused_resumed_rotated_and_deleted(
    world: Harness, browser: Browser
) -> None:
    types = ["generation.succeeded", "generation.failed"]
    page = await browser.post(
        "/subscribers/create", url=SUBSCRIBER_URL, description="Shop", event_types=types
    )
    assert "whsec_" in page.text
    [subscriber] = (await world.get("/v1/subscribers"))["data"]
    assert (subscriber["description"], subscriber["event_types"]) == ("Shop", types)
    path = f"/subscribers/{subscriber['id']}"

    page = await browser.post(f"{path}/test")
    assert "The receiver took the test" in text_of(page)
    assert world.subscribers.event_types() == ["ping"]

    page = await done(browser, f"{path}/pause")
    assert "The subscriber is paused" in text_of(page)
    page = await done(browser, f"{path}/resume")
    assert (await world.get(f"/v1{path}"))["status"] == "active"

    page = await browser.post(f"{path}/rotate")
    secret = (await world.get(f"/v1{path}/secret"))["secret"]
    assert secret in text_of(page)

    page = await done(browser, f"{path}/delete")
    assert "The subscriber is deleted" in text_of(page)
    assert page.url.path == "/dashboard/subscribers"
    assert (await world.get("/v1/subscribers"))["data"] == []


async def test_a_rotation_shows_the_new_public_key_of_v1a(world: Harness, browser: Browser) -> None:
    subscriber = await world.subscribe(signature="v1a")
    page = await browser.post(f"/subscribers/{subscriber['id']}/rotate")
    shown = await world.get(f"/v1/subscribers/{subscriber['id']}/secret")
    assert f"Its public key: {shown['public_key']}" in text_of(page)


async def test_a_test_that_fails_says_why(world: Harness, browser: Browser) -> None:
    subscriber = await world.subscribe()
    world.subscribers.answers[SUBSCRIBER_URL].append(500)
    page = await browser.post(f"/subscribers/{subscriber['id']}/test")
    assert "The test failed The receiver answered 500" in text_of(page)


async def test_a_dead_letter_is_retried_and_replayed(world: Harness, browser: Browser) -> None:
    ids = await populate(world)
    running = (await world.get("/v1/replays"))["data"][0]["id"]
    page = await done(browser, f"/replays/{running}/cancel")
    assert "The replay is canceled" in text_of(page)

    page = await done(browser, f"/deliveries/{ids['dlv']}/retry")
    assert "One more attempt is due now" in text_of(page)
    assert page.url.path == f"/dashboard/deliveries/{ids['dlv']}"
    await world.run(1)

    dead = (await world.get("/v1/deliveries", status="dead"))["data"][0]
    span = {"since": "2026-11-18T00:00", "until": "2026-12-18T00:00"}
    fields = {"subscriber_id": dead["subscriber_id"], "only": "dead", **span}
    fields["confirmed"] = "yes"
    page = await done(browser, "/replays/create", **fields)
    assert re.fullmatch(r"/dashboard/replays/rpl_\w+", page.url.path)
    assert "The replay has begun" in text_of(page)
    assert 'hx-trigger="every' in page.text
    path = urlsplit(str(page.url)).path.removeprefix("/dashboard")
    assert (await browser.get(f"{path}?seen=0", HX_Request="true")).status_code == 204
    await world.run(1)
    assert (await browser.get(path, HX_Request="true")).headers["hx-refresh"] == "true"
    assert 'hx-trigger="every' not in (await browser.get(path)).text


async def test_a_key_is_created_shown_once_and_revoked(world: Harness, browser: Browser) -> None:
    page = await browser.post("/keys/create", name="<b>shop</b>", scopes=["read", "submit"])
    [secret] = re.findall(r"ghk_[A-Za-z0-9_-]{40,}", page.text)
    [key] = (await world.get("/v1/keys"))["data"]
    assert key["scopes"] == ["read", "submit"]
    listed = await browser.get("/keys")
    assert secret not in listed.text
    assert "<b>shop</b>" in text_of(listed)
    assert "<b>" not in listed.text
    page = await done(browser, f"/keys/{key['id']}/revoke")
    assert "The key is revoked" in text_of(page)
    async with world.new_client(secret) as client:
        assert (await client.get("/v1/generations")).status_code == 401


async def test_of_two_equal_forms_the_second_waits_and_shows_the_same_key(
    world: Harness, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end, create = asyncio.Event(), asyncio.Event(), idempotency.create

    async def create_late(*args: Any) -> Any:
        begun.set()
        await may_end.wait()
        return await create(*args)

    async def let_the_first_end(_signal: asyncio.Event, _seconds: float) -> None:
        may_end.set()
        await first

    monkeypatch.setattr(idempotency, "create", create_late)
    monkeypatch.setattr(visit, "wait_for", let_the_first_end)
    form = {"name": "shop", "scopes": "read", "once": "c0ffee"}
    token = token_of(await browser.get("/keys"))
    first = asyncio.create_task(browser.post("/keys/create", token, **form))
    await begun.wait()
    second = await browser.post("/keys/create", token, **form)
    may_end.set()
    keys = [re.findall(r"ghk_[A-Za-z0-9_-]{40,}", page.text) for page in (await first, second)]
    assert second.status_code == 200
    assert len(keys[0]) == 1
    assert keys[0] == keys[1]
    assert len((await world.get("/v1/keys"))["data"]) == 1


async def test_a_form_of_which_nobody_knows_whether_it_was_done_is_sent_again_and_done_once(
    world: Harness, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = world.app.database.write

    async def lose_answer(*args: Any, **options: Any) -> NoReturn:
        await write(*args, **options)
        raise StorageError("The connection was lost.")

    with monkeypatch.context() as patched:
        patched.setattr(world.app.database, "write", lose_answer)
        page = await browser.post("/keys/create", name="shop", scopes="read", once="c0ffee")
    assert page.status_code == 503
    assert "Go back" not in text_of(page), "its form has another key"
    [(path, form)] = FORM.findall(page.text)
    assert urljoin(str(page.url), path) == str(page.url)
    fields = dict(re.findall(r'name="([^"]+)" value="([^"]*)"', form))
    again = await browser.post("/keys/create", **fields)
    assert again.status_code == 200
    assert "ghk_" in text_of(again)
    assert len((await world.get("/v1/keys"))["data"]) == 1


@pytest.mark.parametrize("act", ["rotate", "replace-secret"])
async def test_two_clicks_rotate_a_secret_once_and_show_the_current_one(
    world: Harness, browser: Browser, act: str
) -> None:
    subscriber = await world.subscribe()
    path = f"/subscribers/{subscriber['id']}"
    pages = [await browser.post(f"{path}/{act}", once="c0ffee") for _ in range(2)]
    secret = (await world.get(f"/v1{path}/secret"))["secret"]
    assert [secret in text_of(page) for page in pages] == [True, True]


async def test_a_form_waits_for_its_first_sending_only_so_long(
    world: Harness, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    def refuse(*_args: object) -> NoReturn:
        raise Problem(409, "idempotency_key_in_use", "The first request is still running.")

    async def count(_signal: asyncio.Event, seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(idempotency, "_mark_running", refuse)
    monkeypatch.setattr(visit, "wait_for", count)
    form = {"name": "shop", "scopes": "read", "once": "c0ffee"}
    settings = world.app.context.settings
    page = await browser.post("/keys/create", **form)
    assert page.status_code == 409
    longest = settings.submit_wait_seconds + settings.drive_seconds + 10
    assert sum(waited) == pytest.approx(longest, abs=0.05)
    assert min(waited) >= 0.05
    count_before = len(waited)
    world.app.context.stopping.set()
    async with asyncio.timeout(60):  # A process that stops lets nobody wait.
        await wait_for(world.app.context.stopping, 60)
        assert (await browser.post("/keys/create", **form)).status_code == 409
    assert len(waited) == count_before


async def test_a_second_click_waits_as_long_as_the_first_may_wait_for_upstream(
    world: Harness, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where upstream is slow: the page then shows the generation, not that one runs."""
    context, is_first_done, waited = world.app.context, asyncio.Event(), []
    context.settings = msgspec.structs.replace(context.settings, submit_wait_seconds=600.0)
    begun, may_end, create = asyncio.Event(), asyncio.Event(), context.client.create

    async def create_late(*args: Any) -> Any:
        begun.set()
        await may_end.wait()
        return await create(*args)

    async def pass_time(_signal: asyncio.Event, seconds: float) -> None:
        waited.append(seconds)
        if sum(waited) > 599 and not is_first_done.is_set():
            may_end.set()
            await first
            is_first_done.set()

    monkeypatch.setattr(context.client, "create", create_late)
    monkeypatch.setattr(visit, "wait_for", pass_time)
    form = {"model": "imagen4", "input.prompt": "a small harbour", "confirmed": "yes"}
    token = token_of(await browser.get("/models/try"))
    first = asyncio.create_task(browser.post("/models/try", token, **form, once="c0ffee"))
    await begun.wait()
    second = await browser.post("/models/try", token, **form, once="c0ffee")
    may_end.set()
    assert [(await first).status_code, second.status_code] == [303, 303]
    paths = [urlsplit(each.headers["location"]).path for each in (await first, second)]
    assert paths[0] == paths[1]
    assert len(world.upstream.creates) == 1


async def test_upstream_is_asked_about_an_open_generation(world: Harness, browser: Browser) -> None:
    generation = await world.generate()
    world.upstream.finish("task1")
    page = await done(browser, f"/generations/{generation['id']}/refresh")
    assert "Upstream was asked" in text_of(page)
    assert (await world.get(f"/v1/generations/{generation['id']}"))["status"] == "succeeded"


async def test_a_generation_is_canceled_repeated_once_and_deleted(
    world: Harness, browser: Browser
) -> None:
    path = f"/generations/{(await world.generate())['id']}"
    page = await done(browser, f"{path}/cancel")
    assert "The generation is canceled" in text_of(page)
    [once] = set(re.findall(r'/retry">\s*.*?name="once" value="([0-9a-f]+)"', page.text))
    answers = [await browser.post(f"{path}/retry", once=once) for _ in range(2)]
    assert answers[0].headers["location"] == answers[1].headers["location"]
    page = await browser.follow(answers[0])
    assert "This is a new generation with the same input" in text_of(page)
    assert path.rpartition("/")[2] in text_of(page)
    page = await done(browser, f"{path}/delete")
    assert "The generation is deleted" in text_of(page)
    assert (await browser.get(path)).status_code == 404
    assert len(world.upstream.creates) == 2


async def test_a_link_that_has_expired_is_shown_as_such(world: Harness, browser: Browser) -> None:
    generation = await world.generate()
    url = "https://cdn.example/1.png?Expires=1795000300&Signature=x"  # 300 s after START.
    world.upstream.finish("task1", url)
    await world.run(60)
    path = f"/generations/{generation['id']}"
    assert "src=" + '"https://cdn.example/1.png' in (await browser.get(path)).text
    world.clock.advance(300)
    page = await browser.get(path)
    assert "The link expired 2026-" in text_of(page)
    assert "<img" not in page.text
    assert "cdn.example" not in policy_of(page)["img-src"]
    assert "link expired" in text_of(await browser.get("/generations"))


async def test_a_trial_names_its_price_asks_and_spends_it_once(
    world: Harness, browser: Browser
) -> None:
    form = {
        "model": "imagen4",
        "input.prompt": "a small harbour\r\nin fog",
        "input.num_images": "3",
    }
    page = await browser.post("/models/try", **form)
    assert page.status_code == 200
    assert "Spend 24 credits?" in text_of(page)
    assert world.upstream.creates == []
    [command] = [each for each in commands(page) if "-d" in each]
    [once] = CONFIRM.findall(page.text)
    answers = [
        await browser.post("/models/try", **form, once=once, confirmed="yes") for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [303, 303]
    assert answers[0].headers["location"] == answers[1].headers["location"]
    assert len(world.upstream.creates) == 1
    page = await browser.follow(answers[0])
    assert "The generation was submitted" in text_of(page)
    [generation] = (await world.get("/v1/generations"))["data"]
    assert generation["input"] == {"prompt": "a small harbour\nin fog", "num_images": 3}
    assert (await browser.run(command)).status_code == 202


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input.prompt": "x"}, "prompt must have at least 3 characters"),
        ({"input.num_images": "many", "input.prompt": "a harbour"}, "num_images cannot be read"),
        ({}, "prompt is required"),
    ],
)
async def test_a_trial_with_wrong_fields_keeps_them_and_says_which(
    world: Harness, browser: Browser, fields: dict[str, str], message: str
) -> None:
    page = await browser.post("/models/try", model="imagen4", **fields)
    assert page.status_code == 422
    assert message in text_of(page)
    for value in fields.values():
        assert value in page.text
    assert world.upstream.creates == []


@pytest.mark.parametrize("depth", [900, 960, 2_000])
async def test_a_value_that_is_nested_too_deep_is_an_error_of_its_field(
    browser: Browser, depth: int
) -> None:
    fields = {"input.prompt": "a harbour", "input.input_urls": "[" * depth + "]" * depth}
    page = await browser.post("/models/try", model="flux-2", **fields)
    assert page.status_code == 422
    assert "input_urls" in text_of(page)


async def test_a_name_twice_in_json_of_a_form_is_an_error_of_its_field(browser: Browser) -> None:
    fields = {"input.prompt": "a harbour", "input.input_urls": '[{"a": 1, "a": 2}]'}
    page = await browser.post("/models/try", model="flux-2", **fields)
    assert (page.status_code, "input_urls cannot be read" in text_of(page)) == (422, True)


async def test_json_of_very_many_values_is_an_error_of_its_field(browser: Browser) -> None:
    lists = "[" + "[]," * 100_000 + "[]]"
    page = await browser.post("/models/try", model="flux-2", **{"input.input_urls": lists})
    assert (page.status_code, "input_urls cannot be read" in text_of(page)) == (422, True)


async def test_numbers_choices_and_switches_of_a_form_become_json(
    world: Harness, browser: Browser
) -> None:
    fields = {"prompt": "a harbour", "type": "pro", "resolution": "2K"}
    form = {f"input.{name}": value for name, value in fields.items()}
    page = await browser.post("/models/try", model="flux-2", confirmed="yes", **form)
    assert page.status_code == 303, text_of(page)
    [generation] = (await world.get("/v1/generations"))["data"]
    assert generation["input"] == fields
    assert _parse("true", "boolean", {}) is True
    assert _parse("-3", "integer", {}) == -3
    assert _parse("0.5", "number", {}) == 0.5
    assert _parse('["https://a.example/1.png"]', "json", {}) == ["https://a.example/1.png"]
    assert _parse("2", "choice", {"enum": [1, 2]}) == 2


async def test_a_trial_that_upstream_refuses_says_so(world: Harness, browser: Browser) -> None:
    world.upstream.create_replies.append(httpx.Response(402, json={"message": "no credits left"}))
    form = {"model": "imagen4", "input.prompt": "a small harbour"}
    page = await browser.post("/models/try", **form, confirmed="yes")
    assert page.status_code == 402
    assert "no credits left" in text_of(page)


async def test_one_can_change_the_input_before_one_spends(world: Harness, browser: Browser) -> None:
    form = {"model": "imagen4", "input.prompt": "a small harbour"}
    page = await browser.post("/models/try", **form, edit="yes")
    assert page.status_code == 200
    assert "a small harbour</textarea>" in page.text


async def test_every_model_has_a_form(world: Harness, browser: Browser) -> None:
    for model in (await world.get("/v1/models"))["data"]:
        page = await browser.client.get("/dashboard/models/try", params={"model": model["id"]})
        assert page.status_code == 200, model["id"]
        for name in model["parameters"]["properties"]:
            assert f'name="input.{name}"' in page.text


async def test_models_are_compared_by_kind_callbacks_and_credits(browser: Browser) -> None:
    page = await browser.get("/models?kind=image&callbacks=true&sort=credits")
    rows = re.findall(r"<tr>\s*<td>([^<]+)</td>\s*<td class=\"n\">([\d,]+)</td>", page.text)
    prices = [int(price) for _model, price in rows]
    assert len(prices) > 5
    assert prices == sorted(prices)
    assert "imagen4-fast" in dict(rows)
    assert "kling-3" not in dict(rows)


async def test_a_refused_act_says_what_the_api_said(world: Harness, browser: Browser) -> None:
    page = await browser.post("/subscribers/create", url="http://10.0.0.1/", description="")
    assert page.status_code == 422
    assert "/url" in text_of(page)
    assert policy_of(page)["default-src"] == "'none'"


async def test_a_form_that_is_too_large_or_no_form_is_refused(
    world: Harness, browser: Browser
) -> None:
    large = await browser.post("/subscribers/create", url="x" * (1 << 20))
    assert large.status_code == 413
    binary = await browser.client.post("/dashboard/subscribers/create", content=b"\xff\xfe")
    assert binary.status_code == 400
    many = await browser.post("/subscribers/create", **{f"f{n}": "x" for n in range(300)})
    assert many.status_code == 400


@pytest.mark.parametrize("text", ["$(id)", "`id`", '"; id; "', "a'b", "a\nb", "é", "\\"])
def test_no_shell_reads_anything_in_a_command(text: str) -> None:
    call = ApiCall(path=f"/v1/generations/{text}", query={f"metadata.{text}": text})
    url = re.findall(r'"(\$GENHOOK_URL[^"]*)"', call.curl())[0]
    assert re.fullmatch(r"\$GENHOOK_URL[A-Za-z0-9/_.~%?=&:-]*", url)


async def test_acts_are_logged_like_calls_of_the_api(
    world: Harness, browser: Browser, capsys: pytest.CaptureFixture[str]
) -> None:
    subscriber = await world.subscribe()
    capsys.readouterr()
    await browser.post(f"/subscribers/{subscriber['id']}/pause")
    assert '"act":"subscriber.change"' in capsys.readouterr().err
