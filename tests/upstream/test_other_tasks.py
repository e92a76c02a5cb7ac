"""What is another task's is never read as the end of the one that was asked about."""

from typing import Any

import pytest

from service.upstream import wire
from tests.upstream.test_named_tasks import PNG, outcome_of, read_create, read_poll
from tests.upstream.test_wire import read_callback

OTHER = {"id": "other", "status": "completed", "output": [PNG]}
FAILED = {"id": "other", "status": "failed", "error": "nsfw"}


def report_of(body: Any) -> wire.Report:
    report = read_poll(body)
    assert isinstance(report, wire.Report)
    return report


@pytest.mark.parametrize("item", [OTHER, FAILED, {"id": "other", "output": [PNG]}])
def test_an_item_with_an_id_and_an_outcome_is_the_task_of_a_list(item: Any) -> None:
    above = {"status": "success", "data": {"status": "success", "tasks": [item]}}
    for body in ([item], {"code": 200, "data": [item]}, {"data": {"list": [item]}}, above):
        assert report_of(body).task_ids == ("other",)
    assert read_callback([item]).task_ids == ("other",)


def test_a_list_of_others_with_ids_names_no_other_name_of_the_task() -> None:
    answer = read_poll([OTHER, {**FAILED, "id": "third"}])
    assert outcome_of(answer) == "other_task"


def test_a_list_with_the_task_that_was_asked_about_is_read() -> None:
    for body in ([OTHER, {**OTHER, "id": "mine"}], {"data": [{**OTHER, "id": "mine"}, OTHER]}):
        assert report_of(body).task_ids == ("mine",)


@pytest.mark.parametrize(
    "body",
    [
        {"task_id": "mine", "data": [OTHER]},
        {"request_id": "mine", "data": [OTHER]},
        {"data": {"task_id": "mine", "status": "completed", "list": [OTHER]}},
        {"data": {"job_id": "mine", "list": [OTHER]}},
    ],
)
def test_beside_the_task_that_was_asked_about_items_are_none(body: Any) -> None:
    assert "other" not in report_of(body).task_ids


@pytest.mark.parametrize(
    "clip",
    [
        {"id": "c", "status": "complete"},
        {"id": "c", "status": "text"},
        {"id": "c", "status": "error", "audio_url": ""},
        {"id": "c", "status": "success", "audioUrl": PNG},
    ],
)
def test_a_clip_is_no_task(clip: Any) -> None:
    # udioapi.pro/docs/generate-callback.
    assert read_callback([clip]).task_ids == ()
    assert report_of({"data": {"list": [clip]}}).task_ids == ()


def test_a_result_with_an_id_is_a_part_of_the_task() -> None:
    picture = {"id": "p", "status": "completed", "url": PNG}
    for body in ({"status": "completed", "data": [picture]}, {"data": {"images": [picture]}}):
        assert report_of(body).task_ids == ()
    answer = read_create(
        {"created": 1, "data": [picture, {**picture, "id": "q", "url": PNG + "?q"}]}
    )
    assert isinstance(answer, wire.Report)
    assert (answer.task_id, len(answer.files)) == (None, 2)


@pytest.mark.parametrize("key", ["jobId", "uuid", "generation_id"])
def test_a_job_in_data_is_what_the_answer_is_about(key: str) -> None:
    for id_ in ("other", "mine"):
        body = {"code": 200, "data": {key: id_, "status": "completed", "output": [PNG]}}
        assert report_of(body).task_ids == (id_,)


def test_the_id_that_was_asked_about_names_the_task_as_the_id_of_a_request() -> None:
    # fal.ai/docs/model-apis/model-endpoints/queue, /webhooks.
    failed = report_of({"request_id": "mine", "status": "ERROR", "error": "code: 422"})
    assert (failed.state, failed.error_message) == ("failed", "code: 422")
    done = report_of({"request_id": "mine", "status": "COMPLETED", "error": "timed out"})
    assert (done.state, done.error_message) == ("failed", "timed out")
    done = report_of({"request_id": "mine", "status": "COMPLETED", "images": [{"url": PNG}]})
    assert (done.state, len(done.files)) == ("succeeded", 1)


@pytest.mark.parametrize("code", [401, 404, 429, 500, 503])
def test_a_task_that_says_that_it_failed_has_failed_whatever_code_is_around_it(code: int) -> None:
    # docs.kie.ai/market/common/get-task-detail, /suno-api/generate-music-callbacks.
    market = {"taskId": "mine", "state": "fail", "failCode": "500", "failMsg": "no gpu"}
    music = {"callbackType": "error", "task_id": "mine", "data": None}
    for data in (market, music):
        body = {"code": code, "msg": "no gpu", "data": data}
        for report in (report_of(body), read_callback(body)):
            assert (report.state, report.error_message) == ("failed", "no gpu")


