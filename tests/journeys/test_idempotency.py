"""`Idempotency-Key`: a repeated request runs once, also after crashes and refusals."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.idempotency import ANSWER_BYTES_MAX
from service.api.routes import OPERATIONS
from tests.faults import DelayedAnswer, crash, rows, status_of, storage_failure
from tests.harness import SUBSCRIBER_URL, Harness, create_answer, opened

BODY = {"model": "imagen4", "input": {"prompt": "a small harbour"}}


async def post(
    world: Harness, key: str = "k-1", body: Any = None, path: str = "/v1/generations"
) -> httpx.Response:
    headers = {"Idempotency-Key": key}
    return await world.client.post(path, json=BODY if body is None else body, headers=headers)


async def test_the_same_request_again_gets_the_stored_answer(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        first = await post(world)
        world.upstream.finish("task1")
        await world.run(60)
        again = await post(world)
        assert first.status_code == again.status_code == 202
        assert again.content == first.content  # As it was then: the answer, not the state.
        assert "idempotency-replayed" not in first.headers
        assert again.headers["idempotency-replayed"] == "true"
        assert len(world.upstream.creates) == 1


async def test_an_answer_is_stored_up_to_its_limit_and_else_the_resource_answers(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        for size, key in ((1_000, "small"), (ANSWER_BYTES_MAX, "large")):
            body = {"model": "other", "input": {"text": "x" * size}}
            first = await post(world, key, body)
            again = await post(world, key, body)
            assert again.json() == first.json()
            assert again.headers["idempotency-replayed"] == "true"
        sealed = await rows(world, "SELECT key, length(sealed_answer) AS size FROM idempotency")
        stored = {row["key"]: row["size"] for row in sealed}
        assert stored["small"] > 1_000
        assert stored["large"] is None
        assert len(world.upstream.creates) == 2


async def test_another_body_under_the_same_key_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await post(world)
        other = await post(world, body={**BODY, "metadata": {"a": "b"}})
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
        elsewhere = await post(world, path="/v1/subscribers", body={"url": SUBSCRIBER_URL})
        assert elsewhere.json()["code"] == "idempotency_key_reused"
        assert len(world.upstream.creates) == 1


async def test_while_the_first_request_runs_the_second_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        delayed_answer = DelayedAnswer(httpx.Response(200, json=create_answer("task1")))
        world.upstream.create_replies.append(delayed_answer.reply)
        first = asyncio.create_task(post(world))
        await delayed_answer.requested.wait()
        second = await post(world)
        assert (second.status_code, second.json()["code"]) == (409, "idempotency_key_in_use")
        delayed_answer.release()
        assert (await first).status_code == 202
        third = await post(world)
        assert third.json()["id"] == (await first).json()["id"]
        assert len(world.upstream.creates) == 1


async def test_many_at_once_make_one(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        answers = await asyncio.gather(*(post(world) for _ in range(12)))
        assert {answer.status_code for answer in answers} <= {202, 409}
        assert len({a.json()["id"] for a in answers if a.status_code == 202}) == 1
        assert len(world.upstream.creates) == 1


@pytest.mark.parametrize(("tenant", "submissions"), [("default", 1), ("other", 2)])
async def test_a_key_belongs_to_the_tenant_so_that_a_rotated_api_key_does_not_pay_twice(
    tmp_path: Path, tenant: str, submissions: int
) -> None:
    async with opened(tmp_path) as world:
        new = {"name": "n", "scopes": ["submit"], "tenant": tenant}
        created = await world.client.post("/v1/keys", json=new)
        first = await post(world)
        async with world.new_client(created.json()["key"]) as other:
            headers = {"Idempotency-Key": "k-1"}
            again = await other.post("/v1/generations", json=BODY, headers=headers)
        assert again.status_code == 202
        assert (again.content == first.content) == (submissions == 1)
        assert ("idempotency-replayed" in again.headers) == (submissions == 1)
        assert len(world.upstream.creates) == submissions


async def test_a_key_is_forgotten_after_a_day(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        first = await post(world)
        world.clock.advance(86_399)
        assert (await post(world)).json()["id"] == first.json()["id"]
        world.clock.advance(1)
        assert (await post(world)).json()["id"] != first.json()["id"]


async def test_a_request_with_a_mistake_leaves_the_key_free(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        assert (await post(world, body={"model": "imagen4", "input": {}})).status_code == 422
        assert (await post(world)).status_code == 202


async def test_a_refusal_by_upstream_is_an_answer_and_is_stored(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.append(
            httpx.Response(402, json={"error": {"code": 402, "message": "no credits"}})
        )
        first = await post(world)
        assert (first.status_code, first.json()["code"]) == (402, "upstream_payment_required")
        again = await post(world)
        assert again.status_code == 402
        ids = [answer.json()["request_id"] for answer in (first, again)]
        assert ids == [answer.headers["x-request-id"] for answer in (first, again)]
        assert ids[0] != ids[1]
        assert again.json() == {**first.json(), "request_id": ids[1]}
        assert again.headers["content-type"] == "application/problem+json"
        assert again.headers["idempotency-replayed"] == "true"
        assert len(world.upstream.creates) == 1


async def test_after_a_crash_the_second_request_gets_what_the_first_one_created(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        delayed_answer = DelayedAnswer(httpx.Response(200, json=create_answer("task1")))
        world.upstream.create_replies.append(delayed_answer.reply)
        first = asyncio.create_task(post(world))
        await delayed_answer.requested.wait()
        await crash(world)
        await asyncio.gather(first, return_exceptions=True)
        again = await post(world)  # At once: nobody runs the first request any more.
        assert again.status_code == 202
        assert again.headers["idempotency-replayed"] == "true"
        assert again.json()["status"] == "queued"
        [stored] = await rows(world, "SELECT id FROM generations")
        assert again.json()["id"] == stored["id"]
        assert len(world.upstream.creates) == 1
        world.upstream.finish("task1")
        await world.call_back()
        await world.run()
        assert await status_of(world, stored["id"]) == "succeeded"


async def fails(*_: Any, **__: Any) -> Any:
    raise storage_failure()


CREATIONS: dict[str, dict[str, Any]] = {
    "/v1/generations": BODY,
    "/v1/generations/{id}/retry": {},
    "/v1/subscribers": {"url": SUBSCRIBER_URL},
    "/v1/keys": {"name": "n", "scopes": ["read"]},
    "/v1/replays": {"since": "2026-11-18T00:00:00Z", "until": "2026-12-18T00:00:00Z"},
}


# What a rotation replaces: the path that shows it, and the function that stores it.
ROTATIONS = {
    "/v1/subscribers/{id}/rotate-secret": ("/v1/subscribers/{id}/secret", "update"),
    "/v1/signing-secret/rotate": ("/v1/signing-secret", "update_tenant"),
}


def test_every_operation_that_creates_is_tried_here() -> None:
    assert {each.path for each in OPERATIONS if each.creates} == {*CREATIONS, *ROTATIONS}


@pytest.mark.parametrize("path", ROTATIONS)
async def test_a_rotation_and_its_claim_are_stored_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    async with opened(tmp_path) as world:
        id_ = (await world.subscribe())["id"]
        shown, update = (text.format(id=id_) for text in ROTATIONS[path])
        path, before = path.format(id=id_), await world.get(shown)
        for name in (f"subscribers.{update}", "idempotency.claim"):
            with monkeypatch.context() as patched:
                patched.setattr(f"service.store.{name}", fails)
                assert (await post(world, body={}, path=path)).status_code == 503
            assert await world.get(shown) == before
            assert await rows(world, "SELECT key FROM idempotency") == []
        first = await post(world, body={}, path=path)
        again = await post(world, body={}, path=path)
        assert first.json() == again.json() == await world.get(shown) != before


@pytest.mark.parametrize("path", CREATIONS)
@pytest.mark.parametrize("names", [("rows.insert", "generations.insert"), ("idempotency.claim",)])
async def test_what_is_created_and_its_claim_are_stored_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], path: str
) -> None:
    async with opened(tmp_path) as world:
        body = CREATIONS[path]
        if path == "/v1/replays":
            body = {**body, "subscriber_id": (await world.subscribe())["id"]}
        table = path.split("/")[2]
        if "{id}" in path:
            path = path.format(id=(await world.generate())["id"])
            assert (await world.client.post(path.replace("retry", "cancel"))).is_success
        submitted = len(world.upstream.creates)
        before = len(await rows(world, f"SELECT id FROM {table}"))  # noqa: S608
        with monkeypatch.context() as patched:
            for name in names:
                patched.setattr(f"service.store.{name}", fails)
            assert (await post(world, body=body, path=path)).status_code == 503
        assert len(world.upstream.creates) == submitted
        assert len(await rows(world, f"SELECT id FROM {table}")) == before  # noqa: S608
        assert await rows(world, "SELECT key FROM idempotency") == []
        first = await post(world, body=body, path=path)
        assert first.status_code in (201, 202)
        assert "idempotency-replayed" not in first.headers
        again = await post(world, body=body, path=path)
        assert (again.status_code, again.content) == (first.status_code, first.content)
        assert len(await rows(world, f"SELECT id FROM {table}")) == before + 1  # noqa: S608


async def test_an_answer_that_could_not_be_kept_is_given_and_a_repeat_gets_what_was_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        with monkeypatch.context() as patched:
            patched.setattr("service.store.idempotency.store_answer", fails)
            first = await post(world)
        assert first.status_code == 202
        world.upstream.finish("task1")
        await world.run(60)
        again = await post(world)
        assert (again.status_code, again.json()["status"]) == (202, "succeeded")
        assert again.json()["id"] == first.json()["id"]
        assert len(world.upstream.creates) == 1


async def test_another_process_answers_a_repeat_with_the_generation_as_it_is(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world, opened(tmp_path) as other:
        delayed_answer = DelayedAnswer(httpx.Response(200, json=create_answer("task1")))
        world.upstream.create_replies.append(delayed_answer.reply)
        first = asyncio.create_task(post(world))
        await delayed_answer.requested.wait()
        again = await post(other)
        assert (again.status_code, again.json()["status"]) == (202, "queued")
        delayed_answer.release()
        assert (await first).json()["id"] == again.json()["id"]
        assert (await post(other)).content == (await first).content
        assert other.upstream.creates == []


async def test_secrets_in_stored_answers_are_sealed(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        first = await post(world, path="/v1/subscribers", body={"url": SUBSCRIBER_URL})
        again = await post(world, path="/v1/subscribers", body={"url": SUBSCRIBER_URL})
        assert first.status_code == again.status_code == 201
        assert again.json()["secret"] == first.json()["secret"]
        [stored] = await rows(world, "SELECT * FROM idempotency")
        assert first.json()["secret"].encode() not in stored["sealed_answer"]
        assert b"whsec_" not in stored["sealed_answer"]
        assert len((await world.get("/v1/subscribers"))["data"]) == 1


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "tab\there"])
async def test_a_malformed_key_is_refused(tmp_path: Path, key: str) -> None:
    async with opened(tmp_path) as world:
        answer = await post(world, key)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_header")
        assert world.upstream.creates == []


@pytest.mark.parametrize("keys", [("a", "b"), ("a", "a"), ("a", "")])
async def test_two_keys_in_one_request_are_refused(tmp_path: Path, keys: tuple[str, str]) -> None:
    async with opened(tmp_path) as world:
        lines = [("idempotency-key", key) for key in keys]
        answer = await world.client.post("/v1/generations", json=BODY, headers=lines)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_header")
        assert answer.json()["detail"] == "Idempotency-Key was sent more than once."
        assert world.upstream.creates == []


@pytest.mark.parametrize("key", ["!", "x" * 255, "8e03978e-40d5-43e8-bc93-6894a57f9324"])
async def test_any_visible_ascii_is_a_key(tmp_path: Path, key: str) -> None:
    async with opened(tmp_path) as world:
        assert (await post(world, key)).status_code == 202
