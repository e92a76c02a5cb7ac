"""The running service keeps the contract: every operation, every code, every event."""

import gzip
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.call import PAGING
from service.api.endpoint import ANSWERED_IN_FRONT
from service.api.routes import OPERATIONS, Operation
from service.model.errors import SearchTooLongError
from service.store import pages
from tests.contract.contract import DOCUMENT, breaches, faults, operations, resolve
from tests.contract.scenes import (
    SPAN,
    Ids,
    Witness,
    another_tenant,
    client_with,
    guarded,
    named,
    path_of,
    populate,
)
from tests.harness import ADMIN_KEY, SUBSCRIBER_URL, Harness, SentWebhook, opened

FORMS = ("full", "thin", "cloudevents")
SCOPES = ("submit", "read", "manage", "admin", "operator")
GENERATION = {"model": "imagen4", "input": {"prompt": "a small harbour"}}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Harness]:
    async with opened(tmp_path) as harness:
        yield harness


async def statuses(
    client: httpx.AsyncClient, chosen: list[Operation], ids: Ids, **options: Any
) -> dict[str, tuple[int, str]]:
    """The status and code with which each operation answers the same kind of request."""
    answers: dict[str, tuple[int, str]] = {}
    for each in chosen:
        answer = await client.request(each.method, path_of(each, ids), **options)
        assert breaches(answer) == []
        code = answer.json()["code"] if answer.status_code >= 400 else ""
        answers[named(each)] = (answer.status_code, code)
    return answers


def every(chosen: list[Operation], status: int, code: str) -> dict[str, tuple[int, str]]:
    assert chosen
    return {named(each): (status, code) for each in chosen}


def test_the_document_and_the_table_of_routes_have_the_same_operations() -> None:
    served = {named(each) for each in OPERATIONS}
    served |= {f"{method} {path}" for path, method in ANSWERED_IN_FRONT}
    assert {name for name, _ in operations()} == served


def test_the_document_and_the_table_of_routes_agree_on_scopes_parameters_and_bodies() -> None:
    documented = dict(operations())
    for each in OPERATIONS:
        operation = documented[named(each)]
        parameters = [resolve(node) for node in operation.get("parameters", [])]
        query = {node["name"] for node in parameters if node["in"] == "query"}
        known = {name.rstrip(".") for name in each.query}
        creates = any(node["name"] == "Idempotency-Key" for node in parameters)
        rules = (operation["x-scope"], query, creates, "requestBody" in operation)
        assert rules == (each.scope, known, bool(each.creates), each.reads_body), named(each)
        assert operation.get("x-operators", False) == each.for_operators, named(each)


async def call_everything(world: Harness, ids: Ids) -> None:
    """Call every operation once, successfully; those that delete come last."""
    post, get = world.client.post, world.client.get
    await post("/v1/signing-secret/rotate", json={"overlap_seconds": 60})
    await post(f"/v1/subscribers/{ids['sub']}/rotate-secret")
    await world.client.patch(f"/v1/subscribers/{ids['sub']}", json={"status": "paused"})
    await post(f"/v1/subscribers/{ids['sub']}/test")
    await post(f"/v1/generations/{ids['gen']}/refresh")
    await post(f"/v1/generations/{ids['canceled']}/cancel")
    await post(f"/v1/generations/{ids['canceled']}/retry")
    await post(f"/v1/deliveries/{ids['dlv']}/retry")
    await post(f"/v1/replays/{ids['rpl']}/cancel")
    await post("/v1/tick?seconds=5")
    await get("/healthz")
    for each in OPERATIONS:
        if each.method == "GET":
            await get(path_of(each, ids))
    for noun, of in (("subscribers", "sub"), ("keys", "key"), ("generations", "gen")):
        await world.client.delete(f"/v1/{noun}/{ids[of]}")


async def test_every_operation_answers_with_success_as_documented(world: Harness) -> None:
    witness = Witness()
    witness.watch(world.client)
    witness.watch(world.anonymous)
    await call_everything(world, await populate(world))
    assert witness.breaches == []
    assert witness.succeeded == {name for name, _ in operations()}


