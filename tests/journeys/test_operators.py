"""The scope `operator` reaches across tenants; `admin` ends at its tenant."""

import asyncio
from pathlib import Path
from typing import Any

import httpx

from tests.contract.scenes import another_tenant, client_with
from tests.harness import opened

REJECTED_URL = "http://genhook/callbacks/apiinone/forged"


async def page(client: httpx.AsyncClient, path: str) -> list[dict[str, Any]]:
    answer = await client.get(path)
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, Any]] = answer.json()["data"]
    return rows


async def code_of(client: httpx.AsyncClient, method: str, path: str, **options: Any) -> Any:
    answer = await client.request(method, path, **options)
    return answer.status_code, answer.json().get("code") if answer.content else ""


async def test_rejected_callbacks_of_no_tenant_are_shown_to_operators_only(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        assert (await world.anonymous.post(REJECTED_URL, json={})).status_code == 404
        [callback] = await page(world.client, "/v1/callbacks")
        path = f"/v1/callbacks/{callback['id']}"
        async with await client_with(world, "operator") as operator:
            assert await page(operator, "/v1/callbacks") == [callback]
            assert (await operator.get(path)).status_code == 200
        for admin in (await client_with(world, "admin"), await another_tenant(world)):
            async with admin:
                assert await page(admin, "/v1/callbacks") == []
                assert await code_of(admin, "GET", path) == (404, "not_found")


async def test_an_operator_without_read_sees_no_callback_of_its_tenant(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        await world.call_back()
        [callback] = await page(world.client, "/v1/callbacks")
        async with await client_with(world, "operator") as operator:
            assert await page(operator, "/v1/callbacks") == []
            answer = await operator.get(f"/v1/callbacks/{callback['id']}")
            assert answer.status_code == 404


async def test_an_operator_searches_another_tenants_rows_in_its_own_turn(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await (await another_tenant(world)).aclose()
        search, turns = world.app.database.search, list[str]()

        async def noted(tenant: str, *args: Any) -> Any:
            turns.append(tenant)
            return await search(tenant, *args)

        world.app.database.search = noted
        for path in ("/v1/keys", "/v1/usage"):
            await page(world.client, f"{path}?tenant=other")
        assert turns == ["default", "default"]


async def test_usage_of_another_tenant_is_shown_to_operators_only(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        async with await another_tenant(world) as other:
            body = {"model": "imagen4", "input": {"prompt": "a small harbour"}}
            assert (await other.post("/v1/generations", json=body)).status_code == 202
            own = await page(other, "/v1/usage")
            assert await page(other, "/v1/usage?tenant=other") == own != []
            assert await code_of(other, "GET", "/v1/usage?tenant=default") == (403, "forbidden")
        assert await page(world.client, "/v1/usage") == []
        assert await page(world.client, "/v1/usage?tenant=other") == own


async def test_operators_alone_make_list_and_revoke_keys_of_any_tenant(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        async with await client_with(world, "admin") as admin:
            await refuse_keys_beyond_the_tenant(admin)
        new = {"name": "n", "scopes": ["read"], "tenant": "other"}
        async with await client_with(world, "operator") as operator:
            key = (await operator.post("/v1/keys", json=new)).json()
            assert [each["id"] for each in await page(operator, "/v1/keys?tenant=other")] == [
                key["id"]
            ]
            async with await client_with(world, "admin") as admin:
                path = f"/v1/keys/{key['id']}"
                assert await code_of(admin, "DELETE", path) == (404, "not_found")
            assert (await operator.delete(path)).status_code == 204
            async with world.new_client(key["key"]) as revoked:
                assert (await revoked.get("/v1/generations")).status_code == 401


async def refuse_keys_beyond_the_tenant(admin: httpx.AsyncClient) -> None:
    for wrong in ({"tenant": "other"}, {"scopes": ["operator"]}):
        body = {"name": "n", "scopes": ["read"], **wrong}
        assert await code_of(admin, "POST", "/v1/keys", json=body) == (403, "forbidden")
    assert await code_of(admin, "GET", "/v1/keys?tenant=other") == (403, "forbidden")


async def test_an_admin_does_not_get_the_stored_answer_to_an_operators_request(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world, await client_with(world, "admin") as admin:
        options: dict[str, Any] = {
            "json": {"name": "n", "scopes": ["operator"]},
            "headers": {"Idempotency-Key": "k-1"},
        }
        assert (await world.client.post("/v1/keys", **options)).status_code == 201
        refused = await code_of(admin, "POST", "/v1/keys", **options)
        assert refused == (422, "idempotency_key_reused")


async def ticks_and_metrics(client: httpx.AsyncClient) -> list[int]:
    answers = [await client.post("/v1/tick?seconds=1"), await client.get("/metrics")]
    return [answer.status_code for answer in answers]


async def test_ticks_and_closed_metrics_are_for_operators(tmp_path: Path) -> None:
    async with opened(tmp_path, open_metrics=False) as world:
        async with await client_with(world, "operator") as operator:
            assert await ticks_and_metrics(operator) == [200, 200]
        assert await ticks_and_metrics(world.client) == [200, 200]
        async with await client_with(world, "admin") as admin:
            assert await ticks_and_metrics(admin) == [403, 403]


async def test_a_revoked_keys_long_poll_gets_no_outcome(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        async with await client_with(world, "read") as reader:
            path = f"/v1/generations/{generation['id']}"
            waiting = asyncio.create_task(reader.get(f"{path}?wait=30"))
            while generation["id"] not in world.app.context.waiters:
                await world.client.get(path)
            [key] = [k for k in await page(world.client, "/v1/keys") if k["name"] == "read"]
            await world.client.delete(f"/v1/keys/{key['id']}")
            world.upstream.finish("task1")
            await world.call_back()
            await world.run()
            answer = await waiting
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
        assert (await world.get(path))["status"] == "succeeded"


async def test_a_key_with_only_submit_sees_a_generation_in_the_answers_to_its_acts_alone(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world, await client_with(world, "submit") as submitter:
        path = f"/v1/generations/{(await world.generate())['id']}"
        for place in ("/v1/generations", path, f"{path}/timeline"):
            assert await code_of(submitter, "GET", place) == (403, "forbidden")
        for act in ("refresh", "cancel", "refresh"):  # It has ended before the last one.
            answer = await submitter.post(f"{path}/{act}")
            assert answer.json()["input"] == {"prompt": "a small harbour"}
