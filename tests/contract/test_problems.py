"""Each code of the contract, provoked: the status it has, and an answer as documented."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import structlog

from service.api import asgi, subscribers
from service.api.problem import FieldError, Problem
from service.cli import refusals
from service.delivery.ping import TESTS_MAX
from service.model.errors import StorageBusyError
from service.store import rows
from service.store.vault import Vault
from service.store.write_queue import STALLED
from service.telemetry import metrics
from tests.contract.contract import COMPONENTS, SCHEMAS, accepts, breaches
from tests.contract.scenes import SPAN, Ids, client_with, populate
from tests.harness import ADMIN_KEY, PUBLIC_URL, Harness, create_answer, opened

GENERATION = {"model": "imagen4", "input": {"prompt": "a small harbour"}}
WRONG = {"model": "imagen4-fast", "input": {"prompt": "a small harbour", "aspect_ratio": "16x9"}}
KEYED = {"idempotency-key": "7d0c1c1e"}
Provoke = Callable[[Harness, Ids], Awaitable[httpx.Response]]


def created(**options: Any) -> Provoke:
    """POST /v1/generations, with something wrong about it."""

    async def provoke(world: Harness, _ids: Ids) -> httpx.Response:
        request = {"json": GENERATION, **options}
        return await world.client.post("/v1/generations", **request)

    return provoke


def refused_upstream(status: int, message: str) -> Provoke:
    async def provoke(world: Harness, ids: Ids) -> httpx.Response:
        reply = httpx.Response(status, json={"code": status, "message": message})
        world.upstream.create_replies.append(reply)
        return await created()(world, ids)

    return provoke


def requested(method: str, path: str) -> Provoke:
    async def provoke(world: Harness, ids: Ids) -> httpx.Response:
        return await world.client.request(method, path.format(**ids))

    return provoke


async def unauthorized(world: Harness, _ids: Ids) -> httpx.Response:
    async with world.new_client("ghk_" + "b" * 40) as client:
        return await client.get("/v1/events")


async def forbidden(world: Harness, _ids: Ids) -> httpx.Response:
    async with await client_with(world, "submit") as client:
        return await client.get("/v1/events")


async def unsigned(world: Harness, _ids: Ids) -> httpx.Response:
    await world.generate()
    return await world.call_back()


async def forged(world: Harness, _ids: Ids) -> httpx.Response:
    return await world.anonymous.post(f"{PUBLIC_URL}/callbacks/apiinone/forged", json={})


async def too_large(world: Harness, _ids: Ids) -> httpx.Response:
    return await world.client.post("/v1/generations", content=b" " * 1_048_577)


async def one_too_many(world: Harness, _ids: Ids) -> httpx.Response:
    return await world.client.post("/v1/subscribers", json={"url": "http://127.0.0.1:7/more"})


async def while_the_first_runs(world: Harness, ids: Ids) -> httpx.Response:
    """The second request comes while the first one is being submitted."""
    second: list[httpx.Response] = []

    async def reply() -> httpx.Response:
        second.append(await created(headers=KEYED)(world, ids))
        return httpx.Response(200, json=create_answer("task9"))

    world.upstream.create_replies.append(lambda _request: reply())  # type: ignore[arg-type, return-value]
    assert (await created(headers=KEYED)(world, ids)).status_code == 202
    return second[0]


async def with_another_body(world: Harness, ids: Ids) -> httpx.Response:
    await created(headers=KEYED)(world, ids)
    return await created(headers=KEYED, json={**GENERATION, "metadata": {"a": "b"}})(world, ids)


async def already_delivered(world: Harness, _ids: Ids) -> httpx.Response:
    delivery = (await world.get("/v1/deliveries", status="delivered"))["data"][0]
    return await world.client.post(f"/v1/deliveries/{delivery['id']}/retry")


async def to_a_disabled_one(world: Harness, ids: Ids) -> httpx.Response:
    dead = await world.get(f"/v1/deliveries/{ids['dlv']}")
    path = f"/v1/subscribers/{dead['subscriber_id']}"
    await world.client.patch(path, json={"status": "disabled"})
    return await world.client.post(f"/v1/deliveries/{ids['dlv']}/retry")


async def a_test_too_many(world: Harness, ids: Ids) -> httpx.Response:
    world.app.worker.dispatcher.tests[ids["sub"]] = TESTS_MAX
    return await world.client.post(f"/v1/subscribers/{ids['sub']}/test")


async def while_commits_hang(world: Harness, ids: Ids) -> httpx.Response:
    async def give_up(*_args: object, **_options: object) -> None:
        raise StorageBusyError(STALLED)

    world.app.database.write = give_up
    return await created(headers=KEYED)(world, ids)


async def without_an_end(world: Harness, _ids: Ids) -> httpx.Response:
    async def body() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    return await world.client.post("/v1/generations", content=body())


async def beside_too_many_bodies(world: Harness, _ids: Ids) -> httpx.Response:
    arriving, others = asyncio.Event(), asyncio.Event()

    async def other() -> AsyncIterator[bytes]:
        yield b"{" + b" " * 100
        arriving.set()
        await others.wait()
        yield b"}"

    async def body() -> AsyncIterator[bytes]:
        yield b"{" + b" " * 100
        yield b"}"

    first = asyncio.create_task(world.client.post("/v1/keys", content=other()))
    async with asyncio.timeout(20):
        await arriving.wait()
    answer = await world.client.post("/v1/keys", content=body())
    others.set()
    assert (await first).status_code == 422  # Its body was read whole.
    assert (await world.client.post("/v1/keys", content=body())).status_code == 422
    return answer


async def under_another_secret_key(world: Harness, ids: Ids) -> httpx.Response:
    world.app.context.vault = Vault(("another" * 5,))
    return await world.client.get(f"/v1/subscribers/{ids['sub']}/secret")


async def while_it_stops(world: Harness, ids: Ids) -> httpx.Response:
    submitting = asyncio.Event()

    async def hang() -> httpx.Response:
        submitting.set()
        await asyncio.Event().wait()
        raise AssertionError

    world.app.context.client.create = lambda *_: hang()  # type: ignore[assignment]
    request: asyncio.Future[httpx.Response] = asyncio.ensure_future(created()(world, ids))
    await submitting.wait()
    world.app.begin_stop()
    request.cancel()  # As the server does once its time is up.
    answer = await request
    await world.app.worker.finish(0)
    return answer


PROVOCATIONS: dict[str, tuple[int, Provoke]] = {
    "invalid_json": (400, created(json=None, content=b"{")),
    "invalid_query": (400, requested("GET", "/v1/events?colour=red")),
    "invalid_header": (400, created(headers={"idempotency-key": "two words"})),
    "unauthorized": (401, unauthorized),
    "signature_invalid": (401, unsigned),
    "upstream_payment_required": (402, refused_upstream(402, "Insufficient credits")),
    "forbidden": (403, forbidden),
    "not_found": (404, requested("GET", "/v1/generations/gen_1")),
    "token_invalid": (404, forged),
    "method_not_allowed": (405, requested("DELETE", "/v1/events/{evt}")),
    "conflict": (409, one_too_many),
    "idempotency_key_in_use": (409, while_the_first_runs),
    "not_retryable": (409, already_delivered),
    "subscriber_disabled": (409, to_a_disabled_one),
    "secret_unreadable": (409, under_another_secret_key),
    "request_timeout": (408, without_an_end),
    "body_too_large": (413, too_large),
    "unsupported_media_type": (415, created(headers={"content-type": "text/json"})),
    "invalid_request": (422, created(json=WRONG)),
    "idempotency_key_reused": (422, with_another_body),
    "upstream_refused": (422, refused_upstream(400, "The prompt is not allowed")),
    "address_refused": (422, created(json={**GENERATION, "notify_url": "http://10.0.0.1/"})),
    "too_many_tests": (429, a_test_too_many),
    "internal_error": (500, requested("GET", "/v1/generations/{gen}")),
    "upstream_unauthorized": (502, refused_upstream(401, "Invalid API key")),
    "storage_unavailable": (503, while_commits_hang),
    "overloaded": (503, beside_too_many_bodies),
    "stopping": (503, while_it_stops),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "request_timeout": {"body_seconds": 0.0},
    "signature_invalid": {
        "upstream_signature": "standard",
        "upstream_signature_secret": "whsec_" + "A" * 32,
    },
}


# Only over a socket: tests/wire/test_entrance.py provokes them.
OF_THE_ENTRANCE = {"bad_request", "head_too_large"}


# What differs from one occurrence to the next.
VARYING = re.compile(r"gen_[0-9a-f]{32}|(?<=after )\d+|(?<=at most )\d+")


def is_shown(problem: dict[str, Any]) -> bool:
    """Whether the document has an example that is like this problem."""
    examples = [each["value"] for each in COMPONENTS["examples"].values()]
    return any(comparable(problem) == comparable(each) for each in examples if "code" in each)


def comparable(problem: dict[str, Any]) -> dict[str, Any]:
    return {**problem, "request_id": "", "detail": VARYING.sub("", problem["detail"])}


def test_a_refusal_of_the_entrance_is_as_shown() -> None:
    shown = {
        problem.code: is_shown(msgspec.json.decode(problem.body("")))
        for problem in refusals._PROBLEMS.values()
    }
    assert {code for code in OF_THE_ENTRANCE if shown[code]} == OF_THE_ENTRANCE


@pytest.mark.parametrize("path", ["/v1/generations/{gen}/cancel", "/v1/replays"])
async def test_each_conflict_is_as_shown(tmp_path: Path, path: str) -> None:
    async with opened(tmp_path) as world:
        ids = await populate(world)
        body = {"subscriber_id": ids["sub"], **SPAN} if path == "/v1/replays" else {}
        answer = await world.client.post(path.format(**ids), json=body)
    assert answer.json()["code"] == "conflict"
    assert is_shown(answer.json())


async def test_a_header_that_came_twice_is_refused_as_shown(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        lines = [("authorization", f"Bearer {ADMIN_KEY}")] * 2
        answer = await world.client.get("/v1/events", headers=lines)
    assert is_shown(answer.json())


def test_every_code_of_the_contract_is_provoked() -> None:
    codes = set(SCHEMAS["Problem"]["properties"]["code"]["enum"])
    assert set(PROVOCATIONS) == codes - OF_THE_ENTRANCE


async def test_what_the_router_refuses_is_counted_too(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        before = dict(metrics.requests.values)
        await world.client.get("/v1/nope")
        await world.client.put("/v1/generations")
        counted = metrics.requests.values
        assert [counted[(code,)] - before.get((code,), 0) for code in ("404", "405")] == [1, 1]


@pytest.mark.parametrize("code", PROVOCATIONS)
async def test_a_problem_has_its_status_and_is_as_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    status, provoke = PROVOCATIONS[code]
    async with opened(tmp_path, **SETTINGS.get(code, {})) as world:
        ids = {} if code == "signature_invalid" else await populate(world)
        if code == "internal_error":
            monkeypatch.setattr(rows, "read_by_id", None)
        monkeypatch.setattr(subscribers, "SUBSCRIBERS_MAX", 2)
        if code == "overloaded":
            monkeypatch.setattr(asgi, "ARRIVING_BYTES_MAX", 150)
        with structlog.testing.capture_logs():  # A traceback is long, and is meant to be here.
            answer = await provoke(world, ids)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert breaches(answer) == []
    assert is_shown(answer.json()) or code == "method_not_allowed"  # Of no operation.
    assert answer.headers["content-type"] == "application/problem+json"
    assert ("errors" in answer.json()) == (
        code in ("invalid_query", "invalid_request", "address_refused")
    )


@pytest.mark.parametrize("code", ["invalid_request", "invalid_query", "address_refused"])
def test_a_problem_about_fields_cannot_be_made_without_them(code: str) -> None:
    with pytest.raises(AssertionError):
        Problem(422, code, "Something is wrong.")
    problem = msgspec.json.decode(Problem(422, code, "", [FieldError("", "is wrong")]).body(""))
    assert accepts(SCHEMAS["Problem"], problem)
    assert not accepts(SCHEMAS["Problem"], {**problem, "errors": []})
    assert not accepts(SCHEMAS["Problem"], {k: v for k, v in problem.items() if k != "errors"})
    assert not accepts(SCHEMAS["Problem"], {**problem, "code": "conflict"})


@pytest.mark.parametrize("status", [400, 401, 402])
async def test_a_repeated_refusal_by_upstream_is_as_documented_and_names_its_own_request(
    tmp_path: Path, status: int
) -> None:
    async with opened(tmp_path) as world:
        reply = httpx.Response(status, json={"code": status, "message": "no"})
        world.upstream.create_replies.append(reply)
        first = await created(headers=KEYED)(world, {})
        again = await created(headers={**KEYED, "x-request-id": "my-own"})(world, {})
    assert len(world.upstream.creates) == 1
    assert breaches(first) == breaches(again) == []
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == {**first.json(), "request_id": "my-own"}


async def test_the_same_request_twice_is_answered_once_and_says_so(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        first = await created(headers=KEYED)(world, {})
        again = await created(headers=KEYED)(world, {})
    assert first.json() == again.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert breaches(again) == []
    assert len(world.upstream.creates) == 1
