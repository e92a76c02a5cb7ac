"""What requests leave behind: lines for the refused ones and for acts, headers against caches."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.routes import OPERATIONS, Operation
from service.model.errors import StorageBusyError
from tests.contract.scenes import SPAN, client_with, guarded, path_of, populate
from tests.contract.test_answers import call_everything
from tests.contract.test_problems import while_it_stops
from tests.harness import SUBSCRIBER_URL, Harness, opened
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

# What is refused for no other reason than the one that a test wants.
BODIES: dict[str, Any] = {
    "/v1/generations": {"model": "imagen4", "input": {"prompt": "a small harbour"}},
    "/v1/subscribers": {"url": SUBSCRIBER_URL},
    "/v1/keys": {"name": "n", "scopes": ["read"]},
    "/v1/replays": {"subscriber_id": "sub_" + "0" * 32, **SPAN, "only": "all"},
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


def broken(*_: Any, **_options: Any) -> Any:
    raise StorageBusyError("full")


def refusals_of(operation: Operation) -> list[int]:
    """The statuses with which any request to the operation may be refused."""
    statuses = [401, 403]
    if "{id}" in operation.path:
        statuses.append(404)
    if operation.reads_body:
        statuses += [413, 415, 422]
    without_rows = ("/v1/models", "/v1/models/{id:path}", "/v1/tick", "/v1/workers")
    is_stored = operation.path not in without_rows
    return statuses + [503] * is_stored


async def test_every_refusal_by_every_operation_leaves_one_line_with_its_id_and_key(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, request_body_bytes=4_096) as world:
        ids = await populate(world)
        missing = {noun: id_[:-4] + "0000" for noun, id_ in ids.items()}
        key = {"name": "none", "scopes": ["submit"], "tenant": "other"}
        nobody = (await world.client.post("/v1/keys", json=key)).json()
        by_key = {401: None, 403: nobody["id"]}
        console.configure("info")
        refused = 0
        for each in guarded():
            world.clock.advance(1)  # Lines about strangers are few in a second.
            for status in refusals_of(each):
                if status == 403 and each.scope == "submit":
                    continue
                client = {401: world.anonymous, 403: world.new_client(nobody["key"])}
                path = path_of(each, missing if status == 404 else ids)
                with monkeypatch.context() as patched:
                    answer = await refuse(
                        client.get(status, world.client), each, status, path, world, patched
                    )
                assert answer.status_code == status, (each.method, path, answer.text)
                expect_line(console, answer, key_id=by_key.get(status, "key_admin"))
                refused += 1
        assert refused > 100


async def refuse(
    client: httpx.AsyncClient,
    operation: Operation,
    status: int,
    path: str,
    world: Harness,
    patched: pytest.MonkeyPatch,
) -> httpx.Response:
    """Call the operation so that it is refused with the status."""
    options: dict[int, Request] = {
        413: {"content": b"x" * 5_000, "headers": JSON},
        415: {"content": b"x", "headers": {"content-type": "text/plain"}},
        422: {"json": {"no such field": 1}},
    }
    if status == 503:
        for method in ("read", "search", "write"):
            patched.setattr(world.app.database, method, broken)
    url = f"http://genhook{path}"
    fitting = {"json": BODIES.get(path, {})} if operation.reads_body else {}
    return await client.request(operation.method, url, **options.get(status, fitting))


async def test_a_request_that_the_end_of_the_process_cuts_off_leaves_a_line(
    tmp_path: Path, console: Console
) -> None:
    async with opened(tmp_path) as world:
        console.configure("info")
        headers = {"x-request-id": "my-own"}
        world.client.headers.update(headers)
        answer = await while_it_stops(world, {})
        assert answer.headers.get_list("x-request-id") == ["my-own"]
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
        expect_line(console, answer, code="stopping", key_id="key_admin")


async def test_a_worker_alone_refuses_other_pages_with_the_requests_own_id(
    tmp_path: Path, console: Console
) -> None:
    async with opened(tmp_path) as world:
        console.configure("info")
        transport = httpx.ASGITransport(world.app.observe)
        async with httpx.AsyncClient(transport=transport) as client:
            answer = await client.get("http://genhook/v1/keys", headers={"x-request-id": "own"})
        assert (answer.status_code, answer.headers["x-request-id"]) == (404, "own")
        expect_line(console, answer, code="not_found")


async def test_a_full_queue_leaves_a_line(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        console.configure("info")
        with monkeypatch.context() as patched:
            patched.setattr(world.app.database, "write", broken)
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


async def test_a_repeat_that_shows_a_secret_again_leaves_an_audit_line(
    tmp_path: Path, console: Console
) -> None:
    async with opened(tmp_path) as world:
        console.configure("info")
        made = []
        for path, new in (
            ("/v1/subscribers", {"url": "http://127.0.0.1:7/inbox"}),
            ("/v1/keys", {"name": "n", "scopes": ["read"]}),
        ):
            for _ in range(2):
                headers = {"Idempotency-Key": path}
                made.append((await world.client.post(path, json=new, headers=headers)).json())
        assert made[0]["secret"] == made[1]["secret"]
        assert made[2]["key"] == made[3]["key"]
        acts = of(console, "audit")
        names = ["subscriber.create", "secret.show", "key.create", "key.show"]
        assert [act["act"] for act in acts] == names
        assert [act["id"] for act in acts] == [each["id"] for each in made]


SPAN = {"since": "2020-01-01T00:00:00Z", "until": "2020-01-02T00:00:00Z"}


async def test_a_refused_or_repeated_act_leaves_no_audit_line(
    tmp_path: Path, console: Console
) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe()
        console.configure("info")
        await world.client.delete("/v1/keys/key_1")
        for _ in range(2):
            headers = {"Idempotency-Key": "k-1"}
            new = {"subscriber_id": subscriber["id"], **SPAN}
            answer = await world.client.post("/v1/replays", json=new, headers=headers)
            assert answer.status_code < 300, answer.text
        assert [act["act"] for act in of(console, "audit")] == ["replay.create"]


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
