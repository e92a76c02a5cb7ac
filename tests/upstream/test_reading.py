"""Reads links, codes, envelopes and odd characters of strangers: the rules of reading."""

from typing import Any
from urllib.parse import quote

import msgspec
import pytest

from service.upstream import wire
from service.upstream.results import File
from service.upstream.wire import NoReport, Report
from tests.upstream.test_wire import JSON, PNG, read_accepted, read_poll, read_rejected, urls

DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5Erk=="


@pytest.mark.parametrize(
    ("text", "url", "media_type"),
    [
        ("HTTPS://a.test/A.png", "https://a.test/A.png", "image/png"),
        ("https://a.test/a b.png", "https://a.test/a%20b.png", "image/png"),
        ("/files/a.png", "/files/a.png", "image/png"),
        ("//cdn.test/a.png", "//cdn.test/a.png", "image/png"),
        ("gs://bucket/a.mp4", "gs://bucket/a.mp4", "video/mp4"),
        ("s3://bucket/a.mp4", "s3://bucket/a.mp4", "video/mp4"),
        ("data:image/webp;base64,AAAA", None, "image/webp"),
        (DOT, None, "image/png"),
        ("/9j/" + "A" * 80, None, "image/jpeg"),
    ],
)
def test_links_are_read_as_people_write_them(text: str, url: str | None, media_type: str) -> None:
    report = read_poll({"data": {"task_id": "n1_a", "status": "SUCCESS", "output": [text]}})
    assert (report.state, report.files) == ("succeeded", (File(url, media_type),))


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("url", "a.png"),
        ("video_url", "files/a.mp4"),
        ("resultImageUrl", "../c.png"),
        ("downloadUrl", "./a.webp?sig=1&x=/"),
        ("files", ["out/a.png"]),
        ("images", [{"url": "out/a.PNG"}]),
        ("videos", ["a/b/c/d.mp4"]),
        ("audio", "song/a.mp3"),
        ("output", {"video_url": "files/a.mp4"}),
    ],
)
def test_a_path_without_a_slash_before_it_is_a_link_where_a_link_belongs(
    key: str, text: Any
) -> None:
    report = read_poll({"data": {"task_id": "n1_a", "status": "SUCCESS", key: text}})
    assert report.state == "succeeded"
    [file] = report.files
    assert file.url
    assert file.url in msgspec.json.encode(text).decode()


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("url", "done"),
        ("url", "1.0"),
        ("url", "v3/model"),
        ("url", "n47_imagen4"),
        ("url", "a picture of cat.png"),
        ("url", "cdn.example.com/a.png"),
        ("url", "C:\\a.png"),
        ("url", "file:a.png"),
        ("url", "ftp://a.test/a.png"),
        ("url", "files/a.json"),
        ("url", "files/"),
        ("url", ".png"),
        ("url", "a/.png"),
        ("url", "x" * 9_000 + ".png"),
        ("output", "cat.png"),
        ("output", ["files/a.png"]),
        ("result", "files/a.png"),
        ("text", "files/a.png"),
        ("image", "mine.png"),
        ("files", ["mine.png"]),
        ("input_url", "files/a.png"),
        ("profiles", ["me/a.png"]),
        ("unknown", [["files/a.png"]]),
    ],
)
def test_what_only_resembles_a_path_is_no_link(key: str, text: Any) -> None:
    report = read_poll({"data": {"task_id": "n1_a", "status": "SUCCESS", key: text}})
    assert (report.state, report.files) == ("processing", ())
    assert report.possible
    assert report.possible.files == ()


@pytest.mark.parametrize(
    ("content_type", "media_type"),
    [("image/png", "image/png"), ("IMAGE/webp;q=1", "image/webp"), ("video/mp4", "video/mp4")],
)
def test_a_raw_picture_or_video_becomes_a_data_url(content_type: str, media_type: str) -> None:
    answer = wire.read_create(200, {"content-type": content_type}, b"\x89PNG")
    assert isinstance(answer, Report)
    assert answer.files == (File(f"data:{media_type};base64,iVBORw==", media_type),)


# Codes of bodies


@pytest.mark.parametrize("code", [23, 425, 429, 430, 455, 503, 1002])
def test_a_code_that_means_come_again_is_sent_again(code: int) -> None:
    answer = read_rejected({"code": code, "msg": "later", "data": None})
    assert (answer.outcome, answer.repeats_max) == ("put_off", None)