async def test_every_list_ends_its_pages_early_by_bytes_and_goes_on(
    world: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await populate(world)
    await client_with(world, "read")
    lists = [each for each in OPERATIONS if each.query >= PAGING]
    whole = {each.path: (await world.get(each.path))["data"] for each in lists}
    monkeypatch.setattr(pages, "PAGE_BYTES", 1)
    for path, expected in whole.items():
        rows: list[Any] = []
        after: dict[str, str] = {}
        while True:
            page = await world.get(path, **after)
            assert len(page["data"]) == 1, path  # Never none: a larger row is a page of its own.
            rows += page["data"]
            if page["next"] is None:
                break
            after = {"after": page["next"]}
        assert [row["id"] for row in rows] == [row["id"] for row in expected], path
    assert len(whole) >= 7
    assert any(len(rows) > 1 for rows in whole.values())


async def test_every_list_pages_through_all_its_rows_in_both_orders(world: Harness) -> None:
    await populate(world)
    await client_with(world, "read")
    for each in OPERATIONS:
        if not each.query >= PAGING:
            continue
        all_rows = (await world.get(each.path))["data"]
        for order, expected in (("desc", all_rows), ("asc", all_rows[::-1])):
            rows: list[Any] = []
            after: dict[str, str] = {}
            while page := (await world.get(each.path, limit=2, order=order, **after))["data"]:
                rows += page
                after = {"after": page[-1]["id"]}
            assert rows == expected, (each.path, order)
        assert len(all_rows) >= 2, each.path


async def test_a_list_ends_with_null_but_the_pull_of_events_never_does(world: Harness) -> None:
    await populate(world)
    for path in ("/v1/generations", "/v1/events"):
        page = await world.get(path, limit=1)
        assert page["next"] == page["data"][0]["id"]
        assert (await world.get(path))["next"] is None
    pulled = await world.get("/v1/events", order="asc")
    assert pulled["next"] == pulled["data"][-1]["id"]
    rest = await world.get("/v1/events", order="asc", after=pulled["next"])
    assert rest == {"data": [], "next": None}


async def test_events_reach_subscribers_as_the_webhooks_section_says(world: Harness) -> None:
    subscribers = [
        await world.subscribe(f"http://127.0.0.1:7/{form}", payload=form, signature="v1a")
        for form in FORMS
    ]
    await populate(world)
    await world.generate()
    await world.run(world.settings.deadline_seconds)
    await world.subscribe("http://127.0.0.1:7/gone")
    world.subscribers.answers["http://127.0.0.1:7/gone"].append(410)
    await world.generate()
    await world.run()
    for form, subscriber in zip(FORMS, subscribers, strict=True):
        await world.client.post(f"/v1/subscribers/{subscriber['id']}/test")
        sent = world.subscribers.webhooks_to(f"http://127.0.0.1:7/{form}")
        assert [fault for each in sent for fault in webhook_faults(each)] == []
        assert {type_of(each) for each in sent} == set(DOCUMENT["webhooks"])
        assert {"ce-type" in each.headers for each in sent} == {form == "cloudevents"}


def type_of(sent: SentWebhook) -> str:
    return sent.headers.get("ce-type") or str(sent.event["type"])


def webhook_faults(sent: SentWebhook) -> list[str]:
    """How a webhook breaks the contract."""
    webhook = DOCUMENT["webhooks"][type_of(sent)]["post"]
    media = webhook["requestBody"]["content"][sent.headers["content-type"]]
    errors = faults(media["schema"], sent.event)
    for parameter in map(resolve, webhook["parameters"]):
        value = sent.headers.get(parameter["name"])
        if value is not None or parameter.get("required"):
            errors += faults(parameter["schema"], value)
    return errors


async def test_an_event_is_read_byte_for_byte_as_it_was_sent(world: Harness) -> None:
    await populate(world)
    sent = world.subscribers.webhooks_to(SUBSCRIBER_URL)[0]
    answer = await world.client.get(f"/v1/events/{sent.event['id']}")
    assert answer.content == sent.body


async def test_without_a_key_every_guarded_operation_answers_401(world: Harness) -> None:
    ids = await populate(world)
    strangers = ("", "Bearer", "Bearer ghk_" + "b" * 40, f"Basic {ADMIN_KEY}", ADMIN_KEY)
    for header in strangers:
        async with world.new_client("") as client:
            client.headers["authorization"] = header
            assert await statuses(client, guarded(), ids) == every(guarded(), 401, "unauthorized")


async def test_with_every_scope_but_its_own_an_operation_answers_403(world: Harness) -> None:
    ids = await populate(world)
    for scope in SCOPES:
        including = "operator" if scope == "operator" else "admin"
        others = [each for each in SCOPES if each not in (scope, including)]
        chosen = guarded(lambda each, scope=scope: each.scope == scope)  # type: ignore[misc]
        for operators in (True, False):
            closed = [each for each in chosen if each.for_operators == operators]
            scopes = [each for each in others if not (operators and each == "operator")]
            async with await client_with(world, *scopes) as client:
                expected = {named(each): (403, "forbidden") for each in closed}
                assert await statuses(client, closed, ids) == expected


async def test_with_its_own_scope_alone_an_operation_is_open(world: Harness) -> None:
    ids = await populate(world)
    for scope in (*SCOPES[:3], "operator"):
        is_operator = scope == "operator"
        chosen = [e for e in guarded() if e.scope == scope or (is_operator and e.for_operators)]
        async with await client_with(world, scope) as client:
            answers = await statuses(client, chosen, ids)
        assert all(status not in (401, 403) for status, _ in answers.values()), answers


async def test_another_tenants_rows_answer_404_everywhere(world: Harness) -> None:
    ids = await populate(world)
    owned = guarded(lambda each: "{id}" in each.path)
    async with await another_tenant(world) as other:
        answers = await statuses(other, owned, ids, json={})
        assert answers == every(owned, 404, "not_found")
        other_ids = await populate(world, other)
        assert (await other.get(f"/v1/generations/{other_ids['gen']}")).status_code == 200
        async with await client_with(world, "admin") as client:  # No operator.
            assert await statuses(client, owned, other_ids, json={}) == answers
        for each in OPERATIONS:
            if each.query >= PAGING and each.path != "/v1/keys":
                page, other_page = await world.get(each.path), (await other.get(each.path)).json()
                known = {row["id"] for row in page["data"]}
                assert known.isdisjoint(row["id"] for row in other_page["data"]), each.path


@pytest.mark.parametrize("id_", ["gen_1", "nonsense", "evt_" + "0" * 32, "%00", "a%2Fb", "é"])
async def test_an_unknown_id_answers_404(world: Harness, id_: str) -> None:
    owned = guarded(lambda each: "{id}" in each.path)
    ids = dict.fromkeys(("gen", "canceled", "cb", "sub", "evt", "dlv", "rpl", "key"), id_)
    expected = every(owned, 404, "not_found")
    assert await statuses(world.client, owned, ids, json={}) == expected


async def test_an_unknown_query_parameter_answers_400(world: Harness) -> None:
    ids = await populate(world)
    wrong = every(guarded(), 400, "invalid_query")
    for query in ("nonsense=1", "nonsense", "metadata=1", "LIMIT=1", "%FF=1"):
        assert await statuses(world.client, guarded(), ids, params=query) == wrong, query


async def test_an_open_operation_ignores_the_query(world: Harness) -> None:
    opened = [path_of(each, {}) for each in OPERATIONS if each.scope == "open"]
    for path in ("/healthz", *opened):
        assert (await world.client.get(path, params="probe=1")).status_code == 200


async def test_health_is_answered_before_the_api_is_loaded(world: Harness) -> None:
    for method in ("GET", "HEAD"):
        answer = await world.anonymous.request(method, "http://genhook/healthz")
        assert answer.status_code == 200
        assert answer.headers["x-request-id"]
    assert "_api" not in vars(world.app)


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("generations", "limit=0"),
        ("generations", "limit=251"),
        ("generations", "limit=01"),
        ("generations", "limit=1&limit=1"),
        ("generations", "model=a&model=b"),
        ("generations", "model=%FF"),
        ("generations", "metadata.a=%00"),
        ("generations", "limit=" + "0" * 5000),
        ("generations", "order=up"),
        ("generations", "after=nonsense"),
        ("generations", "after=evt_" + "0" * 32),
        ("generations", "status=done"),
        ("generations", "model=two%20words"),
        ("generations", "created_after=yesterday"),
        ("generations", "created_before=2026-11-22"),
        ("generations", "created_before=2026-02-31T00:00:00Z"),
        ("generations", "metadata.=1"),
        ("generations", "metadata.a%20b=1"),
        ("generations", "metadata.a=" + "x" * 501),
        ("generations", "&".join(f"metadata.k{number}=1" for number in range(21))),
        ("callbacks", "verdict=maybe"),
        ("callbacks", "generation_id=gen_1"),
        ("events", "type=generation.lost"),
        ("events", "generation_id=gen_1"),
        ("deliveries", "status=lost"),
        ("deliveries", "subscriber_id=sub_1"),
        ("deliveries", "event_id=gen_" + "0" * 32),
        ("models", "kind=images"),
        ("models", "callbacks=yes"),
        ("models", "sort=id"),
        ("generations/gen_1", "wait=61"),
        ("generations/gen_1", "wait=-1"),
        ("generations/gen_1", "wait=1.5"),
        ("generations/gen_1", "wait=" + "0" * 9 + "9" * 5000),
        ("usage", "since=2026-02-31"),
        ("usage", "until=20261122"),
        ("usage", "since=2026-11-19&until=2026-11-18"),
        ("usage", "since=2025-11-17&until=2026-11-18"),
        ("usage", "model="),
    ],
)
async def test_a_wrong_query_parameter_answers_400_and_names_it(
    world: Harness, path: str, query: str
) -> None:
    answer = await world.client.get(f"/v1/{path}", params=query)
    assert breaches(answer) == []
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_query")
    [error] = answer.json()["errors"]
    assert error["pointer"].startswith("?" + re.split(r"[.=]", query)[0])


