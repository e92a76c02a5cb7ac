"""A database of over a thousand rows of every noun in every state, with the texts of strangers."""

from collections.abc import Iterator
from typing import Any

import httpx

from service.model.clock import DAY, HOUR, SECOND
from tests.contract.contract import SCHEMAS, resolve
from tests.contract.scenes import SPAN, Ids, populate
from tests.dashboard.test_pages import HOSTILE
from tests.harness import PUBLIC_URL, Harness, success_report

SETTINGS: dict[str, Any] = {"poll_rate_per_second": 1_000.0}  # Or the seed would wait for it.
EACH = 30  # Generations of each status: more than a page of the wall.
ROWS_MIN = 1_000
URL = "http://127.0.0.1:7/{}"
MODELS = ("imagen4", "flux-2", "imagen4-fast", "ideogram-v3")
# Fields whose values are states: their schema, and the list that has them.
STATES = (
    ("Generation", "status", "/v1/generations"),
    ("Generation", "route", "/v1/generations"),
    ("Subscriber", "status", "/v1/subscribers"),
    ("Subscriber", "disabled_reason", "/v1/subscribers"),
    ("Subscriber", "payload", "/v1/subscribers"),
    ("Subscriber", "signature", "/v1/subscribers"),
    ("Delivery", "status", "/v1/deliveries"),
    ("Delivery", "event_type", "/v1/deliveries"),
    ("Replay", "status", "/v1/replays"),
    ("Callback", "verdict", "/v1/callbacks"),
)


async def seed(world: Harness) -> Ids:
    """Fill the database; return an id of each noun, by its prefix."""
    ids = await populate(world)
    await _disable_one_that_fails(world)
    await _add_subscribers(world)
    await _time_out(world)
    await _end(world)
    await _call_back_oddly(world)
    await _act(world, ids)
    for index in range(EACH):
        world.upstream.create_replies.append(httpx.Response(503))
        await _generate(world, index)
    return ids


async def _generate(world: Harness, index: int) -> str:
    prompt = HOSTILE[index % len(HOSTILE)][:5000]
    fields = {"input": {"prompt": prompt}, "metadata": {"note": prompt[:100]}}
    generation = await world.generate(MODELS[index // 4 % len(MODELS)], **fields)
    return str(generation["id"])


async def _disable_one_that_fails(world: Harness) -> None:
    url = URL.format("fails")
    await world.subscribe(url, description=HOSTILE[0], retry_schedule_seconds=[0, 43_200])
    world.subscribers.answers[url].extend([500] * 100)
    for index in range(7):
        await _generate(world, index)
        for _ in range(2):
            await world.run(DAY / SECOND / 2)


async def _add_subscribers(world: Harness) -> None:
    own = "http://127.0.0.1:7/own"
    await world.subscribe(own, description=HOSTILE[3], payload="thin")
    await world.subscribe(own, description=HOSTILE[4], payload="cloudevents", signature="v1a")
    await world.subscribe(own, description=HOSTILE[5][:500], headers={"X-Team": HOSTILE[1][:20]})
    world.subscribers.answers[URL.format("gone")].append(410)
    await world.subscribe(URL.format("gone"), description=HOSTILE[1])
    for status in ("paused", "disabled"):
        subscriber = await world.subscribe(URL.format(status), description=status)
        path = f"/v1/subscribers/{subscriber['id']}"
        await _must(world.client.patch(path, json={"status": status}))


async def _time_out(world: Harness) -> None:
    for index in range(EACH):
        await _generate(world, index)
    await world.run(HOUR / SECOND + 60)
    for _ in range(30):  # Upstream is asked a last time before.
        await world.run(30)


async def _end(world: Harness) -> None:
    """Generations that succeed, fail, are canceled, and go on."""
    for index in range(4 * EACH):
        id_ = await _generate(world, index)
        task_id, kind = f"task{len(world.upstream.creates)}", index % 4
        if kind == 0:
            world.upstream.finish(task_id, f"https://cdn.example/{index}.png")
        elif kind == 1:
            world.upstream.fail(task_id, message=HOSTILE[index % len(HOSTILE)])
        elif kind == 2:
            await _must(world.client.post(f"/v1/generations/{id_}/cancel"))
        if kind < 2 and "callback_url" in world.upstream.creates[-1]:
            await world.call_back()
    for _ in range(40):  # Those without a callback are asked about.
        await world.run(30)


async def _call_back_oddly(world: Harness) -> None:
    await _generate(world, 0)
    task_id = f"task{len(world.upstream.creates)}"
    world.upstream.finish(task_id)
    await world.call_back(content=b"\xff?")
    for _ in range(2):
        await world.call_back(success_report(task_id))
    await world.run(5)
    await world.call_back({"data": {"task_id": task_id, "status": HOSTILE[0]}})
    await world.anonymous.post(f"{PUBLIC_URL}/callbacks/apiinone/forged", json={})


async def _act(world: Harness, ids: Ids) -> None:
    """Acts of people: tests, retries, replays, keys, a subscriber that leaves what it is owed."""
    post = world.client.post
    await _must(post(f"/v1/subscribers/{ids['sub']}/test"))
    dead = await world.get(f"/v1/deliveries/{ids['dlv']}")
    path = f"/v1/subscribers/{dead['subscriber_id']}"  # Disabled by now: it only failed.
    await _must(world.client.patch(path, json={"status": "active"}))
    await _must(post(f"/v1/deliveries/{ids['dlv']}/retry"))
    leaving = await world.subscribe(URL.format("leaving"))
    path = f"/v1/subscribers/{leaving['id']}"
    await _must(world.client.patch(path, json={"status": "paused"}))
    await _must(post(f"/v1/generations/{await _generate(world, 1)}/cancel"))
    await world.run(5)
    await _must(world.client.delete(path))
    for scopes in (["read"], ["submit", "manage"], ["admin", "operator"]):
        key = {"name": HOSTILE[len(scopes)][:100], "scopes": scopes}
        made = (await _must(post("/v1/keys", json=key))).json()
    await _must(world.client.delete(f"/v1/keys/{made['id']}"))
    await world.run(60)
    replay = {"subscriber_id": ids["sub"], **SPAN, "only": "all"}
    made = (await _must(post("/v1/replays", json=replay))).json()
    await _must(post(f"/v1/replays/{made['id']}/cancel"))
    made = (await _must(post("/v1/replays", json=replay))).json()
    ids["rpl"] = made["id"]  # It runs, as nobody works any more.


async def _must(answer: Any) -> httpx.Response:
    answered: httpx.Response = await answer
    assert answered.is_success, answered.text
    return answered


async def read_all(world: Harness, path: str) -> list[dict[str, Any]]:
    """Every row of a list."""
    rows: list[dict[str, Any]] = []
    after: dict[str, str] = {}
    while True:
        page = await world.get(path, limit=250, **after)
        rows += page["data"]
        if page["next"] is None:
            return rows
        after = {"after": page["next"]}


def values_of(schema: str, field: str) -> set[str]:
    """Every value that the contract gives a field."""
    return set(_values(SCHEMAS[schema], field))


def _values(node: dict[str, Any], field: str) -> Iterator[str]:
    for part in (node, *map(resolve, node.get("allOf", []))):
        known = part.get("properties", {}).get(field, {})
        for each in (known, *known.get("anyOf", []), *known.get("oneOf", [])):
            yield from (value for value in resolve(each).get("enum", []) if value is not None)
