"""What is said about wrong fields: words of JSON, not of msgspec."""

from pathlib import Path
from typing import Any

import pytest

from service.model.json_input import TOO_MANY
from tests.harness import opened

URL = {"url": "http://127.0.0.1:7/inbox"}
WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("subscribers", {**URL, "max_in_flight": 101}, "/max_in_flight", "must be at most 100"),
    (
        "subscribers",
        {**URL, "payload": "x"},
        "/payload",
        "must be one of: full, thin, cloudevents",
    ),
    ("subscribers", {**URL, "signature": "x"}, "/signature", "must be one of: v1, v1a"),
    (
        "keys",
        {"name": "a", "scopes": ["read", "x"]},
        "/scopes/1",
        "must be one of: submit, read, manage, admin, operator",
    ),
    ("subscribers", {**URL, "description": "\0"}, "/description", "contains a character that"),
    (
        "subscribers",
        {**URL, "description": "x" * 501},
        "/description",
        "must have at most 500 characters",
    ),
    (
        "subscribers",
        {**URL, "retry_schedule_seconds": []},
        "/retry_schedule_seconds",
        "must have at least 1 entry",
    ),
    (
        "subscribers",
        {**URL, "rate_per_second": "x"},
        "/rate_per_second",
        "must be a number or null, not a string",
    ),
    ("subscribers", {**URL, "filter": {"models": [1]}}, "/filter/models/0", "must be a string,"),
    ("subscribers", {**URL, "colour": 1}, "/colour", "is not a field of this request"),
    ("subscribers", {}, "/url", "is required"),
    (
        "generations",
        {"model": "m", "input": {}, "metadata": {"a": "1", "b/c": 1, "d": 2}},
        "/metadata/b~1c",
        "must be a string, not a whole number",
    ),
    (
        "generations",
        {"model": "m", "input": {"long": "x" * 70_000}, "metadata": {"a": 1}},
        "/metadata/a",
        "must be a string, not a whole number",
    ),
    (
        "subscribers",
        {**URL, "filter": {"metadata": {"a": None}}},
        "/filter/metadata/a",
        "must be a string, not null",
    ),
    ("generations", {"model": "m", "input": []}, "/input", "must be an object, not an array"),
    ("keys", {"name": "\x1b[31m", "scopes": ["read"]}, "/name", "contains a character that"),
    ("keys", {"name": "a\n", "scopes": ["read"]}, "/name", "contains a character that"),
]


@pytest.mark.parametrize(("noun", "body", "pointer", "message"), WRONG)
async def test_a_wrong_field_is_named_in_the_words_of_json(
    tmp_path: Path, noun: str, body: dict[str, Any], pointer: str, message: str
) -> None:
    async with opened(tmp_path) as world:
        answer = await world.client.post(f"/v1/{noun}", json=body)
    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert error["pointer"] == pointer
    assert error["message"].startswith(message)
    assert "`" not in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"url": 1, ',
        b'{"url": 1} x',
        b'{"url": 1, "x": "\xff"}',
        b'{"x": 1, "y": ' + b"[" * 5_000,
    ],
)
async def test_a_wrong_field_of_what_is_no_json_is_not_named(tmp_path: Path, body: bytes) -> None:
    async with opened(tmp_path) as world:
        answer = await world.client.post("/v1/subscribers", content=body)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_json")


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "A body is needed: a JSON object."),
        (b" \n", "A body is needed: a JSON object."),
        (b'{"metadata": {"a": "\\ud800"}}', "A text of the body has half of a surrogate pair,"),
        (b'{"metadata": {"a": "x\\udc00"}}', "A text of the body has half of a surrogate pair,"),
        (b'{"metadata": {"\\ud83d": "a"}}', "A text of the body has half of a surrogate pair,"),
        (b'{"metadata": {"a": "\\ud83d\\ude00"}', "The body is not JSON: Input data was truncated"),
        (b"{", "The body is not JSON: Input data was truncated"),
        (b'{"a": NaN}', "The body is not JSON: JSON is malformed: invalid character (byte 6)"),
    ],
)
async def test_a_body_that_is_no_json_is_told_why(tmp_path: Path, body: bytes, detail: str) -> None:
    async with opened(tmp_path) as world:
        answer = await world.client.post("/v1/generations", content=body)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_json")
        assert answer.json()["detail"].startswith(detail)


@pytest.mark.parametrize(
    ("noun", "body", "pointer", "message"),
    [
        (
            "generations",
            b'{"model": "m", "input": {"a": 1e400}}',
            "/input",
            "has an entry that is a number out of range",
        ),
        ("subscribers", b'{"max_in_flight": -1e400}', "/max_in_flight", "is a number out of range"),
        (
            "subscribers",
            b'{"url": "http://127.0.0.1:7", "max_in_flight": 1.0}',
            "/max_in_flight",
            "must be a whole number, written without a fraction or an exponent",
        ),
    ],
)
async def test_a_wrong_number_is_told_why(
    tmp_path: Path, noun: str, body: bytes, pointer: str, message: str
) -> None:
    async with opened(tmp_path) as world:
        answer = await world.client.post(f"/v1/{noun}", content=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
        assert answer.json()["errors"] == [{"pointer": pointer, "message": message}]


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        (b'{"max_in_flight": 1e400, "url": 1}', ["/max_in_flight"]),
        (b'{"url": 1, "x": "' + b"x" * 100_000 + b'"}', ["/x", "/url"]),
    ],
)
async def test_a_wrong_field_is_named_also_beside_what_is_very_large(
    tmp_path: Path, body: bytes, pointers: list[str]
) -> None:
    async with opened(tmp_path) as world:
        answer = await world.client.post("/v1/subscribers", content=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
        assert [error["pointer"] for error in answer.json()["errors"]] == pointers


async def test_a_body_of_very_many_values_is_refused_and_one_of_much_text_is_not(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        lists = b'{"model":"m","input":{"l":[' + b"[]," * 300_000 + b"[]]}}"
        answer = await world.client.post("/v1/generations", content=lists)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
        [error] = answer.json()["errors"]
        assert error == {"pointer": "", "message": TOO_MANY}
        text = b'{"model":"m","input":{"t":"' + b",[{" * 300_000 + b'"}}'
        assert (await world.client.post("/v1/generations", content=text)).status_code == 202


async def test_every_wrong_field_is_named(tmp_path: Path) -> None:
    body = {"model": 1, "input": {}, "metadata": {"a": 2}, "foo": 3, "b/r": 4}
    async with opened(tmp_path) as world:
        answer = await world.client.post("/v1/generations", json=body)
        assert answer.status_code == 422
        wrong = {error["pointer"] for error in answer.json()["errors"]}
        assert wrong == {"/model", "/metadata/a", "/foo", "/b~1r"}
        answer = await world.client.post("/v1/replays", json={"colour": "x"})
        messages = {error["pointer"]: error["message"] for error in answer.json()["errors"]}
        assert messages.pop("/colour") == "is not a field of this request"
        assert set(messages.values()) == {"is required"}
        assert "/subscriber_id" in messages