async def test_too_many_query_parameters_are_refused_as_the_whole_query(world: Harness) -> None:
    query = "&".join(f"metadata.k{number}=1" for number in range(101))
    answer = await world.client.get(f"/v1/generations?{query}")
    assert breaches(answer) == []
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_query")
    [error] = answer.json()["errors"]
    assert error["pointer"] == "?"
    assert error["message"] in answer.json()["detail"], "else the command line shows both"


@pytest.mark.parametrize(("method", "pointer"), [("GET", "?"), ("POST", "")])
async def test_a_search_that_takes_too_long_is_refused_as_a_whole(
    world: Harness, monkeypatch: pytest.MonkeyPatch, method: str, pointer: str
) -> None:
    subscriber = await world.subscribe()

    async def look(*_args: object) -> None:
        raise SearchTooLongError

    monkeypatch.setattr(world.app.database, "search", look)
    body = {"subscriber_id": subscriber["id"], **SPAN, "dry_run": True}
    path = "/v1/replays" if method == "POST" else "/v1/events"
    answer = await world.client.request(method, path, json=body)
    assert breaches(answer) == []
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_query")
    [error] = answer.json()["errors"]
    assert error["pointer"] == pointer
    assert error["message"] in answer.json()["detail"], "else the command line shows both"


async def test_every_text_that_metadata_may_have_can_be_searched(world: Harness) -> None:
    for text in ("caf\ufffd.png", "caf\u00e9.png", "\U0001f4f7 +&=%"):
        generation = await world.generate(metadata={"file": text})
        found = await world.get("/v1/generations", **{"metadata.file": text})
        assert [each["id"] for each in found["data"]] == [generation["id"]]
    answer = await world.client.get("/v1/generations?metadata.file=caf%C3%A9.png")
    assert len(answer.json()["data"]) == 1


