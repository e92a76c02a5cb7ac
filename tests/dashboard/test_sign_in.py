"""Signing in with an API key, and what ends it."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.dashboard.sign_in import FAILURES_PER_MINUTE, FAILURES_PER_MINUTE_OF_ALL
from service.store import sign_ins
from tests.contract.scenes import client_with
from tests.dashboard.browser import Browser, text_of, token_of
from tests.harness import ADMIN_KEY, Harness, opened


async def new_key(world: Harness, *scopes: str) -> dict[str, Any]:
    answer = await world.client.post("/v1/keys", json={"name": "reader", "scopes": scopes})
    view: dict[str, Any] = answer.json()
    return view


async def test_a_page_sends_a_stranger_to_sign_in_and_then_back(world: Harness) -> None:
    stranger = Browser(world)
    answer = await stranger.get("/deliveries?status=dead")
    assert answer.status_code == 303
    page = await stranger.follow(answer)
    assert page.url.path == "/dashboard/sign-in"
    back = await stranger.sign_in(next="/deliveries?status=dead")
    page = await stranger.follow(back)
    assert str(page.url) == "http://genhook/dashboard/deliveries?status=dead"
    assert page.status_code == 200


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example/",
        "//evil.example",
        "/../../v1/keys",
        "/a/../../b",
        "/a\\@evil",
        "/a#b",
    ],
)
async def test_signing_in_leads_to_no_other_place(world: Harness, target: str) -> None:
    answer = await Browser(world).sign_in(next=target)
    assert answer.headers["location"] == "../dashboard"


async def test_the_cookie_holds_neither_the_key_nor_anything_of_it(world: Harness) -> None:
    answer = await Browser(world).sign_in()
    cookie = answer.headers["set-cookie"]
    assert ADMIN_KEY not in cookie
    assert re.search("; HttpOnly; SameSite=Lax$", cookie)
    assert "path" not in cookie.lower()  # So it is that of /dashboard, behind any prefix.
    page = await Browser(world).get("/sign-in")
    assert page.headers["cache-control"] == "no-store"


async def test_the_cookie_changes_when_one_signs_in(world: Harness) -> None:
    one = Browser(world)
    before = (await one.get("/sign-in")).headers["set-cookie"]
    assert (await one.sign_in()).headers["set-cookie"] != before


async def test_under_https_the_cookie_is_secure(tmp_path: Path) -> None:
    async with opened(tmp_path, public_url="https://genhook.example/hooks") as world:
        answer = await Browser(world).sign_in()
        assert answer.headers["set-cookie"].endswith("; Secure")


@pytest.mark.parametrize("said", ["https", "HTTPS", "https, http", "Https,http"])
async def test_behind_a_proxy_that_says_https_the_cookie_is_secure(
    world: Harness, said: str
) -> None:
    answer = await Browser(world).get("/sign-in", X_Forwarded_Proto=said)
    assert answer.headers["set-cookie"].endswith("; Secure")
    answer = await Browser(world).get("/sign-in", X_Forwarded_Proto="http, https")
    assert answer.headers["set-cookie"].endswith("; SameSite=Lax")


async def test_a_forged_cookie_is_nobodys(world: Harness, browser: Browser) -> None:
    good = browser.client.cookies["genhook_sign_in"]
    changed = [good[:at] + ("a" if good[at] != "a" else "b") + good[at + 1 :] for at in (0, -5)]
    for forged in (*changed, "", "x.y", "é", "a" * 9_999):
        one = Browser(world)
        answer = await one.get(cookie=f"genhook_sign_in={forged}".encode())
        assert answer.status_code == 303


async def test_a_wrong_key_is_refused_with_words(world: Harness) -> None:
    answer = await Browser(world).sign_in("ghk_" + "x" * 40)
    assert answer.status_code == 401
    assert "unknown or revoked" in text_of(answer)
    assert "x" * 40 not in answer.text


async def try_wrong_keys(one: Browser, forwarded: list[str]) -> list[int]:
    """Post a wrong key for each value of X-Forwarded-For; return the statuses."""
    token = token_of(await one.get("/sign-in"))
    statuses = []
    for value in forwarded:
        one.client.headers["x-forwarded-for"] = value
        statuses.append((await one.post("/sign-in", token, key="ghk_no")).status_code)
    return statuses


async def test_wrong_keys_are_limited_by_minute_and_a_good_key_never_is(world: Harness) -> None:
    one = Browser(world)
    statuses = await try_wrong_keys(one, [""] * (FAILURES_PER_MINUTE + 1))
    assert statuses == [401] * FAILURES_PER_MINUTE + [429]
    assert (await Browser(world).sign_in()).status_code == 303
    assert await try_wrong_keys(one, [""]) == [429]
    world.clock.advance(60)
    assert await try_wrong_keys(one, [""]) == [401]


async def test_behind_a_proxy_the_address_that_it_adds_is_limited(world: Harness) -> None:
    for peer in ("127.0.0.1", "10.0.0.2", "100.64.0.2", "::1", ""):
        forged = [f"8.8.4.{n}, {peer}-client" for n in range(FAILURES_PER_MINUTE + 1)]
        statuses = await try_wrong_keys(Browser(world, peer=peer), [*forged, f"{peer}-other"])
        assert statuses == [401] * FAILURES_PER_MINUTE + [429, 401], peer


async def test_without_a_proxy_no_header_changes_what_is_limited(world: Harness) -> None:
    forged = [f"8.8.4.{n}" for n in range(FAILURES_PER_MINUTE + 1)]
    statuses = await try_wrong_keys(Browser(world, peer="8.8.8.8"), forged)
    assert statuses == [401] * FAILURES_PER_MINUTE + [429]


async def test_wrong_keys_of_all_addresses_together_are_limited(world: Harness) -> None:
    addresses = [f"8.8.4.{n}" for n in range(FAILURES_PER_MINUTE_OF_ALL + 1)]
    statuses = await try_wrong_keys(Browser(world), addresses)
    assert statuses == [401] * FAILURES_PER_MINUTE_OF_ALL + [429]
    assert (await Browser(world).sign_in()).status_code == 303


async def test_a_sign_in_needs_the_token_of_its_own_page(world: Harness) -> None:
    one, other = Browser(world), Browser(world)
    await one.get("/sign-in")
    foreign = token_of(await other.get("/sign-in"))
    for token in (foreign, "", "é"):
        answer = await one.post("/sign-in", token, key=ADMIN_KEY)
        assert answer.status_code == 403
    assert (await Browser(world).post("/sign-in", foreign, key=ADMIN_KEY)).status_code == 403


async def test_every_form_needs_the_token(world: Harness, browser: Browser) -> None:
    subscriber = await world.subscribe()
    for path in (f"/subscribers/{subscriber['id']}/pause", "/sign-out", "/models/try"):
        answer = await browser.post(path, "forged")
        assert answer.status_code == 403
    assert (await world.get(f"/v1/subscribers/{subscriber['id']}"))["status"] == "active"
    assert (await browser.get()).status_code == 200


async def test_a_sign_in_ends_with_the_revocation_of_its_key(world: Harness) -> None:
    key = await new_key(world, "read")
    one = Browser(world)
    await one.sign_in(key["key"])
    assert (await one.get()).status_code == 200
    await world.client.delete(f"/v1/keys/{key['id']}")
    assert (await one.get()).status_code == 303


async def test_a_sign_in_survives_a_restart_and_ends_after_its_time(
    world: Harness, browser: Browser
) -> None:
    await world.restart()
    assert (await browser.get()).status_code == 200
    world.clock.advance(sign_ins.LIFE_MS / 1_000)
    assert (await browser.get()).status_code == 303


async def test_signing_out_ends_the_sign_in_for_a_copied_cookie_too(
    world: Harness, browser: Browser
) -> None:
    cookie = f"genhook_sign_in={browser.client.cookies['genhook_sign_in']}"
    answer = await browser.post("/sign-out")
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert (await browser.get()).status_code == 303
    assert (await Browser(world).get(cookie=cookie)).status_code == 303


async def test_a_key_has_at_most_so_many_sign_ins(world: Harness) -> None:
    key = await new_key(world, "read")
    first = Browser(world)
    await first.sign_in(key["key"])
    for _ in range(sign_ins.PER_KEY_MAX):
        world.clock.advance(1)
        await Browser(world).sign_in(key["key"])
    assert (await first.get()).status_code == 303


async def test_a_part_of_an_open_page_loads_the_page_anew_when_signed_out(world: Harness) -> None:
    answer = await Browser(world).get("/generations", HX_Request="true")
    assert answer.status_code == 204
    assert answer.headers["hx-refresh"] == "true"


async def test_a_client_of_the_api_cannot_act_as_a_key_by_a_header(world: Harness) -> None:
    headers = {"acting_key": "key_admin", "acting-key": "key_admin"}
    answer = await world.anonymous.get("http://genhook/v1/keys", headers=headers)
    assert answer.status_code == 401


def test_a_process_that_nobody_looks_at_loads_nothing_of_the_pages() -> None:
    code = (
        "import asyncio, sys, tempfile, httpx\n"
        "from pathlib import Path\n"
        "from tests.dashboard.browser import Browser\n"
        "from tests.harness import opened\n"
        "names = ('jinja2', 'markupsafe', 'service.dashboard')\n"
        "for name in names: sys.modules.pop(name, None)\n"
        "async def main():\n"
        "    with tempfile.TemporaryDirectory() as folder:\n"
        "        async with opened(Path(folder)) as world:\n"
        "            await world.generate()\n"
        "            await world.call_back()\n"
        "            await world.get('/v1/models')\n"
        "            print(*{*names} & {*sys.modules})\n"
        "            await Browser(world).get('/sign-in')\n"
        "            print(*sorted({*names} & {*sys.modules}))\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(  # noqa: S603  our own code
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[-2:] == ["", "jinja2 markupsafe service.dashboard"], done.stdout


async def test_reading_keys_see_pages_and_no_others(world: Harness) -> None:
    async with await client_with(world, "read") as client:
        secret = client.headers["authorization"].removeprefix("Bearer ")
    one = Browser(world)
    await one.sign_in(secret)
    for path, status in (("", 200), ("/generations", 200), ("/subscribers", 403), ("/keys", 403)):
        assert (await one.get(path)).status_code == status, path


@pytest.mark.parametrize(
    ("path", "referer", "back"),
    [
        ("/keys/create", "http://genhook/dashboard/keys?tenant=other", "/keys?tenant=other"),
        ("/models/try", "https://a.example/hooks/dashboard/models/try?model=imagen4",
         "/models/try?model=imagen4"),
        ("/replays/create", "http://genhook/dashboard/replays/create", "/replays"),
        ("/subscribers/create", "http://[", "/subscribers"),
        (f"/subscribers/sub_{'0' * 32}/edit", "", f"/subscribers/sub_{'0' * 32}/edit"),
        (f"/subscribers/sub_{'0' * 32}/pause", "", f"/subscribers/sub_{'0' * 32}"),
        (f"/keys/key_{'0' * 32}/revoke", "https://evil.example/", "/keys"),
    ],
)  # fmt: skip
async def test_a_form_after_the_sign_in_has_ended_says_that_nothing_was_done_and_leads_back(
    world: Harness, browser: Browser, path: str, referer: str, back: str
) -> None:
    await browser.post("/sign-out")
    browser.client.headers["referer"] = referer
    page = await browser.follow(await browser.post(path, "old", name="x"))
    assert page.url.path == "/dashboard/sign-in"
    assert "Your sign-in has ended; nothing was done." in text_of(page)
    [next_] = re.findall(r'name="next" value="([^"]*)"', page.text)
    assert next_ == back
    world.clock.advance(60)
    later = await browser.client.get(page.url)
    assert "has ended" not in text_of(later)


@pytest.mark.parametrize("target", ["/sign-out", "/keys/create", "/replays/create", "/nothing"])
async def test_signing_in_leads_to_no_address_of_a_form(world: Harness, target: str) -> None:
    one = Browser(world)
    page = await one.follow(await one.sign_in(next=target))
    assert (page.status_code, page.url.path) == (200, "/dashboard")


async def test_too_many_wrong_keys_are_told_when_to_come_again(world: Harness) -> None:
    one = Browser(world)
    await try_wrong_keys(one, [""] * FAILURES_PER_MINUTE)
    world.clock.advance(1)
    answer = await one.post("/sign-in", token_of(await one.get("/sign-in")), key="ghk_no")
    assert answer.status_code == 429
    world.clock.advance(int(answer.headers["retry-after"]) - 1)
    assert await try_wrong_keys(one, [""]) == [429]
    world.clock.advance(1)
    assert await try_wrong_keys(one, [""]) == [401]
