"""A task is done when all of it is: its parts, its progress, and not only its envelope."""

from typing import Any

import msgspec
import pytest

from service.upstream import wire
from tests.upstream.test_wire import JSON, PNG, read_callback, read_poll, urls

OTHER = "https://cdn.example.com/out/2.png"


def body(where: str, word: str) -> dict[str, Any]:
    part, whole = {"url": PNG, "status": word}, {"url": OTHER, "state": "success"}
    bodies: dict[str, dict[str, Any]] = {
        "under the top": {"id": "t", "status": "success", "result": part},
        "under the task": {"data": {"task_id": "t", "status": "success", "output": part}},
        "in a list": {"data": {"task_id": "t", "status": "success", "tasks": [whole, part]}},
        "deeper": {"data": {"id": "t", "status": "completed", "output": {"images": [whole, part]}}},
        "without a word above": {"data": {"task_id": "t", "videos": [whole, part]}},
    }
    return bodies[where]


PLACES = ["under the top", "under the task", "in a list", "deeper", "without a word above"]


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("word", ["processing", "RUNNING", "queued"])
def test_an_open_part_keeps_its_task_open(where: str, word: str) -> None:
    for report in (read_poll(body(where, word)), read_callback(body(where, word))):
        assert (report.state, report.files, report.possible) == ("processing", (), None)


@pytest.mark.parametrize("where", PLACES)
def test_a_part_with_an_unknown_word_proves_nothing_at_once(where: str) -> None:
    report = read_poll(body(where, "rendering"))
    assert (report.state, report.files, report.recognised) == ("processing", (), False)
    assert report.word == "rendering"


@pytest.mark.parametrize("key", ["status", "state", "task_status", "taskStatus"])
def test_a_part_has_its_word_under_the_names_that_a_task_has(key: str) -> None:
    for word, state in (("processing", "processing"), ("failed", "failed")):
        part = {"url": PNG, key: word}
        assert read_poll({"id": "t", "status": "success", "result": part}).state == state
        assert read_poll({"id": "t", "status": "success", "outputs": [part]}).state == state


@pytest.mark.parametrize("where", PLACES[:3])
def test_parts_that_are_all_done_are_the_result(where: str) -> None:
    report = read_poll(body(where, "completed"))
    assert report.state == "succeeded"
    assert PNG in urls(report)


def test_a_part_that_failed_gives_no_file() -> None:
    report = read_poll(body("in a list", "failed"))
    assert (report.state, urls(report)) == ("succeeded", [OTHER])
    report = read_poll(body("under the task", "failed"))
    assert (report.state, report.files) == ("failed", ())


def test_a_part_that_failed_hides_no_file_outside_of_it() -> None:
    checks = {"status": "failed", "url": PNG}
    done = {"task_id": "t", "status": "completed", "url": OTHER, "info": checks}
    report = read_poll({"data": done})
    assert (report.state, urls(report)) == ("succeeded", [OTHER])


def test_parts_that_are_done_beside_a_progress_and_no_word_prove_nothing() -> None:
    report = read_poll({"data": {"task_id": "t", "progress": 40, "result": {"state": "done"}}})
    assert (report.state, report.possible) == ("processing", None)
    part = {"state": "completed", "url": PNG}
    report = read_poll({"data": {"task_id": "t", "progress": 40, "result": part}})
    assert (report.state, report.possible) == ("processing", None)


@pytest.mark.parametrize("status", [200, "200", True, " "])
def test_a_code_beside_a_result_is_no_word_of_a_part(status: Any) -> None:
    output = {"status": status, "url": PNG}
    report = read_poll({"data": {"task_id": "t", "status": "completed", "output": output}})
    assert (report.state, urls(report)) == ("succeeded", [PNG])


@pytest.mark.parametrize("key", ["metadata", "input", "webhook", "user", "error"])
def test_what_is_no_result_has_no_say(key: str) -> None:
    data = {"task_id": "t", "status": "completed", "url": PNG, key: {"status": "pending"}}
    assert read_poll({"data": data}).state == "succeeded"


@pytest.mark.parametrize(
    "key", ["outputs", "jobs", "children", "sub_tasks", "predictions", "shots", "scenes"]
)
def test_parts_stand_in_a_list_or_under_any_name(key: str) -> None:
    whole, part = {"status": "completed", "url": PNG}, {"status": "processing"}
    done = {"status": "completed", "url": OTHER}
    for make in (list, lambda parts: dict(zip("ab", parts, strict=True))):
        for parts, state in ([whole, part], "processing"), ([whole, done], "succeeded"):
            value = make(parts)
            for more in ({key: value}, {"output": {key: value}}):
                report = read_poll({"data": {"task_id": "t", "status": "completed", **more}})
                assert (report.state, report.possible) == (state, None)
                assert urls(report) == ([PNG, OTHER] if state == "succeeded" else [])


def test_an_unknown_word_under_any_name_within_a_result_has_no_say() -> None:
    output = {"url": PNG, "checks": {"status": "not needed"}}
    report = read_poll({"data": {"task_id": "t", "status": "completed", "output": output}})
    assert (report.state, urls(report)) == ("succeeded", [PNG])


@pytest.mark.parametrize("where", PLACES[:4])
@pytest.mark.parametrize("failed", ["failed", "CANCELLED"])
def test_a_failure_above_an_open_part_is_still_working(where: str, failed: str) -> None:
    value = body(where, "processing")
    (value.get("data") or value)["status"] = failed
    for report in (read_poll(value), read_callback(value)):
        assert (report.state, report.possible, report.word) == ("processing", None, failed)
    value = body(where, "failed")
    (value.get("data") or value)["status"] = failed
    assert read_poll(value).state == "failed"