@pytest.mark.parametrize("code", [418, 433, 499])
def test_an_unknown_code_is_not_final_because_of_its_size(code: int) -> None:
    assert read_rejected({"code": code, "msg": "?", "data": None}).outcome == "lost"


@pytest.mark.parametrize("body", [{"success": False}, {"error": {"code": 1234, "message": "?"}}])
def test_an_error_without_an_id_is_sent_again_with_a_bound(body: Any) -> None:
    answer = read_rejected(body)
    assert (answer.outcome, answer.repeats_max) == ("put_off", wire.UNKNOWN_REPEATS_MAX)


def test_an_error_that_names_a_task_may_have_been_accepted() -> None:
    assert read_rejected({"id": "t", "error": {"code": 1234, "message": "?"}}).outcome == "lost"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_was_not_taken_and_its_location_is_said(status: int) -> None:
    answer = wire.read_create(status, {"location": "https://new.test/v2"}, b"")
    assert isinstance(answer, NoReport)
    assert (answer.outcome, answer.status) == ("refused", status)
    assert answer.message == f"HTTP {status}: upstream is at https://new.test/v2"


# The envelope, the task and the parts


def test_a_word_of_the_envelope_is_not_the_tasks() -> None:
    data = {"task_id": "n1_a", "progress": 40, "preview": PNG, "output": [PNG]}
    report = read_poll({"status": "success", "data": data})
    assert (report.state, report.word, report.possible) == ("processing", None, None)


def test_a_final_word_above_open_parts_is_still_working() -> None:
    parts = [{"url": PNG, "status": "completed"}, {"status": "processing"}]
    assert read_poll({"id": "t", "status": "completed", "results": parts}).state == "processing"


def test_the_id_in_an_echo_is_not_the_tasks() -> None:
    echo = {"input": {"task_id": "old"}, "param": {"taskId": "old"}, "parent": {"id": "old"}}
    report = read_poll({"data": {"task_id": "new", "status": "SUCCESS", "output": [PNG], **echo}})
    assert report.task_ids == ("new",)


def test_success_without_a_link_is_possible_with_all_that_upstream_gave() -> None:
    report = read_poll({"data": {"task_id": "t", "status": "SUCCESS", "text": "what was said"}})
    assert report.state == "processing"
    assert report.possible is not None
    assert (report.possible.state, report.possible.raw) == ("succeeded", report.raw)


# Odd characters


@pytest.mark.parametrize(
    "odd",
    [
        b'\xef\xbb\xbf{"data":{"task_id":"t","status":"SUCCESS","output":["https://a.test/1.png"]}}',
        b'{"x":NaN,"data":{"task_id":"t","status":"SUCCESS","output":["https://a.test/1.png"]}}',
        b'{"x":"\\ud800","data":{"task_id":"t","status":"SUCCESS","output":["https://a.test/1.png"]}}',
        b'{"x":"a\x01\n","data":{"task_id":"t","status":"SUCCESS","output":["https://a.test/1.png"]}}',
        b'{"x":"\xc3","data":{"task_id":"t","status":"SUCCESS","output":["https://a.test/1.png"]}}',
        b'{"x":1e999,"data":{"task_id":"t","status":"SUCCESS","output":["https://a.test/1.png"]}}',
        b'{"data":{"task_id":"t","status":"SUCCESS","output":["https://a.test/1.png"]}}\n<!-- -->',
        b'{"x":' + b"9" * 5_000 + b',"id":"t","status":"SUCCESS","output":"https://a.test/1.png"}',
        b'{"id":"t","status":"SUCCESS","output":"https://a.test/1.png","x":' + b"[" * 2_000
        + b"]" * 2_000 + b"}",
    ],
)  # fmt: skip
def test_one_odd_character_hides_no_result(odd: bytes) -> None:
    answer = wire.read_poll(200, JSON, odd)
    assert isinstance(answer, Report)
    assert (answer.state, answer.task_id, urls(answer)) == ("succeeded", "t", [PNG_SHORT])
    msgspec.json.encode(answer)


PNG_SHORT = "https://a.test/1.png"


def test_a_body_that_was_cut_may_name_a_task_but_ends_nothing() -> None:
    body = b'{"code":200,"data":{"task_id":"t","status":"FAILED","error":"no","log":"and so'
    created = wire.read_create(200, JSON, body)
    assert isinstance(created, Report)
    assert (created.state, created.task_id) == ("processing", "t")
    polled = wire.read_poll(200, JSON, body)
    assert isinstance(polled, NoReport)
    assert polled.outcome == "unwell"
    called = wire.read_callback(body)
    assert called is not None
    assert called.state == "processing"


