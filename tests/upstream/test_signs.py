"""A submission is sent again only where nothing in the answer shows that a task was made."""

from typing import Any

import pytest

from tests.upstream.test_named_tasks import outcome_of, read_create

T = "n47abc123_x"
ERROR = {"success": False, "error": {"message": "not ready in time"}}
JOBS = ["job_id", "generationId", "prediction_id", "operation_id", "uuid", "taskUuid"]
QUEUED: dict[str, Any] = {
    "status": "IN_QUEUE",
    "request_id": T,
    "response_url": f"https://queue.test/m/requests/{T}",
    "status_url": f"https://queue.test/m/requests/{T}/status",
    "queue_position": 0,
}


@pytest.mark.parametrize("key", JOBS)
def test_the_only_job_in_an_answer_is_the_task(key: str) -> None:
    for body in ({key: T}, {"data": {key: T}}, {"generation": {key: T}}, {"made": {key: T}}):
        assert outcome_of(read_create({"success": True, **body})) == f"taken as {T}"
        assert outcome_of(read_create({**ERROR, **body})) == f"taken as {T}"
        assert outcome_of(read_create({"status": "queued", **body}, 503)) == f"taken as {T}"


def test_of_several_jobs_none_is_surely_the_task() -> None:
    body = {**ERROR, "job_id": T, "uuid": "u"}
    assert outcome_of(read_create(body)) == "lost"
    assert outcome_of(read_create(body, 503)) == "lost"


def test_a_refusal_may_have_the_id_of_a_job() -> None:
    assert outcome_of(read_create({"error": "no such size", "uuid": T}, 422)) == "refused"


def test_the_id_of_a_request_names_a_task_that_is_queued() -> None:
    # fal.ai/docs/model-apis/model-endpoints/queue.
    assert outcome_of(read_create(QUEUED)) == f"taken as {T}"
    assert outcome_of(read_create({"success": True, "request_id": T})) == f"taken as {T}"
    assert outcome_of(read_create({"request_id": T}, 503)) == "put_off"


def test_an_operation_is_named_by_its_name() -> None:
    # google.aip.dev/151.
    body = {"name": "models/veo/operations/o1", "done": False}
    assert outcome_of(read_create(body)) == "taken as models/veo/operations/o1"


@pytest.mark.parametrize("key", ["request_id", "name", "id"])
def test_an_unknown_error_beside_any_id_is_not_sent_again(key: str) -> None:
    for body in ({key: T}, {"data": {key: T}}):
        assert outcome_of(read_create({**ERROR, **body})) != "put_off"


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"code": 0, "message": ""}},
        {"error": {"code": 0, "message": ""}, "data": {"status": "queued"}},
        {"success": False, "message": "queued", "queue_position": 3},
        {"success": False, "status": "queued"},
        {"error": {"message": "no callback"}, "urls": {"get": f"https://api.test/tasks/{T}"}},
        {"error": {"message": "no callback"}, "status_url": f"https://api.test/tasks/{T}"},
    ],
)
def test_a_place_in_a_queue_or_an_empty_error_is_no_refusal(body: dict[str, Any]) -> None:
    assert outcome_of(read_create(body)) == "lost"


def test_a_place_in_a_queue_is_one_also_if_the_request_has_the_same_number() -> None:
    for body in ({"queue_position": 3}, {"data": {"position_in_queue": 3}}):
        assert outcome_of(read_create(body, 503, b'{"num_images":3}')) == "lost"
        assert outcome_of(read_create({**ERROR, **body}, 200, b'{"num_images":3}')) == "lost"


def test_the_urls_of_a_task_are_a_sign_wherever_they_lead() -> None:
    # replicate.com/docs/reference/http.
    body = {"message": "busy", "urls": {"get": "https://api.test/v1/p", "cancel": "/v1/p/cancel"}}
    assert outcome_of(read_create(body, 503)) == "lost"
    assert outcome_of(read_create({**ERROR, **body})) == "lost"


def test_a_word_that_means_working_outweighs_a_status() -> None:
    for status in (429, 503):
        body = {"status": "queued", "message": "accepted, warming up"}
        assert outcome_of(read_create(body, status)) == "lost"


def test_an_error_that_names_nothing_is_sent_again() -> None:
    for body in (ERROR, {"success": False}, {"error": {"code": "E", "message": "no gpu"}}):
        assert outcome_of(read_create(body)) == "put_off"
