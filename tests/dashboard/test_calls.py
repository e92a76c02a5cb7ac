"""Calls that pages make of the API, in the same process."""

import asyncio

from service.api.endpoint import find_key
from service.dashboard.calls import ApiCall, send
from service.store import keys
from tests.harness import ADMIN_KEY, Harness


async def test_a_call_that_waits_lets_others_run_and_ends_with_its_generation(
    world: Harness,
) -> None:
    generation = await world.generate()
    key = await find_key(world.app.context, keys.digest(ADMIN_KEY))
    call = ApiCall(path=f"/v1/generations/{generation['id']}", query={"wait": "60"})
    state = {"acting_key": key, "request_id": "req_1"}
    waiting = asyncio.create_task(send(world.app._api, call, {}, state))
    while generation["id"] not in world.app.context.waiters:
        await world.get("/v1/events")
    world.upstream.finish("task1")
    await world.run(60)
    async with asyncio.timeout(20):
        reply = await waiting
    assert (reply.status, reply.content["status"]) == (200, "succeeded")