@pytest.mark.parametrize("code", [10**30, -(10**30), 2**63])
def test_numbers_for_columns_are_clamped(code: int) -> None:
    answer = wire.read_poll(200, JSON, msgspec.json.encode({"code": code, "msg": "?"}))
    assert isinstance(answer, NoReport)
    assert abs(answer.status or 0) == 2**53


# Ids


@pytest.mark.parametrize("task_id", ["..", ".", "", "x" * 513, None, {}, True])
def test_a_task_id_that_no_path_can_hold_is_none_and_is_said(task_id: Any) -> None:
    answer = read_rejected({"code": 200, "data": {"task_id": task_id}})
    assert answer.outcome == "lost"
    assert answer.message is not None
    assert "task_id" in answer.message


@pytest.mark.parametrize("task_id", ["../keys", "a/b", "a b", "veo3:17#é?%", "x" * 512, 10**40])
def test_a_task_id_is_any_text(task_id: Any) -> None:
    assert read_accepted({"code": 200, "data": {"task_id": task_id}}).task_id == str(task_id)


@pytest.mark.parametrize(
    "data",
    [
        {"status": "completed", "unknown_key": [{"here": "https://cdn.example.com/1.mp4"}]},
        {"task_id": "t", "status": "completed", "preview_url": "https://cdn.example.com/1.mp4"},
    ],
)
def test_a_file_under_an_unknown_key_is_only_a_possible_result(data: dict[str, Any]) -> None:
    for body in (data, {"code": 200, "data": data}):
        report = wire.read_poll(200, JSON, msgspec.json.encode(body))
        assert isinstance(report, wire.Report)
        assert (report.state, report.files) == ("processing", ())
        assert report.possible is not None
        assert [file.url for file in report.possible.files] == ["https://cdn.example.com/1.mp4"]


# Words beside each other, and beside codes


@pytest.mark.parametrize("weak", ["success", "OK", 200, "0"])
@pytest.mark.parametrize("key", ["state", "task_status", "taskStatus"])
def test_a_word_of_the_request_gives_way_to_one_of_the_task(weak: Any, key: str) -> None:
    for word, state in (
        ("processing", "processing"),
        ("failed", "failed"),
        ("completed", "succeeded"),
    ):
        report = read_poll({"task_id": "t", "status": weak, key: word, "output": [PNG]})
        assert (report.state, report.word) == (state, word)
    report = read_poll({"task_id": "t", "status": "processing", key: "success", "output": [PNG]})
    assert report.state == "processing"
    report = read_poll({"task_id": "t", "status": "success", key: "CA", "output": [PNG]})
    assert report.state == "succeeded"


@pytest.mark.parametrize("code", [5_000, 40_119, -1, "10000", 10**30])
def test_a_code_that_nobody_knows_hides_no_failure_of_a_task(code: Any) -> None:
    for more in {"error": {"code": code, "message": "no"}}, {"code": code, "message": "no"}:
        report = read_poll({"task_id": "t", "status": "failed", **more})
        assert (report.state, report.error_message) == ("failed", "no")


@pytest.mark.parametrize("code", [429, 500, 503, 1002])
def test_a_code_about_the_question_beside_a_failure_asks_again(code: int) -> None:
    body = msgspec.json.encode({"task_id": "t", "status": "failed", "error": {"code": code}})
    assert isinstance(wire.read_poll(200, JSON, body), NoReport)


@pytest.mark.parametrize(
    ("body", "url"),
    [
        ({"id": "img-1", "object": "list", "data": [{"index": 0, "url": PNG}]}, PNG),
        ({"artifacts": [{"base64": "iVBORw0KGgo" + "A" * 401, "seed": 1}]}, None),
        (
            {
                "candidates": [
                    {"content": {"parts": [{"inlineData": {"data": "iVBORw0KGgo" + "A" * 401}}]}}
                ]
            },
            None,
        ),
    ],
    ids=["Together", "Stability", "Gemini"],
)
def test_results_in_the_answer_to_a_submission_are_results(body: Any, url: str | None) -> None:
    report = read_accepted(body)
    assert (report.state, urls(report)) == ("succeeded", [url])


