"""What requests leave behind: lines for the refused ones and for acts, headers against caches."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.routes import OPERATIONS
from service.model.errors import StorageBusyError
from tests.contract.scenes import client_with, populate
from tests.contract.test_answers import call_everything
from tests.harness import opened
from tests.logs import Console

Request = dict[str, Any]
JSON = {"content-type": "application/json"}
GENERATIONS = {"method": "POST", "url": "/v1/generations"}
REFUSED: dict[int, Request] = {
    400: {"method": "GET", "url": "/v1/generations?limit=0"},
    404: {"method": "GET", "url": "/v1/nowhere/%1b[31m"},
    405: {"method": "PUT", "url": "/v1/generations"},
    413: {**GENERATIONS, "content": b"x" * 2_000, "headers": JSON},
    415: {**GENERATIONS, "content": b"x", "headers": {"content-type": "text/plain"}},
    422: {**GENERATIONS, "json": {}},
}


def of(console: Console, event: str) -> list[dict[str, Any]]:
    return [line for line in console.lines() if line["event"] == event]


def expect_line(console: Console, answer: httpx.Response, **fields: Any) -> None:
    [line] = of(console, "request.refused")
    expected = {
        "status": answer.status_code,
        "code": answer.json()["code"],
        "request_id": answer.headers["x-request-id"],
        **fields,
    }
    assert {name: line[name] for name in expected} == expected


@pytest.mark.parametrize("status", REFUSED)
async def test_a_refused_request_leaves_a_line_with_its_id(
    tmp_path: Path, console: Console, status: int
) -> None:
    async with opened(tmp_path, request_body_bytes=1_024) as world:
        console.configure("info")
        answer = await world.client.request(**REFUSED[status])
        assert answer.status_code == status
        key_id = None if status in (404, 405) else "key_admin"
        expect_line(console, answer, key_id=key_id, method=answer.request.method)


async def test_a_refused_key_leaves_a_line_with_its_id_if_it_is_known(
    tmp_path: Path, console: Console
) -> None:
    async with opened(tmp_path) as world:
        async with await client_with(world, "read") as reader:
            console.configure("info")
            answer = await reader.get("/v1/keys")
            assert answer.status_code == 403
            [key] = [k for k in (await world.get("/v1/keys"))["data"] if k["name"] == "read"]
            expect_line(console, answer, key_id=key["id"], tenant="default")
        async with world.new_client("ghk_" + "b" * 40) as stranger:
            expect_line_of_a_stranger(console, await stranger.get("/v1/keys"))


def expect_line_of_a_stranger(console: Console, answer: httpx.Response) -> None:
    assert answer.status_code == 401
    expect_line(console, answer, key_id=None, tenant=None)


async def test_a_full_queue_leaves_a_line(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:

        def refuse(*_: Any) -> Any:
            raise StorageBusyError("full")

        console.configure("info")
        with monkeypatch.context() as patched:
            patched.setattr(world.app.database, "write", refuse)
            answer = await world.client.post("/v1/signing-secret/rotate", json={})
        assert answer.status_code == 503
        expect_line(console, answer, key_id="key_admin", path="/v1/signing-secret/rotate")


async def test_a_rejected_callback_leaves_a_line_with_its_request_id(
    tmp_path: Path, console: Console
) -> None:
    async with opened(tmp_path) as world:
        console.configure("info")
        answer = await world.anonymous.post("http://genhook/callbacks/apiinone/forged")
        [line] = of(console, "callback")
        assert line["request_id"] == answer.headers["x-request-id"]


async def test_every_act_leaves_one_audit_line(tmp_path: Path, console: Console) -> None:
    async with opened(tmp_path) as world:
        console.configure("info")
        await call_everything(world, await populate(world))
        acts = of(console, "audit")
        assert {act["act"] for act in acts} == {each.audit for each in OPERATIONS if each.audit}
        assert {act["key_id"] for act in acts} == {"key_admin"}
        assert all(act["id"] for act in acts if not act["act"].startswith("signing_secret."))
        assert all(act["request_id"] for act in acts)
        [created] = [act for act in acts if act["act"] == "key.create"]
        assert (created["of_tenant"], created["of_scopes"]) == ("default", ["read"])


def test_every_operation_that_changes_what_a_tenant_set_up_is_audited() -> None:
    for each in OPERATIONS:
        is_act = each.scope in ("manage", "admin") and each.method != "GET"
        if is_act or each.path.endswith("secret"):
            assert each.audit, each.path
    assert len({each.audit for each in OPERATIONS}) > 10


async def test_a_refused_or_repeated_act_leaves_no_audit_line(
    tmp_path: Path, console: Console
) -> None:
    async with opened(tmp_path) as world:
        console.configure("info")
        await world.client.delete("/v1/keys/key_1")
        for _ in range(2):
            headers = {"Idempotency-Key": "k-1"}
            new = {"name": "n", "scopes": ["read"]}
            await world.client.post("/v1/keys", json=new, headers=headers)
        assert [act["act"] for act in of(console, "audit")] == ["key.create"]


async def test_an_attempts_line_says_whose_it_is(tmp_path: Path, console: Console) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe()
        generation = await world.generate()
        world.upstream.finish("task1")
        await world.call_back()
        console.configure("info")
        await world.run()
        [line, *_] = of(console, "attempt")
        assert line["generation_id"] == generation["id"]
        assert (line["tenant"], line["trigger"]) == ("default", "scheduled")


async def test_no_answer_is_sniffed_and_none_that_needs_a_key_is_kept_by_a_cache(
    tmp_path: Path,
) -> None:
    answers: list[httpx.Response] = []

    async def note(answer: httpx.Response) -> None:
        answers.append(answer)

    async with opened(tmp_path) as world:
        for client in (world.client, world.anonymous):
            client.event_hooks = {"response": [note]}
        await call_everything(world, await populate(world))
        await world.client.get("/v1/nowhere")
        await world.anonymous.post("http://genhook/callbacks/apiinone/forged")
    assert len(answers) > len(OPERATIONS)
    for answer in answers:
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"], answer.url
        if answer.is_success and "/v1/" in str(answer.url):
            assert answer.headers["cache-control"] == "no-store", answer.url


@pytest.mark.parametrize(
    "path",
    [
        "//callbacks/apiinone/{token}",
        "/CALLBACKS/apiinone/{token}",
        "/%63allbacks/apiinone/{token}",
        "/{token}",
        "/v1/generations/{token}",
        "/v1/../callbacks/apiinone/{token}x",
        "/{nonce}/{signature}",
    ],
)
async def test_no_line_about_a_refused_request_holds_a_token(
    tmp_path: Path, console: Console, path: str
) -> None:
    console.configure("info")
    async with opened(tmp_path) as world:
        await world.generate()
        token = world.upstream.callback_url().rpartition("/")[2]
        _, nonce, _, signature = token.split(".")
        parts = {"token": token, "nonce": nonce, "signature": signature}
        answer = await world.client.get(path.format(**parts))
        assert 400 <= answer.status_code < 500
    text = console.text()
    assert '"request.refused"' in text
    assert nonce not in text
    assert signature not in text