@pytest.mark.parametrize("query", ["metadata.a=%FF", "metadata.%FF=a", "metadata.a=%ED%A0%80"])
async def test_a_query_that_is_not_utf_8_is_refused(world: Harness, query: str) -> None:
    answer = await world.client.get(f"/v1/generations?{query}")
    assert breaches(answer) == []
    [error] = answer.json()["errors"]
    assert error["message"] == "must be UTF-8 without NUL"


@pytest.mark.parametrize("seconds", ["0", "61", "ten", "1e1", ""])
async def test_a_tick_takes_1_to_60_seconds(world: Harness, seconds: str) -> None:
    answer = await world.client.post("/v1/tick", params={"seconds": seconds})
    assert breaches(answer) == []
    assert answer.json()["code"] == "invalid_query"


async def test_a_body_that_is_not_json_answers_400(world: Harness) -> None:
    ids = await populate(world)
    readers = guarded(lambda each: each.reads_body)
    expected = every(readers, 400, "invalid_json")
    for body in (b"{", b"\xff", b"NaN", b"{'a': 1}"):
        assert await statuses(world.client, readers, ids, content=body) == expected, body[:20]


async def test_a_name_twice_in_a_body_answers_400_and_is_named(world: Harness) -> None:
    ids = await populate(world)
    readers = guarded(lambda each: each.reads_body)
    expected = every(readers, 400, "invalid_json")
    for body in (b'{"a":1,"a":1}', b'{"b":[{"a":1,"\\u0061":{}}],"c":"::"}', b'{"":0,"":0}'):
        assert await statuses(world.client, readers, ids, content=body) == expected, body
    body = b'{"model":"m","input":{"n":"%s","x:\\"":1,"x:\\"":2}}' % (b"a" * 100_000)
    answer = await world.client.post("/v1/generations", content=body)
    assert answer.json()["detail"] == (
        r'An object of the body gives "x:\"" twice: give each name once.'
    )
    assert breaches(answer) == []