# The envelope


@pytest.mark.parametrize("word", ["success", "OK", "completed"])
def test_a_body_without_an_id_or_data_ends_no_task(word: str) -> None:
    for more in ({"url": PNG}, {"output": {"url": PNG}}, {"result": {"status": word, "url": PNG}}):
        value = {"status": word, "message": "in queue", **more}
        for report in (read_poll(value), read_callback(value)):
            assert (report.state, report.word, report.files) == ("processing", None, ())
            assert report.possible
            assert urls(report.possible) == [PNG]


def test_a_link_beside_a_failure_that_names_no_task_is_no_result() -> None:
    for word in ("failed", "error"):
        report = read_callback({"status": word, "message": "see the url", "url": PNG})
        assert (report.state, report.possible) == ("processing", None)


def test_a_picture_in_data_without_an_id_or_a_word_is_only_a_possible_result() -> None:
    report = read_poll({"status": "success", "data": {"image": PNG, "eta": 30}})
    assert (report.state, report.files) == ("processing", ())
    assert report.possible


@pytest.mark.parametrize("progress", [0, 40, "40%", 99.5, 0.4, "0.40"])
@pytest.mark.parametrize("link", [{}, {"preview_url": PNG}, {"url": PNG}])
def test_a_success_of_the_envelope_beside_progress_is_still_working(
    progress: Any, link: dict[str, str]
) -> None:
    for value in (
        {"status": "success", "task_id": "t", "data": {"progress": progress, **link}},
        {"status": "success", "task_id": "t", "progress": progress, "data": link},
        {"status": "success", "task_id": "t", "progress": progress, **link},
    ):
        report = read_poll(value)
        assert (report.state, report.possible) == ("processing", None)


@pytest.mark.parametrize("progress", [100, "100%", 1.0, "1.00", None, "done"])
def test_a_success_beside_all_of_its_progress_is_done(progress: Any) -> None:
    report = read_poll(
        {"status": "success", "task_id": "t", "data": {"progress": progress, "url": PNG}}
    )
    assert (report.state, urls(report)) == ("succeeded", [PNG])


# Previews and errors


@pytest.mark.parametrize("key", ["thumbnail_url", "preview_url", "previews", "poster"])
def test_a_preview_is_no_result_beside_one_and_only_a_possible_one_alone(key: str) -> None:
    preview: Any = [OTHER] if key == "previews" else OTHER
    done = {"task_id": "t", "status": "completed"}
    report = read_poll({"data": {**done, "output": {key: preview, "url": PNG}}})
    assert urls(report) == [PNG]
    report = read_poll({"data": {**done, "output": {key: preview}}})
    assert report.state == "processing"
    assert report.possible
    assert urls(report.possible) == [OTHER]


@pytest.mark.parametrize(
    "more", [{"output": {"error": "out of memory"}}, {"output": None, "error": "out of memory"}]
)
def test_a_final_word_beside_an_error_and_no_file_is_a_failure(more: dict[str, Any]) -> None:
    report = read_poll({"id": "t", "status": "COMPLETED", **more})
    assert (report.state, report.error_message) == ("failed", "out of memory")


@pytest.mark.parametrize("code", [401, 403, 408, 425, 429, 500, 503])
def test_an_error_in_data_that_is_about_the_question_ends_no_task(code: int) -> None:
    data = {"task_id": "t", "error": {"code": code, "message": "later"}}
    content = msgspec.json.encode({"data": data})
    assert isinstance(wire.read_poll(200, JSON, content, "t"), wire.NoReport)
    assert not read_callback({"data": data}).is_proof
    assert read_poll({"data": {**data, "status": "failed"}}).state == "failed"


@pytest.mark.parametrize("code", [400, 422, 451, 501, 1234, "nsfw"])
def test_any_other_error_in_data_is_the_tasks(code: Any) -> None:
    error = {"code": code, "message": "no"}
    assert read_poll({"data": {"task_id": "t", "error": error}}).state == "failed"


@pytest.mark.parametrize("errors", [["no gpu"], [{"message": "no gpu"}], [{"msg": "no gpu"}, "x"]])
@pytest.mark.parametrize("key", ["error", "errors"])
def test_a_list_of_errors_is_an_error(key: str, errors: Any) -> None:
    for word in ({"status": "unheard of"}, {}, {"status": "completed"}):
        report = read_poll({"data": {"task_id": "t", key: errors, **word}})
        assert (report.state, report.error_message) == ("failed", "no gpu")
    empties: list[Any] = [[], [""], [None], [{}]]
    for empty in empties:
        report = read_poll({"data": {"task_id": "t", "status": "unheard of", key: empty}})
        assert report.state == "processing"


@pytest.mark.parametrize(
    "key",
    ["progress", "progress_percent", "percent", "progressPercent", "percentage", "completion"],
)
@pytest.mark.parametrize("progress", [50, "50 %", 0.5])
def test_files_beside_any_progress_prove_nothing_under_an_unknown_word(
    key: str, progress: Any
) -> None:
    about: dict[str, Any] = {"task_id": "t", "status": "unheard of"}
    for more in ({key: progress, "url": PNG}, {"output": {key: progress, "url": PNG}}):
        report = read_poll({"data": {**about, **more}})
        assert (report.state, report.possible) == ("processing", None)
    report = read_poll({key: progress, "data": {**about, "url": PNG}})
    assert (report.state, report.possible) == ("processing", None)
    assert read_poll({"data": {**about, key: 100, "url": PNG}}).possible