@pytest.mark.parametrize(
    "body",
    [
        {"code": 500, "msg": "x", "data": {"taskId": "mine"}},
        {"code": 500, "msg": "x", "data": {"taskId": "mine", "state": "waiting"}},
        {"code": 500, "msg": "x", "data": {"state": "fail"}},
        {"code": 500, "msg": "x", "task_id": "mine", "status": "error"},
    ],
)
def test_a_code_alone_asks_again(body: Any) -> None:
    assert outcome_of(read_poll(body)) == "unwell"


# Operations


VIDEO = {"video": {"uri": "https://cdn.example.com/v.mp4"}}


@pytest.mark.parametrize("key", ["done", "completed"])
@pytest.mark.parametrize("more", [{}, {"response": VIDEO}, {"error": {"message": "x"}}])
def test_what_is_explicitly_not_done_is_still_working(key: str, more: Any) -> None:
    for body in (
        {"name": "mine", key: False, **more},
        {"data": {"task_id": "mine", key: False, **more}},
    ):
        report = report_of(body)
        assert (report.state, report.possible, report.files) == ("processing", None, ())


def test_an_operation_that_is_done_has_a_response_or_an_error() -> None:
    # google.aip.dev/151.
    report = report_of({"name": "mine", "done": True, "error": {"code": 3, "message": "no such"}})
    assert (report.state, report.error_message) == ("failed", "no such")
    report = report_of({"name": "mine", "done": True, "response": VIDEO})
    assert (report.state, len(report.files)) == ("succeeded", 1)
    report = report_of({"name": "mine", "done": True, "video_url": "https://cdn.example.com/v.mp4"})
    assert report.state == "processing"
    report = report_of({"task_id": "mine", "status": "processing", "done": True, "response": VIDEO})
    assert report.state == "processing"


@pytest.mark.parametrize("key", ["tasks", "result", "results", "items", "jobs", "output"])
@pytest.mark.parametrize("around", [None, "result", "data"])
def test_of_a_list_of_tasks_under_any_name_only_the_one_that_was_asked_about_is_read(
    key: str, around: str | None
) -> None:
    mine = {"task_id": "mine", "status": "completed", "url": PNG + "?mine"}
    others = [{**OTHER, "task_id": "other"}, {**FAILED, "task_id": "third"}]
    for items in ([*others, mine], [mine, *others]):
        body: Any = {"status": "success", key: items}
        report = report_of({around: body} if around else body)
        assert (report.state, report.task_ids) == ("succeeded", ("mine",))
        assert [file.url for file in report.files] == [PNG + "?mine"]
    if not around:
        assert outcome_of(read_poll({"status": "success", key: others})) == "other_task"


@pytest.mark.parametrize("key", ["images", "results", "jobs", "sub_tasks", "tasks", "children"])
def test_tasks_within_a_task_that_has_no_other_result_are_its_parts(key: str) -> None:
    about = {"task_id": "mine", "status": "completed", "created_at": "2026-11-26T10:00:00Z"}
    part = {"task_id": "p1", "status": "completed", "url": PNG}
    for body in ({**about, key: [part]}, {"data": {**about, key: [part]}}):
        report = report_of(body)
        assert (report.state, [file.url for file in report.files]) == ("succeeded", [PNG])
        # Those of another generation make the answer that one's.
        assert report.other_ids("mine") == ("p1",)
    parts = [part, {"task_id": "p2", "status": "processing"}]
    assert report_of({**about, key: parts}).state == "processing"
    failed = {"task_id": "mine", "status": "failed", key: parts}
    assert report_of(failed).state == "failed"


def test_beside_a_result_tasks_within_a_task_are_others() -> None:
    other = {"task_id": "p1", "status": "processing", "url": PNG + "?other"}
    body = {"task_id": "mine", "status": "completed", "url": PNG, "tasks": [other]}
    report = report_of(body)
    assert (report.state, [file.url for file in report.files]) == ("succeeded", [PNG])


def test_the_id_that_was_asked_about_names_the_task_beside_any_word() -> None:
    # docs.leonardo.ai/reference/getgenerationbyid: "complete" is a word of clips elsewhere.
    task = {"id": "mine", "status": "COMPLETE", "generated_images": [{"id": "i1", "url": PNG}]}
    report = report_of({"generations_by_pk": task})
    assert (report.state, report.task_ids) == ("succeeded", ("mine",))
    assert [file.url for file in report.files] == [PNG]


@pytest.mark.parametrize("key", ["delete_url", "upload_url", "detailUrl", "cancel_url"])
def test_a_url_of_the_task_is_no_file(key: str) -> None:
    for more in ({key: PNG + "?of=task"}, {"output": {key: PNG + "?of=task"}}):
        report = report_of({"data": {"task_id": "mine", "status": "completed", **more}})
        assert (report.state, report.files) == ("processing", ())
