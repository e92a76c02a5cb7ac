"""A file that the request named is never the result."""

from typing import Any

import msgspec
import pytest

from service.upstream import wire
from tests.upstream.test_wire import JSON, PNG, urls

IN = "https://cdn.example.com/in.png"
SENT = {"prompt": "as https://cdn.example.com/word.png shows", "images": [IN]}


def read_create(value: Any, status: int = 200, sent: Any = SENT) -> wire.Answer:
    request = msgspec.json.encode(sent)
    return wire.read_create(status, JSON, msgspec.json.encode(value), request)


def read_poll(data: Any, sent: Any = SENT) -> wire.Report:
    body = msgspec.json.encode({"code": 200, "data": data})
    report = wire.read_poll(200, JSON, body, "t", sent)
    assert isinstance(report, wire.Report)
    return report


@pytest.mark.parametrize(
    "data",
    [
        {"model": "m", "images": [IN], "eta": 20},
        {"image_urls": [IN]},
        {"image": "HTTPS://cdn.example.com/in.png"},
        {"url": IN},
        {"image": "https://cdn.example.com/word.png"},
    ],
)
def test_an_input_that_a_create_answer_repeats_is_no_result(data: dict[str, Any]) -> None:
    answer = read_create({"code": 200, "message": "accepted", "data": data})
    assert isinstance(answer, wire.NoReport)
    assert answer.outcome == "lost"


@pytest.mark.parametrize("key", ["images", "output", "url", "an_unknown_key"])
def test_a_final_word_beside_an_input_has_no_file_yet(key: str) -> None:
    report = read_poll({"task_id": "t", "status": "completed", key: [IN]})
    assert (report.state, report.files) == ("processing", ())
    assert report.possible
    assert report.possible.files == ()


@pytest.mark.parametrize(
    "data",
    [
        {"images": [IN, PNG]},
        {"url": IN, "images": [PNG]},
        {"output": {"image": IN, "url": PNG}},
        {"images": [IN], "result": {"an_unknown_key": [PNG]}},
    ],
)
def test_the_result_beside_an_input_is_the_result(data: dict[str, Any]) -> None:
    report = read_poll({"task_id": "t", "status": "completed", **data})
    assert (report.state, urls(report)) == ("succeeded", [PNG])


def test_an_input_beside_no_word_or_an_unknown_one_is_no_possible_result() -> None:
    for word in (None, "melting"):
        report = read_poll({"task_id": "t", "status": word, "output": [IN]})
        assert report.possible is None


def test_a_file_that_was_sent_in_base64_is_no_result() -> None:
    content = "/9j/" + "A" * 80
    report = read_poll(
        {"task_id": "t", "status": "completed", "image": content}, {"image": content}
    )
    assert report.files == ()


def test_a_busy_upstream_that_repeats_an_input_is_asked_again() -> None:
    answer = read_create({"message": "busy", "data": {"images": [IN]}}, 503)
    assert isinstance(answer, wire.NoReport)
    assert answer.outcome == "put_off"
    answer = read_create({"message": "busy", "data": {"images": [PNG]}}, 503)
    assert isinstance(answer, wire.NoReport)
    assert answer.outcome == "lost"


@pytest.mark.parametrize("key", ["result", "output", "content", "url", "response", "images"])
@pytest.mark.parametrize("inside", [{"url": IN}, {"output": [IN]}, {"a": {"image_url": IN}}])
@pytest.mark.parametrize("form", ["{}", " {} scene", "{}\n", "[{}]"])
def test_a_link_in_a_text_of_json_that_was_sent_is_no_result(
    key: str, inside: dict[str, Any], form: str
) -> None:
    prompt = form.replace("{}", msgspec.json.encode(inside).decode())
    within = msgspec.json.encode({"prompt": prompt}).decode()
    for sent in (prompt, within):
        body = {"task_id": "t", "status": "completed", "image_url": PNG, key: sent}
        report = read_poll(body, {"prompt": sent})
        assert (report.state, urls(report)) == ("succeeded", [PNG])
