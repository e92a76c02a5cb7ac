"""A code of a body outranks what the body says of a task only where a table knows the code."""

from typing import Any

import msgspec
import pytest

from service.upstream import wire
from tests.upstream.test_named_tasks import outcome_of
from tests.upstream.test_wire import JSON, PNG, read_accepted, read_callback, read_rejected, urls

UNKNOWN = [10_000, "10000", 1_000, 200_000, 2_000, -1, 5_000]
TROUBLE = [401, 402, 403, 404, 408, 425, 429, 500, 503]


def ask(value: Any) -> wire.Answer:
    return wire.read_poll(200, JSON, msgspec.json.encode(value), "mine")


def outcome(value: Any) -> str:
    answer = ask(value)
    return answer.state if isinstance(answer, wire.Report) else answer.outcome


@pytest.mark.parametrize("code", UNKNOWN)
@pytest.mark.parametrize("named", [{"task_id": "mine"}, {}])
def test_beside_an_unknown_code_the_word_of_the_task_decides(code: Any, named: Any) -> None:
    for word, state in (("done", "succeeded"), ("failed", "failed"), ("queued", "processing")):
        body = {"code": code, "message": "ok", "data": {**named, "status": word, "images": [PNG]}}
        for report in (ask(body), read_callback(body)):
            assert isinstance(report, wire.Report)
            assert (report.state, report.is_proof) == (state, True)
    flat = {"code": code, "task_id": "mine", "status": "completed", "images": [PNG]}
    assert outcome(flat) == "succeeded"


@pytest.mark.parametrize("code", UNKNOWN)
def test_an_unknown_code_without_a_word_of_a_task_asks_again(code: Any) -> None:
    for data in (None, {}, {"seed": 1}):
        assert outcome({"code": code, "message": "?", "data": data}) == "unwell"
    assert outcome({"code": code, "message": "?", "status": "failed"}) == "unwell"


@pytest.mark.parametrize("code", TROUBLE)
def test_a_code_of_trouble_outranks_a_success(code: int) -> None:
    body = {"code": code, "data": {"task_id": "mine", "status": "completed", "images": [PNG]}}
    assert not isinstance(ask(body), wire.Report)
    assert read_callback(body).state == "processing"


def test_a_code_of_a_body_is_not_called_an_http_status() -> None:
    for code in (500, 503, 10_000):
        answer = ask({"code": code, "data": {}})
        assert isinstance(answer, wire.NoReport)
        assert answer.message
        assert answer.message.startswith(f"code {code}: ")


@pytest.mark.parametrize("code", UNKNOWN)
def test_a_create_with_an_unknown_code_is_read_by_what_it_holds(code: Any) -> None:
    task = read_accepted({"code": code, "message": "Success", "data": {"task_id": "t"}})
    assert (task.state, task.task_id) == ("processing", "t")
    result = read_accepted({"code": code, "message": "Success", "data": {"image_urls": [PNG]}})
    assert (result.state, urls(result)) == ("succeeded", [PNG])
    assert read_rejected({"code": code, "message": "?", "data": None}).outcome == "lost"


def test_a_task_that_says_at_the_top_that_it_failed_has_failed_also_with_500() -> None:
    body = {"task_id": "mine", "status": "failed", "code": 500, "message": "NSFW content"}
    answer = ask(body)
    assert isinstance(answer, wire.Report)
    assert (answer.state, answer.error_message) == ("failed", "NSFW content")
    # What is not named, or may be said of the request, is asked about again.
    for other in ({"task_id": None}, {"status": "error"}, {"code": 503}, {"code": 429}):
        assert outcome({**body, **other}) in ("unwell", "throttled")


@pytest.mark.parametrize(
    "word", ["partial_success", "PARTIALLY_SUCCEEDED", "partial", "partially completed", "Done"]
)
def test_what_succeeded_in_part_is_a_success_with_its_files(word: str) -> None:
    task = {"task_id": "mine", "status": word, "errors": ["1 of 4 filtered"]}
    answer = ask({"data": {**task, "images": [PNG]}})
    assert isinstance(answer, wire.Report)
    assert (answer.state, urls(answer)) == ("succeeded", [PNG])
    assert answer.raw["data"]["errors"] == ["1 of 4 filtered"]
    assert outcome({"data": task}) == "failed"


def test_a_code_beside_another_task_ends_nothing_of_this_one() -> None:
    body = {"code": 10_000, "data": {"task_id": "other", "status": "done", "images": [PNG]}}
    assert outcome_of(ask(body)) == "taken as other"
