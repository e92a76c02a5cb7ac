"""A task that an answer names is asked about, whatever else the answer says."""

from typing import Any

import msgspec
import pytest

from service.upstream import wire

JSON = {"content-type": "application/json"}
PNG = "https://cdn.example.com/out/1.png"
OPEN = {"id": "t1", "status": "pending", "model": "m", "created_at": "2026-01-01T00:00:00Z"}


def read_create(value: Any, status: int = 200, request: bytes = b"") -> wire.Answer:
    return wire.read_create(status, JSON, msgspec.json.encode(value), request)


def outcome_of(answer: wire.Answer) -> str:
    return answer.outcome if isinstance(answer, wire.NoReport) else f"taken as {answer.task_id}"


NAMING = [
    OPEN,
    {"code": 503, "message": "busy", "task_id": "t1"},
    {"code": 503, "message": "busy", "data": {"taskId": "", "id": "t1"}},
    {"error": {"message": "busy"}, "data": [{"task_id": "t1"}]},
    {"message": "busy", "result": {"task_id": "t1"}},
    {"message": "busy", "output": {"task_id": "t1"}},
    {"message": "busy", "task": {"id": "t1", "status": "completed", "images": [PNG]}},
]


@pytest.mark.parametrize("status", [409, 425, 429, 500, 503, 504])
@pytest.mark.parametrize("body", NAMING)
def test_a_submission_whose_trouble_names_a_task_is_taken(body: Any, status: int) -> None:
    answer = read_create(body, status)
    assert isinstance(answer, wire.Report)
    assert (answer.state, answer.task_id, answer.files) == ("processing", "t1", ())


@pytest.mark.parametrize("code", [400, 409, 429, 503, 777])
def test_a_code_beside_a_task_hides_no_task(code: int) -> None:
    assert outcome_of(read_create({"code": code, "data": {"task_id": "t1"}})) == "taken as t1"


def test_an_error_without_a_known_code_hides_no_task() -> None:
    body = {"success": False, "message": "still working", "output": {"task_id": "t1"}}
    assert outcome_of(read_create(body)) == "taken as t1"


@pytest.mark.parametrize("status", [429, 503])
def test_the_id_of_a_request_is_no_task(status: int) -> None:
    for error in ({"error": {"message": "busy"}}, {"message": "busy", "status": "error"}):
        assert outcome_of(read_create({"id": "req_1", **error}, status)) == "put_off"


def test_an_id_that_was_sent_is_no_new_task() -> None:
    request = msgspec.json.encode({"prompt": "on", "task_id": "parent1"})
    body = {"message": "the task cannot be extended", "data": {"task_id": "parent1"}}
    assert outcome_of(read_create(body, 400, request)) == "refused"
    assert outcome_of(read_create(body, 503, request)) == "lost"


@pytest.mark.parametrize("status", [400, 502, 503])
def test_an_id_within_a_text_that_was_sent_is_a_new_task(status: int) -> None:
    request = msgspec.json.encode({"prompt": "paint cat-1", "tag": "cat-2", "sizes": [10, 12]})
    for id_ in ("cat-1", 1):
        answer = read_create({"message": "x", "data": {"task_id": id_}}, status, request)
        assert outcome_of(answer) == f"taken as {id_}"
    for id_ in ("cat-2", 12):
        answer = read_create({"message": "x", "data": {"task_id": id_}}, status, request)
        assert isinstance(answer, wire.NoReport)


def test_a_refusal_that_calls_its_task_failed_is_a_refusal() -> None:
    body = {"task_id": "t1", "status": "failed", "error": "nsfw"}
    assert outcome_of(read_create(body, 422)) == "refused"


@pytest.mark.parametrize(
    "body", [{"data": {"status": "completed", "images": [PNG]}}, {"output": PNG}, {"images": [PNG]}]
)
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_upstream_that_sends_files_is_not_asked_again(body: Any, status: int) -> None:
    assert outcome_of(read_create(body, status)) == "lost"
    assert outcome_of(read_create({"code": status, **body})) == "lost"


