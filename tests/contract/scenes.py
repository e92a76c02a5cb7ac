"""A service with rows of every noun, for one tenant or for two."""

from collections.abc import Callable
from typing import Any

import httpx

from service.api.routes import OPERATIONS, Operation
from tests.contract.contract import breaches, name_of
from tests.harness import Harness

REFUSING_URL = "http://127.0.0.1:7/refusing"
NOTIFY_URL = "http://127.0.0.1:7/notify"
SPAN = {"since": "2026-11-18T00:00:00Z", "until": "2026-12-18T00:00:00Z"}
Ids = dict[str, str]


class Witness:
    """Checks every answer that a client gets; `breaches` says how they break the contract."""

    def __init__(self) -> None:
        self.breaches: list[str] = []
        self.succeeded: set[str | None] = set()

    def watch(self, client: httpx.AsyncClient) -> None:
        client.event_hooks = {"response": [self._check]}

    async def _check(self, response: httpx.Response) -> None:
        await response.aread()
        self.breaches += breaches(response)
        if response.is_success:
            self.succeeded.add(name_of(response.request.method, response.request.url.path))


async def populate(world: Harness, client: httpx.AsyncClient | None = None) -> Ids:
    """Rows of every noun for the client's tenant; one id of each, by its prefix."""
    own_client, world.client = world.client, client or world.client
    try:
        ids = {"sub": (await _subscribe(world))["id"]}
        ids["canceled"] = (await _cancel(world))["id"]
        ids["gen"] = (await _generate(world))["id"]
        for noun, path in (("cb", "callbacks"), ("evt", "events")):
            ids[noun] = (await world.get(f"/v1/{path}", generation_id=ids["gen"]))["data"][0]["id"]
        ids["dlv"] = (await world.get("/v1/deliveries", status="dead"))["data"][0]["id"]
        ids["key"] = (await _create(world, "keys", {"name": "shop", "scopes": ["read"]}))["id"]
        for dry_run in (True, False):  # The second is left running.
            replay = {"subscriber_id": ids["sub"], **SPAN, "only": "all", "dry_run": dry_run}
            ids["rpl"] = (await _create(world, "replays", replay))["id"]
    finally:
        world.client = own_client
    return ids


async def _subscribe(world: Harness) -> dict[str, Any]:
    await world.subscribe(REFUSING_URL, retry_schedule_seconds=[0])
    world.subscribers.answers[REFUSING_URL].extend([500] * 20)
    return await world.subscribe(
        description="Picture desk",
        headers={"X-Team": "pictures"},
        filter={"models": ["imagen4"], "metadata": {}},
        signature="v1a",
    )


async def _cancel(world: Harness) -> dict[str, Any]:
    """One that was canceled: it may be canceled again, and retried."""
    generation = await world.generate()
    answer = await world.client.post(f"/v1/generations/{generation['id']}/cancel")
    assert answer.is_success, answer.text
    await world.run(1)
    return generation


async def _generate(world: Harness) -> dict[str, Any]:
    """One that failed, then one that succeeded and was called back."""
    for end in (world.upstream.fail, world.upstream.finish):
        generation = await world.generate(metadata={"order_id": "1042"}, notify_url=NOTIFY_URL)
        task_id = f"task{len(world.upstream.creates)}"
        end(task_id)
        await world.call_back({"data": {"task_id": task_id, "status": "completed"}})
        await world.run(1)
    return generation


async def _create(world: Harness, noun: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = await world.client.post(f"/v1/{noun}", json=body)
    assert answer.is_success, answer.text
    view: dict[str, Any] = answer.json()
    return view


async def another_tenant(world: Harness) -> httpx.AsyncClient:
    """An admin of the tenant `other`."""
    key = {"name": "other", "scopes": ["admin"], "tenant": "other"}
    return world.new_client((await _create(world, "keys", key))["key"])


async def client_with(world: Harness, *scopes: str) -> httpx.AsyncClient:
    """A client of the default tenant whose key has these scopes."""
    key = await _create(world, "keys", {"name": " ".join(scopes), "scopes": scopes})
    return world.new_client(key["key"])


NOUNS = {
    "generations": "gen",
    "callbacks": "cb",
    "subscribers": "sub",
    "events": "evt",
    "deliveries": "dlv",
    "replays": "rpl",
    "keys": "key",
}


ON_CANCELED = ("/v1/generations/{id}/cancel", "/v1/generations/{id}/retry")


def id_name_of(path: str) -> str:
    """The name, among `Ids`, of the id in the path of an operation."""
    noun = path.split("/")[2] if path.startswith("/v1/") else ""
    return "canceled" if path in ON_CANCELED else NOUNS.get(noun, "")


def path_of(operation: Operation, ids: Ids) -> str:
    """The operation's path with the id of a row that is there."""
    of = ids.get(id_name_of(operation.path), "imagen4")
    path = operation.path.replace("{file}", "start.js")
    return path.replace("{id:path}", of).replace("{id}", of)


def guarded(chosen: Callable[[Operation], bool] = lambda _operation: True) -> list[Operation]:
    """The chosen operations that need a key."""
    return [each for each in OPERATIONS if each.scope != "open" and chosen(each)]


def named(operation: Operation) -> str:
    """As the document names it."""
    return f"{operation.method} {operation.path.replace('{id:path}', '{id}')}"