async def test_no_body_is_an_error_where_one_is_required(world: Harness) -> None:
    ids = await populate(world)
    required = guarded(lambda each: each.reads_body and "rotate" not in each.path)
    expected = every(required, 400, "invalid_json")
    assert await statuses(world.client, required, ids) == expected


async def test_an_unknown_field_answers_422_and_points_to_it(world: Harness) -> None:
    ids = await populate(world)
    readers = guarded(lambda each: each.reads_body)
    expected = every(readers, 422, "invalid_request")
    assert await statuses(world.client, readers, ids, json={"no/such~field": 1}) == expected
    answer = await world.client.patch(f"/v1/subscribers/{ids['sub']}", json={"no/such~field": 1})
    assert answer.json()["errors"][0]["pointer"] == "/no~1such~0field"


async def test_a_body_that_is_not_an_object_answers_422(world: Harness) -> None:
    ids = await populate(world)
    readers = guarded(lambda each: each.reads_body)
    expected = every(readers, 422, "invalid_request")
    for body in (b"[]", b"null", b"1", b'"text"'):
        assert await statuses(world.client, readers, ids, content=body) == expected


async def test_another_content_type_answers_415(world: Harness) -> None:
    ids = await populate(world)
    readers = guarded(lambda each: each.reads_body)
    for media_type in ("text/plain", "application/x-www-form-urlencoded", "application/jsonx"):
        options = {"content": b"{}", "headers": {"content-type": media_type}}
        answers = await statuses(world.client, readers, ids, **options)
        assert answers == every(readers, 415, "unsupported_media_type")


async def test_a_body_with_a_content_encoding_answers_415(world: Harness) -> None:
    ids = await populate(world)
    readers = guarded(lambda each: each.reads_body)
    for body in (gzip.compress(b"{}"), b"{}"):
        options = {"content": body, "headers": {"content-encoding": "gzip"}}
        answers = await statuses(world.client, readers, ids, **options)
        assert answers == every(readers, 415, "unsupported_media_type")
    headers = {"content-encoding": "Identity", "content-type": "application/json"}
    answer = await world.client.post("/v1/generations", content=b"{}", headers=headers)
    assert (answer.status_code, "Encoding" in answer.text) == (422, False)