def test_a_url_beside_the_id_of_an_answer_may_be_that_of_the_task() -> None:
    report = read_accepted({"id": "t", "url": PNG})
    assert (report.state, report.task_id) == ("processing", "t")


# A text with the body, lost characters, places


@pytest.mark.parametrize("key", ["image", "images", "image_url", "image_urls", "url", "output"])
@pytest.mark.parametrize("word", [{}, {"status": "stageX"}])
def test_files_beside_no_known_word_are_a_possible_result_under_any_name(
    key: str, word: dict[str, str]
) -> None:
    report = read_poll({"data": {"task_id": "t", **word, key: [PNG]}})
    assert (report.state, report.files) == ("processing", ())
    assert report.possible
    assert urls(report.possible) == [PNG]


def test_a_body_that_is_a_text_of_json_is_read() -> None:
    inner = b'{"task_id":"t","status":"completed","images":["https://a.test/1.png"]}'
    body = msgspec.json.encode(inner.decode())
    answer = wire.read_poll(200, JSON, body, "t")
    assert isinstance(answer, Report)
    assert (answer.state, answer.task_id, urls(answer)) == ("succeeded", "t", [PNG_SHORT])
    twice = inner.replace(b'"status"', b'"status":"failed","status"')
    for text, state in ((inner, "succeeded"), (twice, "processing")):
        report = wire.read_callback(msgspec.json.encode(text.decode()))
        assert report is not None
        assert report.state == state
    assert wire.read_callback(b'"no JSON"') is None


@pytest.mark.parametrize("lost", ["\\ud800", "\\ufffd"])
def test_a_task_id_that_lost_a_character_is_disliked_and_that_is_said(lost: str) -> None:
    body = f'{{"message":"Created.","data":{{"task_id":"n1_{lost}x"}}}}'.encode()
    answer = wire.read_create(200, JSON, body)
    assert isinstance(answer, NoReport)
    assert answer.outcome == "lost"
    assert answer.message
    assert answer.message.startswith("the task_id in the answer cannot be asked about: ")


@pytest.mark.parametrize("status", [200, 201, 202, 429, 503])
@pytest.mark.parametrize("body", [b"", b'{"status":"queued"}', b'{"message":"accepted"}'])
def test_a_place_on_the_route_of_tasks_names_the_task(status: int, body: bytes) -> None:
    for headers in (
        {"location": "/api/v1/tasks/n1_a%2Fb"},
        {"operation-location": "https://a.test/tasks/n1_a%2Fb?version=1"},
        {"content-location": "tasks/n1_a%2Fb/status"},
        {"x-task-id": " n1_a/b "},
    ):
        answer = wire.read_create(status, headers, body)
        assert isinstance(answer, Report)
        assert (answer.state, answer.task_ids) == ("processing", ("n1_a/b",))


def test_a_place_names_no_task_where_the_body_does_or_upstream_refused() -> None:
    headers = {"location": "/api/v1/tasks/other1"}
    assert read_place(200, headers, {"data": {"task_id": "t"}}) == "t"
    assert read_place(201, {"location": "/api/v1/images/"}, {}) == "lost"
    assert read_place(201, {"location": "/api/v1/tasks"}, {}) == "lost"
    assert read_place(201, headers, {}, b'{"task":"other1"}') == "lost"
    for path in ("/v1/tasks/new", "/v1/generations/image/n1_a", "/n1_a", "/v1/tasks/status"):
        assert read_place(201, {"location": path}, {}) == "lost"
    assert read_place(500, {"x-run-id": "n1_a"}, {}) == "lost"
    assert read_place(422, headers, {"error": "no"}) == "refused"


@pytest.mark.parametrize("text", ["..", ".", "x" * 513])
def test_headers_name_no_task_that_no_path_can_hold(text: str) -> None:
    for headers in ({"x-task-id": text}, {"location": f"/v1/tasks/{quote(text, safe='')}"}):
        assert read_place(201, headers, {}) == "lost"


def test_a_path_of_a_task_whose_id_is_too_long_is_a_sign_of_a_task() -> None:
    for name in ("location", "content-location"):
        assert read_place(503, {name: f"/v1/tasks/{'x' * 513}"}, {}) == "lost"


def read_place(status: int, headers: dict[str, str], body: Any, request: bytes = b"") -> str | None:
    answer = wire.read_create(status, headers, msgspec.json.encode(body), request)
    return answer.task_id if isinstance(answer, Report) else answer.outcome