def test_a_piece_of_an_answer_names_its_task_and_ends_nothing() -> None:
    whole = msgspec.json.encode({"data": {"task_id": "t1", "status": "SUCCESS", "images": [PNG]}})
    for piece in (whole, whole[:-20]):
        answer = wire.read_piece(200, JSON, piece, b"")
        assert answer == wire.Report("processing", "t1", ("t1",))
    assert outcome_of(wire.read_piece(503, JSON, b"", b"")) == "lost"


# Polls: the answer is about the task that was asked about


def read_poll(value: Any, status: int = 200) -> wire.Answer:
    return wire.read_poll(status, JSON, msgspec.json.encode(value), "mine")


def item(task_id: str, word: str, **more: Any) -> dict[str, Any]:
    return {"task_id": task_id, "status": word, **more}


OTHER = item("other", "completed", url=PNG + "?other")
DONE = item("mine", "completed", url=PNG)


@pytest.mark.parametrize(
    ("body", "state"),
    [
        ({"data": [OTHER, item("mine", "processing")]}, "processing"),
        ({"data": [OTHER, item("mine", "failed")]}, "failed"),
        ({"data": [OTHER, DONE]}, "succeeded"),
        ([OTHER, DONE], "succeeded"),
        ({"data": [{"id": "other", "status": "completed"}, {"id": "mine", **DONE}]}, "succeeded"),
        ({"data": [DONE, item("mine", "processing")]}, "processing"),
        (item("mine", "processing", data=OTHER), "processing"),
        (item("mine", "failed", data=OTHER), "failed"),
        (item("mine", "processing", data=[OTHER]), "processing"),
        ({"task_id": "mine", "data": [OTHER]}, "processing"),
    ],
)
def test_the_task_that_was_asked_about_is_read(body: Any, state: str) -> None:
    report = read_poll(body)
    assert isinstance(report, wire.Report)
    assert (report.state, report.task_id) == (state, "mine")
    assert [file.url for file in report.files] == ([PNG] if state == "succeeded" else [])


def test_a_success_of_the_request_is_not_the_word_of_a_task_in_data() -> None:
    report = read_poll(item("mine", "success", data=item("behind", "processing")))
    assert isinstance(report, wire.Report)
    assert (report.state, report.task_id) == ("processing", "behind")


def test_a_list_of_other_tasks_names_no_other_name_of_the_task() -> None:
    answer = read_poll({"data": [OTHER, item("third", "completed", url=PNG)]})
    assert outcome_of(answer) == "other_task"


@pytest.mark.parametrize(
    "body",
    [
        {"data": item("mine", "failed", error="nsfw")},
        {"code": 400, "message": "nsfw", "data": {"task_id": "mine"}},
        {"message": "nsfw", "task_id": "mine"},
    ],
)
def test_a_status_of_400_about_the_task_is_its_failure(body: Any) -> None:
    report = read_poll(body, 400)
    assert isinstance(report, wire.Report)
    assert (report.state, report.error_message) == ("failed", "nsfw")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"data": item("mine", "failed", error="nsfw")}, 401),
        ({"data": item("mine", "failed", error="nsfw")}, 500),
        ({"data": item("mine", "processing"), "code": 400}, 400),
        ({"data": item("other", "failed", error="nsfw")}, 400),
        ({"id": "req_1", "message": "bad request"}, 400),
    ],
)
def test_any_other_error_status_ends_no_task(body: Any, status: int) -> None:
    assert outcome_of(read_poll(body, status)) == "unwell"


def test_a_status_of_400_over_a_task_that_is_done_has_to_be_repeated() -> None:
    report = read_poll({"data": DONE}, 400)
    assert isinstance(report, wire.Report)
    assert (report.state, report.files) == ("processing", ())
    assert report.possible
    assert report.possible.files