async def test_a_content_type_with_a_charset_is_accepted(world: Harness) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    answer = await world.client.post("/v1/signing-secret/rotate", content=b"{}", headers=headers)
    assert answer.status_code == 200


async def test_a_body_over_the_limit_answers_413(tmp_path: Path) -> None:
    async with opened(tmp_path, request_body_bytes=1_024) as world:
        readers = guarded(lambda each: each.reads_body)
        body = b'{"a": "' + b"x" * 1_024 + b'"}'
        answers = await statuses(world.client, readers, {}, content=body)
        assert answers == every(readers, 413, "body_too_large")


async def test_the_body_of_a_get_is_not_read(world: Harness) -> None:
    ids = await populate(world)
    others = guarded(lambda each: each.method == "GET")
    headers = {"content-type": "text/plain"}
    for each in others:
        answer = await world.client.request(
            each.method, path_of(each, ids), content=b"{", headers=headers
        )
        assert breaches(answer) == []
        assert answer.status_code in (200, 202, 204, 404), named(each)


async def test_a_wrong_method_answers_405_with_the_methods_that_there_are(world: Harness) -> None:
    ids = await populate(world)
    for path, item in DOCUMENT["paths"].items():
        documented = {verb.upper() for verb in item} - {"PARAMETERS"}
        there = path.replace("{upstream}", "apiinone").replace("{token}", "t")
        there = there.replace("{id}", ids["gen"])
        answer = await world.client.put(there)
        assert breaches(answer) == []
        assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed"), path
        assert set(answer.headers["allow"].split(", ")) - {"HEAD"} == documented, path


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v2/generations", "/v1/generations/", "/healthz/", "/callbacks/x/y/z"]
)
async def test_an_unknown_path_answers_404_as_a_problem(world: Harness, path: str) -> None:
    answer = await world.client.get(path)
    assert breaches(answer) == []
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_every_answer_names_its_request_and_a_problem_repeats_the_name(
    world: Harness,
) -> None:
    own_id = "from-the-caller_1.2"
    answer = await world.client.get("/v1/generations/gen_1", headers={"x-request-id": own_id})
    assert answer.headers["x-request-id"] == own_id == answer.json()["request_id"]
    for harmful in ("a b", "x" * 65, "\u00e9", "<script>"):
        headers = {b"x-request-id": harmful.encode()}
        answer = await world.client.get("/v1/nowhere", headers=headers)
        assert re.fullmatch(r"req_[0-9a-f]{32}", answer.headers["x-request-id"])
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
    callback = await world.anonymous.post("http://genhook/callbacks/apiinone/nonsense")
    assert callback.json()["request_id"] == callback.headers["x-request-id"]


BODYLESS = guarded(lambda each: each.method != "GET" and not each.reads_body)


@pytest.mark.parametrize("operation", BODYLESS, ids=named)
async def test_what_a_body_means_is_never_ignored(world: Harness, operation: Operation) -> None:
    ids = await populate(world)
    path, creates = path_of(operation, ids), len(world.upstream.creates)

    async def send(content: bytes) -> httpx.Response:
        answer = await world.client.request(operation.method, path, content=content)
        assert breaches(answer) == []
        return answer

    for body in (b'{"dry_run": true}', b"[]", b'"' + b"x" * 9_999 + b'"'):
        answer = await send(body)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert (await send(b'{"dry_run": true}')).json()["errors"] == [
        {"pointer": "/dry_run", "message": "is not a field of this request"}
    ]
    for body in (b"{", b"a=1"):
        answer = await send(body)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_json")
    assert (await send(b" " * 1_048_577)).json()["code"] == "body_too_large"
    assert len(world.upstream.creates) == creates
    assert (await send(b" {} \n")).is_success
