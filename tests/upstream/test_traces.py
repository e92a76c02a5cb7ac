"""What looks like a task at any depth of an answer keeps a submission from being sent again."""

from typing import Any

import msgspec
import pytest

from service.upstream import wire
from tests.upstream.test_named_tasks import JSON, outcome_of, read_create

T = "n47abc123_x"
ERROR = {"success": False, "error": {"message": "slow"}}


def inside(value: Any) -> str:
    return msgspec.json.encode(value).decode()


@pytest.mark.parametrize("status", [400, 425, 429, 503])
@pytest.mark.parametrize(
    "error",
    [
        {"code": 7, "message": "queued", "task_id": T},
        {"message": "busy", "data": {"taskId": T}},
        [{"message": "busy", "task_id": T}],
        inside({"task_id": T}),
        inside({"error": inside({"task_id": T})}),
    ],
)
def test_a_task_that_an_error_names_is_asked_about(error: Any, status: int) -> None:
    assert outcome_of(read_create({"error": error}, status)) == f"taken as {T}"
    assert outcome_of(read_create({"success": False, "error": error})) == f"taken as {T}"


@pytest.mark.parametrize("key", ["video_id", "runId", "uid", "order_id", "batchID", "ID", "Guid"])
def test_an_id_under_an_unknown_name_is_not_sent_again(key: str) -> None:
    for value in (T, 4711, 12.5, "..", "z" * 513):
        for body in ({key: value}, {"data": {key: value}}, {"error": {"meta": [{key: value}]}}):
            assert outcome_of(read_create({"error": "busy", **body}, 503)) == "lost"
            assert outcome_of(read_create({**ERROR, **body})) == "lost"


@pytest.mark.parametrize("id_", ["..", 12.5, "z" * 513])
def test_an_id_that_cannot_be_asked_about_is_not_sent_again(id_: Any) -> None:
    assert outcome_of(read_create({"data": {"task_id": id_}}, 429)) == "lost"


@pytest.mark.parametrize("word", ["completed", "queued", "IN_PROGRESS"])
def test_a_word_of_a_task_is_not_sent_again(word: str) -> None:
    for body in ({"data": {"status": word}}, {"error": {"message": "busy", "state": word}}):
        assert outcome_of(read_create(body, 503)) == "lost"


@pytest.mark.parametrize(
    "message", [inside({"run_id": T}), f"queued, task_id={T}", f'{{"task_id": "{T}']
)
def test_a_text_that_names_a_task_is_not_sent_again(message: str) -> None:
    assert outcome_of(read_create({"message": message}, 503)) == "lost"


def test_a_page_that_names_a_task_is_not_sent_again() -> None:
    page = f"<p>Busy: your task ID: {T} is queued.</p>".encode()
    assert outcome_of(wire.read_create(503, JSON, page)) == "lost"
    assert outcome_of(wire.read_create(503, JSON, b"<p>Busy: no task.</p>")) == "put_off"


def test_several_tasks_in_an_error_are_not_asked_about() -> None:
    running = [{"task_id": "a"}, {"task_id": "b"}]
    body = {"error": {"message": "too many at once", "running": running}}
    assert outcome_of(read_create(body, 429)) == "lost"


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "busy", "request_id": T}, "trace_id": T, "user_id": 7},
        {"error": {"message": "busy", "log_id": T, "task_id": None, "quotaId": T}, "id": ""},
        {"error": {"message": "busy", "status": "error", "param": None}, "status": "success"},
        {"error": {"message": "busy", "paid": False, "task_id": 0}},
        {"error": {"message": "busy"}, "input": {"image_id": "sent", "prompt": "task_id: 5"}},
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_what_is_only_of_the_request_is_sent_again(body: Any, status: int) -> None:
    request = msgspec.json.encode({"image_id": "sent", "prompt": "task_id: 5"})
    assert outcome_of(read_create(body, status, request)) == "put_off"