# Other names anywhere in the body


@pytest.mark.parametrize(
    "body",
    [
        {"task_id": "other", "data": DONE},
        {"data": {**DONE, "id": "other"}},
        {"data": {**DONE, "job_id": "other"}},
        {"request_id": "other", "data": DONE},
        {"data": {**DONE, "output": {"prediction_id": "other"}}},
        {"data": {**DONE, "output": [{"id": "other"}]}},
        {"data": {**DONE, "result": {"task": {"taskID": "other"}}}},
        {"data": {"status": "completed", "generationId": "other", "url": PNG}},
        {"data": {**item("mine", "failed"), "uuid": "other"}},
        {"data": {**DONE, "results": [OTHER]}},
    ],
)
def test_an_end_tells_every_id_that_may_be_another_tasks(body: Any) -> None:
    report = read_poll(body)
    assert isinstance(report, wire.Report)
    assert report.other_ids("mine") == ("other",)


@pytest.mark.parametrize("key", ["input", "params", "metadata", "error", "parent"])
def test_an_echo_names_no_task(key: str) -> None:
    echo = {"task_id": "other", "id": "other"}
    report = read_poll({"data": {**DONE, key: echo, "parent_task_id": "other", "request_id": 7}})
    assert isinstance(report, wire.Report)
    assert report.other_ids("mine") == ()


@pytest.mark.parametrize("key", ["TaskId", "taskID", "taskid", "task-id", "TASK_ID", "Work_ID"])
def test_the_name_of_a_task_is_read_in_any_spelling(key: str) -> None:
    report = read_poll({"data": {"status": "completed", "url": PNG, key: "other"}})
    assert isinstance(report, wire.Report)
    assert report.task_ids == ("other",)
    assert outcome_of(read_create({"data": {"status": "queued", key: "t1"}})) == "taken as t1"


@pytest.mark.parametrize(
    "body",
    [
        {"data": {"data": OTHER}},
        {"result": OTHER},
        {"data": {"status": "completed", "info": {"taskId": "other", "result_urls": [PNG]}}},
        {"data": {"status": "success", "list": [OTHER]}},
    ],
)
def test_a_task_that_is_named_only_deeper_is_the_one_that_the_body_is_about(body: Any) -> None:
    report = read_poll(body)
    assert isinstance(report, wire.Report)
    assert report.task_ids == ("other",)


@pytest.mark.parametrize("key", ["list", "items", "tasks", "results"])
def test_of_the_tasks_in_a_list_within_data_the_one_that_was_asked_about_is_read(key: str) -> None:
    mine = {"id": "mine", "status": "completed", "url": PNG}
    items = [{"id": "other", "status": "completed", "url": PNG + "?other"}, mine]
    report = read_poll({"data": {"status": "success", key: items}})
    assert isinstance(report, wire.Report)
    assert [file.url for file in report.files] == [PNG]
    assert report.other_ids("mine") == ("other",)


def test_what_stands_beside_the_task_in_a_list_is_not_its_result() -> None:
    report = read_poll({"task_id": "mine", "data": [OTHER]})
    assert isinstance(report, wire.Report)
    assert report.possible is None
    report = read_poll({"data": {**DONE, "results": [OTHER]}})
    assert isinstance(report, wire.Report)
    assert [file.url for file in report.files] == [PNG]


def test_a_callback_that_names_only_the_id_of_a_job_is_no_proof() -> None:
    body = {"data": {"job_id": "unknown", "status": "completed", "url": PNG}}
    report = wire.read_callback(msgspec.json.encode(body))
    assert report is not None
    assert (report.state, report.is_proof) == ("processing", False)


def test_an_id_is_taken_as_written() -> None:
    assert outcome_of(read_create({"data": {"task_id": " lead "}})) == "taken as  lead "
    assert outcome_of(read_create({"data": {"task_id": "  "}})) == "lost"
