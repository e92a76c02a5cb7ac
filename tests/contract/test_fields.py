"""What the contract says about single fields: bounds, headers that stay secret, days of usage."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.contract import SCHEMAS, accepts, breaches
from tests.harness import Harness, opened

URL = "http://127.0.0.1:7/inbox"
SUBSCRIBER = {"url": URL}
KEY = {"name": "shop", "scopes": ["read"]}
GENERATION = {"model": "unheard-of", "input": {}}
SECRET = "whsec_" + "A" * 32


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Harness]:
    async with opened(tmp_path) as harness:
        yield harness


def names(count: int) -> dict[str, str]:
    return {f"X-{number}": "1" for number in range(count)}


PROXY_HEADER = "/headers/X-Smokescreen-Role"
# The largest that passes, the smallest that does not, and where the fault is.
BOUNDS: list[tuple[str, str, Any, Any, str]] = [
    ("subscribers", "description", "x" * 500, "x" * 501, "/description"),
    ("subscribers", "description", "", "a\0b", "/description"),
    ("subscribers", "event_types", [], ["ping", "ping"], "/event_types"),
    ("subscribers", "event_types", ["ping"], ["pong"], "/event_types/0"),
    ("subscribers", "filter", {"models": ["x" * 128]}, {"models": ["x" * 129]}, "/filter/models/0"),
    ("subscribers", "filter", {"models": []}, {"models": ["a", "a"]}, "/filter/models"),
    ("subscribers", "filter", {"metadata": {"a": ""}}, {"metadata": {"": ""}}, "/filter/metadata/"),
    ("subscribers", "filter", {}, {"colours": []}, "/filter/colours"),
    ("subscribers", "headers", names(20), names(21), "/headers"),
    ("subscribers", "headers", {"X-A": "x" * 1000}, {"X-A": "x" * 1001}, "/headers/X-A"),
    ("subscribers", "headers", {"X-A": "~"}, {"X-A": "é"}, "/headers/X-A"),
    ("subscribers", "headers", {"X-A": " "}, {"X-A": "a\r\nb"}, "/headers/X-A"),
    ("subscribers", "headers", {"x" * 64: "1"}, {"x" * 65: "1"}, "/headers/" + "x" * 65),
    ("subscribers", "headers", {"X-A": "1"}, {"X-A": "1", "x-a": "2"}, "/headers"),
    ("subscribers", "headers", {}, {"X-A": "[redacted]"}, "/headers/X-A"),
    ("subscribers", "headers", {"Hosted": "1"}, {"Host": "x"}, "/headers/Host"),
    ("subscribers", "headers", {"Contents": "1"}, {"Content-Type": "x"}, "/headers/Content-Type"),
    ("subscribers", "headers", {"Webhook": "1"}, {"webhook-id": "x"}, "/headers/webhook-id"),
    ("subscribers", "headers", {"X-Smoke": "1"}, {"X-Smokescreen-Role": "x"}, PROXY_HEADER),
    ("subscribers", "max_in_flight", 100, 101, "/max_in_flight"),
    ("subscribers", "max_in_flight", 1, 0, "/max_in_flight"),
    ("subscribers", "rate_per_second", 0.01, 0.009, "/rate_per_second"),
    ("subscribers", "rate_per_second", None, 1001, "/rate_per_second"),
    ("subscribers", "retry_schedule_seconds", [0] * 20, [0] * 21, "/retry_schedule_seconds"),
    ("subscribers", "retry_schedule_seconds", [604800], [604801], "/retry_schedule_seconds/0"),
    ("subscribers", "retry_schedule_seconds", [0], [], "/retry_schedule_seconds"),
    ("subscribers", "payload", "thin", "thick", "/payload"),
    ("subscribers", "signature", "v1a", "v2", "/signature"),
    ("subscribers", "secret", SECRET, SECRET[:-4], "/secret"),
    ("subscribers", "secret", None, SECRET.removeprefix("whsec_"), "/secret"),
    ("keys", "name", "x" * 100, "x" * 101, "/name"),
    ("keys", "name", "x", "", "/name"),
    ("keys", "name", "é", "a\x1b[31m", "/name"),
    ("keys", "name", "x", "\x9b", "/name"),
    ("keys", "scopes", ["admin"], [], "/scopes"),
    ("keys", "scopes", ["read", "submit"], ["read", "read"], "/scopes"),
    ("keys", "scopes", ["manage"], ["owner"], "/scopes/0"),
    ("keys", "tenant", "x" * 63, "x" * 64, "/tenant"),
    ("keys", "tenant", None, "", "/tenant"),
    ("generations", "model", "x" * 128, "x" * 129, "/model"),
    ("generations", "model", "~", "two words", "/model"),
    ("generations", "input", {"size": 2**64}, [], "/input"),
    ("generations", "metadata", {"k" * 64: "x" * 500}, {"k" * 65: ""}, "/metadata/" + "k" * 65),
    ("generations", "metadata", {"a": "é" * 500}, {"a": "x" * 501}, "/metadata/a"),
    ("generations", "metadata", names(20), names(21), "/metadata"),
    ("generations", "metadata", {}, {"a~/b": "1"}, "/metadata/a~0~1b"),
    ("generations", "notify_url", None, 1, "/notify_url"),
]
BASES: dict[str, dict[str, Any]] = {
    "subscribers": SUBSCRIBER,
    "keys": KEY,
    "generations": GENERATION,
}
CREATES = {
    "subscribers": "SubscriberCreate",
    "keys": "KeyCreate",
    "generations": "GenerationCreate",
}
BEYOND_SCHEMAS = (
    "/headers/Host",
    "/headers/Content-Type",
    "/headers/webhook-id",
    "/headers/X-A",
    PROXY_HEADER,
)


@pytest.mark.parametrize(("noun", "field", "good", "bad", "pointer"), BOUNDS)
async def test_a_field_ends_where_the_contract_says(
    world: Harness, noun: str, field: str, good: Any, bad: Any, pointer: str
) -> None:
    accepted, refused = ({**BASES[noun], field: value} for value in (good, bad))
    answer = await world.client.post(f"/v1/{noun}", json=accepted)
    assert answer.is_success, answer.text
    assert breaches(answer) == []
    answer = await world.client.post(f"/v1/{noun}", json=refused)
    assert breaches(answer) == []
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    schema = SCHEMAS[CREATES[noun]]
    assert accepts(schema, accepted)
    assert not accepts(schema, refused) or pointer in BEYOND_SCHEMAS or pointer == "/headers"


async def test_a_body_that_is_nested_too_deep_is_refused(world: Harness) -> None:
    for depth, code in ((5_000, "invalid_json"), (100_000, "invalid_request")):
        deep = b'{"model": "unheard-of", "input": {"a": ' + b"[" * depth
        answer = await world.client.post("/v1/generations", content=deep)
        assert breaches(answer) == []
        assert answer.json()["code"] == code


@pytest.mark.parametrize("depth", [64, 65, 200, 900])
async def test_what_is_taken_is_no_deeper_than_what_can_be_published(
    world: Harness, depth: int
) -> None:
    input_: Any = 1
    for level in range(depth):
        input_ = [input_] if level % 2 and level < depth - 1 else {"a": input_}
    answer = await world.client.post(
        "/v1/generations", json={"model": "unheard-of", "input": input_}
    )
    assert breaches(answer) == []
    if depth <= 64:
        assert answer.status_code == 202
    elif depth > 200 and answer.status_code == 400:
        # How deep the decoder itself reads depends on the stack that it finds.
        assert answer.json()["code"] == "invalid_json"
    else:
        assert answer.status_code == 422
        assert [error["pointer"] for error in answer.json()["errors"]] == ["/input"]


async def test_a_redacted_header_keeps_its_value_and_the_others_are_replaced(
    world: Harness,
) -> None:
    subscriber = await world.subscribe(
        headers={"X-Token": "hush", "X-Team": "pictures", "X-Old": "1"}
    )
    assert subscriber["headers"] == dict.fromkeys(("X-Old", "X-Team", "X-Token"), "[redacted]")
    path = f"/v1/subscribers/{subscriber['id']}"
    headers = {"x-token": "[redacted]", "X-Team": "sounds"}
    answer = await world.client.patch(path, json={"headers": headers})
    assert breaches(answer) == []
    assert set(answer.json()["headers"]) == {"x-token", "X-Team"}
    shown = (await world.client.post(f"{path}/test")).json()["request"]["headers"]
    assert {shown["x-token"], shown["X-Team"]} == {"[redacted]"}
    sent = world.subscribers.webhooks_to(URL)[-1].headers
    assert (sent["x-token"], sent["X-Team"]) == ("hush", "sounds")
    assert "X-Old" not in sent


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"url": "http://127.0.0.1:8/inbox"}, 422),
        ({"url": "http://127.0.0.1:8/inbox", "headers": {"X-Token": "[redacted]"}}, 422),
        ({"url": "http://127.0.0.1:8/inbox", "headers": {"X-Token": "new"}}, 200),
        ({"url": "http://127.0.0.1:8/inbox", "headers": {}}, 200),
        ({"url": "http://127.0.0.1:7/other"}, 200),
        ({"headers": {"X-Token": "[redacted]"}}, 200),
    ],
)
async def test_a_stored_header_value_does_not_follow_the_url_to_another_origin(
    world: Harness, change: dict[str, Any], status: int
) -> None:
    subscriber = await world.subscribe(headers={"X-Token": "hush"})
    path = f"/v1/subscribers/{subscriber['id']}"
    answer = await world.client.patch(path, json=change)
    assert breaches(answer) == []
    assert answer.status_code == status
    if status == 422:
        assert [error["pointer"] for error in answer.json()["errors"]] == ["/headers/X-Token"]
        assert (await world.get(path))["url"] == subscriber["url"]


async def test_a_redacted_header_without_a_stored_value_changes_nothing(world: Harness) -> None:
    subscriber = await world.subscribe(headers={"X-Token": "hush"})
    path = f"/v1/subscribers/{subscriber['id']}"
    change = {"description": "new", "headers": {"X-Token": "[redacted]", "X-New": "[redacted]"}}
    answer = await world.client.patch(path, json=change)
    assert breaches(answer) == []
    assert answer.json()["code"] == "invalid_request"
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/headers/X-New"]
    assert (await world.get(path))["description"] == ""


async def test_no_answer_shows_a_header_value(world: Harness) -> None:
    subscriber = await world.subscribe(headers={"X-Token": "hush-hush"})
    path = f"/v1/subscribers/{subscriber['id']}"
    answers = [
        await world.client.get(path),
        await world.client.get("/v1/subscribers"),
        await world.client.patch(path, json={"description": "new"}),
        await world.client.post(f"{path}/test"),
        await world.client.get("/v1/deliveries"),
    ]
    assert world.subscribers.webhooks_to(URL)[-1].headers["X-Token"] == "hush-hush"
    assert all("hush-hush" not in answer.text for answer in answers)


async def test_usage_shows_thirty_days_by_default(world: Harness) -> None:
    await world.generate()
    [today] = (await world.get("/v1/usage"))["data"]
    assert (today["day"], today["generations"]) == ("2026-11-18", 1)
    world.clock.advance(29 * 86_400)
    assert len((await world.get("/v1/usage"))["data"]) == 1
    world.clock.advance(86_400)
    assert (await world.get("/v1/usage"))["data"] == []
    assert len((await world.get("/v1/usage", since="2026-11-18"))["data"]) == 1
    assert len((await world.get("/v1/usage", until="2026-11-18"))["data"]) == 1
    assert (await world.get("/v1/usage", until="2026-11-17"))["data"] == []


async def test_usage_spans_at_most_366_days(world: Harness) -> None:
    for until, status in (("2026-11-18", 200), ("2026-11-19", 400)):
        span = {"since": "2025-11-18", "until": until}
        answer = await world.client.get("/v1/usage", params=span)
        assert breaches(answer) == []
        assert answer.status_code == status
    first = await world.client.get("/v1/usage", params={"until": "0001-01-02"})
    assert first.json() == {"data": [], "next": None}


async def test_usage_can_be_limited_to_one_model(world: Harness) -> None:
    await world.generate()
    await world.generate("unheard-of")
    rows = (await world.get("/v1/usage"))["data"]
    assert [row["model"] for row in rows] == ["imagen4", "unheard-of"]
    assert (await world.get("/v1/usage", model="imagen4"))["data"] == rows[:1]


async def test_a_header_that_came_twice_is_shown_joined(world: Harness) -> None:
    await world.generate()
    headers = [("x-twice", "one"), ("x-twice", "two")]
    assert (await world.call_back(headers=headers)).status_code == 200
    [callback] = (await world.get("/v1/callbacks"))["data"]
    shown = await world.get(f"/v1/callbacks/{callback['id']}")
    assert shown["headers"]["x-twice"] == "one, two"


async def test_a_bound_between_two_milliseconds_leaves_no_generation_out(world: Harness) -> None:
    ids = []
    for _ in range(2):
        ids.append((await world.generate())["id"])
        await world.run(0.001)
    [older, newer] = [(await world.get(f"/v1/generations/{id_}"))["created_at"] for id_ in ids]
    assert newer > older
    bound = older.replace("Z", "000001Z")
    for name, expected in (("created_before", ids[:1]), ("created_after", ids[1:])):
        page = await world.get("/v1/generations", **{name: bound})
        assert [each["id"] for each in page["data"]] == expected, name
