"""Reads every body that API in One, or a provider it resells, is known to send."""

import base64
from typing import Any, Literal

import msgspec
import pytest

from service.upstream import wire
from service.upstream.results import File
from service.upstream.wire import NoReport, Report

PNG = "https://cdn.example.com/out/1.png"
MP4 = "https://cdn.example.com/out/1.mp4"
MP3 = "https://cdn.example.com/out/1.mp3"
JSON = {"content-type": "application/json"}


def read_create(value: Any, status: int = 200) -> wire.Answer:
    return wire.read_create(status, JSON, msgspec.json.encode(value))


def read_accepted(value: Any) -> Report:
    answer = read_create(value)
    assert isinstance(answer, Report)
    return answer


def read_rejected(value: Any, status: int = 200) -> NoReport:
    answer = read_create(value, status)
    assert isinstance(answer, NoReport)
    assert answer.outcome in {"refused", "put_off", "lost"}
    return answer


def read_poll(value: Any) -> Report:
    answer = wire.read_poll(200, JSON, msgspec.json.encode(value))
    assert isinstance(answer, Report)
    return answer


def read_callback(value: Any) -> Report:
    report = wire.read_callback(msgspec.json.encode(value))
    assert report is not None
    return report


def urls(report: Report) -> list[str | None]:
    return [file.url for file in report.files]


# Create: a task


@pytest.mark.parametrize(
    ("body", "task_id", "word"),
    [
        (
            {
                "code": 200,
                "message": "success",
                "data": {"task_id": "n47abcd_imagen4", "status": "IN_PROGRESS"},
            },
            "n47abcd_imagen4",
            "IN_PROGRESS",
        ),
        (
            {
                "id": "task_abc123",
                "status": "pending",
                "model": "kling-3",
                "created_at": "2026-01-01T00:00:00Z",
            },
            "task_abc123",
            "pending",
        ),
        (
            {"code": 200, "message": "success", "data": {"task_id": "upl987654321bksv"}},
            "upl987654321bksv",
            None,
        ),
        (
            {"code": 200, "msg": "success", "data": {"taskId": "cover123b880d2"}},
            "cover123b880d2",
            None,
        ),
        ({"code": 200, "workId": "gen20e0ksv", "data": {}}, "gen20e0ksv", None),
        (
            {"code": 200, "data": [{"status": "submitted", "task_id": "task_01K"}]},
            "task_01K",
            "submitted",
        ),
        ({"task_id": 4711, "task_status": "submitted"}, "4711", "submitted"),
    ],
    ids=[
        "API in One, envelope",
        "API in One, root",
        "Suno",
        "Suno cover",
        "UdioAPI",
        "APIMart",
        "Kling",
    ],
)
def test_an_answer_with_a_task_is_accepted(body: Any, task_id: str, word: str | None) -> None:
    report = read_accepted(body)
    assert (report.state, report.task_id, report.word) == ("processing", task_id, word)
    assert report.recognised
    assert report.raw == body


def test_a_url_beside_a_new_task_without_a_status_is_not_its_result() -> None:
    report = read_accepted(
        {"code": 200, "data": {"task_id": "n1_a", "url": "https://a.test/tasks/n1_a"}}
    )
    assert (report.state, report.files) == ("processing", ())


# Create: the outcome at once


@pytest.mark.parametrize(
    "body",
    [
        {"code": 200, "message": "success", "data": {"images": [PNG]}},
        {"code": 200, "message": "success", "data": {"image_url": PNG}},
        {"code": 200, "message": "success", "data": {"status": "completed", "output": PNG}},
        {"created": 1, "data": [{"url": PNG}]},
        {"output": {"images": [{"url": PNG}]}},
    ],
)
def test_results_without_a_task_are_a_finished_generation(body: Any) -> None:
    report = read_accepted(body)
    assert (report.state, report.task_id) == ("succeeded", None)
    assert report.files == (File(PNG, "image/png"),)


def test_lyrics_are_a_result_without_a_file() -> None:
    lyrics = [{"text": "It's a beautiful day", "start": 11.23, "end": 14.89, "type": "lyric"}]
    report = read_accepted({"code": 200, "message": "success", "data": {"lyricParams": lyrics}})
    assert (report.state, report.files) == ("succeeded", ())


def test_raw_audio_becomes_a_data_url() -> None:
    headers = {"content-type": "Audio/MPEG; charset=binary"}
    answer = wire.read_create(200, headers, b"\xff\xfbsound")
    assert isinstance(answer, Report)
    (file,) = answer.files
    assert file.url is not None
    prefix, _, encoded = file.url.partition(",")
    assert (prefix, file.media_type) == ("data:audio/mpeg;base64", "audio/mpeg")
    assert base64.b64decode(encoded) == b"\xff\xfbsound"


def test_audio_without_bytes_may_have_been_billed() -> None:
    answer = wire.read_create(200, {"content-type": "audio/mpeg"}, b"")
    assert isinstance(answer, NoReport)
    assert (answer.outcome, answer.code) == ("lost", "unusable")


def test_audio_has_no_limit_below_that_of_all_answers() -> None:
    answer = wire.read_create(200, {"content-type": "audio/mpeg"}, bytes(9 * 1024 * 1024))
    assert isinstance(answer, Report)
    assert answer.state == "succeeded"


# Create: no task


def test_the_documented_error_body_is_read() -> None:
    error = {"code": 401, "message": "Invalid API key", "type": "authentication_error"}
    answer = read_rejected({"error": error}, status=401)
    assert answer == NoReport("refused", 401, "Invalid API key", code="authentication_error")


def test_an_error_code_in_a_200_body_counts_as_the_status() -> None:
    answer = read_rejected({"code": 402, "msg": "Insufficient credits", "data": None})
    assert answer == NoReport("refused", 402, "Insufficient credits", code="402")
    answer = read_rejected({"error": {"code": 400, "message": "Bad prompt"}})
    assert answer == NoReport("refused", 400, "Bad prompt", code="400")


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 413, 415, 422, 451])
def test_a_client_error_is_never_sent_again(status: int) -> None:
    assert read_rejected({"error": {"message": "no"}}, status).outcome == "refused"
    assert read_rejected({"code": status, "message": "no"}).outcome == "refused"


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_upstream_is_asked_again_later(status: int) -> None:
    headers = {"retry-after": "7"}
    answer = wire.read_create(status, headers, b"busy")
    by: Literal["status"] | None = "status" if status == 429 else None
    message = f"HTTP {status}: busy"
    assert answer == NoReport("put_off", status, message, "7", str(status), throttled_by=by)
    assert read_rejected({"code": status, "message": "busy"}).outcome == "put_off"


@pytest.mark.parametrize("status", [408, 499, 500, 502, 504, 520])
def test_any_other_status_may_have_been_accepted(status: int) -> None:
    assert read_rejected({"message": "?"}, status).outcome == "lost"


@pytest.mark.parametrize("code", [500, 501, 531, 1001, -1])
def test_an_unknown_code_in_a_200_body_may_have_been_accepted(code: int) -> None:
    answer = read_rejected({"code": code, "msg": "no luck"})
    assert (answer.outcome, answer.status, answer.message) == ("lost", code, "no luck")


@pytest.mark.parametrize("body", [b"", b"<html>", b"null", b'"ok"', b"{", b"\xff\xfe", b"[" * 9000])
def test_a_2xx_that_cannot_be_read_may_have_been_accepted(body: bytes) -> None:
    answer = wire.read_create(200, JSON, body)
    assert isinstance(answer, NoReport)
    assert (answer.outcome, answer.code) == ("lost", "unreadable")


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"code": 200},
        {"id": "req_1", "error": "no"},
        {"code": 200, "data": None},
    ],
)
def test_a_2xx_with_neither_task_nor_result_may_have_been_accepted(body: Any) -> None:
    assert read_rejected(body).outcome == "lost"


# Polling: images and videos, in every form that a known client expects


@pytest.mark.parametrize(
    "body",
    [
        {"code": 200, "data": {"status": "COMPLETED", "output": {"video_url": MP4}}},
        {"code": 200, "data": {"status": "success", "video_url": MP4}},
        {"id": "n75_k3", "status": "completed", "output": {"video_url": MP4}},
        {"code": "200", "data": {"task_id": "n75_k3", "status": "SUCCESS", "videos": [MP4]}},
        {"data": {"status": "finished", "files": [{"file_url": MP4, "file_type": "video"}]}},
        {"data": {"status": "success", "imageUrls": [], "videoUrls": [MP4]}},
        {"data": {"status": "completed", "result": MP4}},
    ],
)
def test_a_finished_video_is_found(body: Any) -> None:
    report = read_poll(body)
    assert report.state == "succeeded"
    assert report.files == (File(MP4, "video/mp4"),)


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ({"data": {"status": "FAILED", "error": "Content policy"}}, None, "Content policy"),
        ({"id": "t", "status": "error", "error": {"code": "nsfw", "message": "No"}}, "nsfw", "No"),
        ({"code": 200, "message": "success", "data": {"status": "failed"}}, None, None),
        ({"code": 501, "msg": "It failed", "data": {"taskId": "t"}}, "501", "It failed"),
        ({"data": {"task_id": "t", "error": "Content policy"}}, None, "Content policy"),
        ({"data": {"task_id": "t", "status": "Melting", "error": "Too hot"}}, None, "Too hot"),
        ({"data": {"taskId": "t", "successFlag": 3, "errorMessage": "No"}}, None, "No"),
        ({"id": "t", "status": "Content Moderated"}, None, None),
        ({"data": {"status": "cancelled", "errorMessage": "by you"}}, None, "by you"),
    ],
)
def test_a_failed_task_says_why(body: Any, code: str | None, message: str | None) -> None:
    report = read_poll(body)
    assert (report.state, report.error_code, report.error_message) == ("failed", code, message)


@pytest.mark.parametrize("word", ["PENDING", "Queued", "in progress", "IN-PROGRESS", "generating"])
def test_a_running_task_is_processing_even_with_urls(word: str) -> None:
    report = read_poll({"data": {"task_id": "n1_a", "status": word, "output": [PNG]}})
    assert (report.state, report.files, report.recognised) == ("processing", (), True)


def test_an_unknown_word_stays_open_and_is_reported() -> None:
    report = read_poll(
        {"code": 200, "data": {"task_id": "n1_a", "status": "Melting", "output": [PNG]}}
    )
    assert (report.state, report.word, report.recognised) == ("processing", "Melting", False)


def test_success_without_any_result_stays_open() -> None:
    report = read_poll(
        {"code": 200, "data": {"task_id": "n1_a", "status": "SUCCESS", "output": []}}
    )
    assert (report.state, report.recognised) == ("processing", True)


# Polling: no report


def test_an_unknown_task_is_not_found() -> None:
    error = b'{"error":{"code":404,"message":"not found"}}'
    text = 'HTTP 404: {"error":{"code":404,"message":"not found"}}'
    assert wire.read_poll(404, JSON, error) == NoReport("absent", message=text)
    assert wire.read_poll(200, JSON, error) == NoReport("absent", message="not found")


def test_a_throttled_answer_has_its_retry_after() -> None:
    answer = wire.read_poll(429, {"retry-after": "3"}, b"")
    assert answer == NoReport("throttled", retry_after="3", throttled_by="status")
    answer = wire.read_poll(200, JSON, b'{"code":429,"msg":"slow down"}')
    assert answer == NoReport("throttled", throttled_by="body")


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (401, b'{"error":{}}', NoReport("unwell", 401, 'HTTP 401: {"error":{}}')),
        (200, b'{"error":{"code":401,"message":"bad key"}}', NoReport("unwell", 401, "bad key")),
        (500, b"", NoReport("unwell", 500, "HTTP 500")),
        (302, b"", NoReport("unwell", 302, "HTTP 302: upstream is at another address")),
        (200, b"<html>", NoReport("unwell", 200, "the answer is not a JSON object: <html>")),
        (200, b'{"status":"error","message":"busy"}', NoReport("unwell", 200, "busy")),
        (200, b'{"code":429,"status":"error"}', NoReport("throttled", throttled_by="body")),
        (200, b'{"code":401,"status":"fail","message":"no"}', NoReport("unwell", 401, "no")),
        (200, b'{"code":500,"msg":"?","data":{"taskId":"t"}}', NoReport("unwell", 500, "?")),
        (200, b'{"code":500,"msg":"oops"}', NoReport("unwell", 500, "oops")),
        (200, b'{"code":500,"msg":"?","data":{"status":"SUCCESS"}}', NoReport("unwell", 500, "?")),
        (200, b"{}", NoReport("unwell", 200, "the answer says nothing about a task: {}")),
        (200, b'{"error":"Task store is down"}', NoReport("unwell", 200, "Task store is down")),
    ],
)
def test_an_answer_that_says_nothing_about_the_task_is_upstream_trouble(
    status: int, body: bytes, expected: NoReport
) -> None:
    assert wire.read_poll(status, {}, body) == expected


# Suno


def clip(status: str, **more: Any) -> dict[str, Any]:
    return {"id": "c1", "status": status, "title": "Day", "duration": "", **more}


def feed(*clips: dict[str, Any], type_: str = "SUCCESS") -> dict[str, Any]:
    request = {"callback_url": "https://us.test/callbacks/apiinone/t", "image_url": PNG}
    data = {"type": type_, "request_body": request, "response_data": list(clips)}
    return {"code": 200, "message": "success", "data": data}


def test_a_feed_with_every_clip_complete_has_succeeded() -> None:
    cover = "https://cdn.example.com/out/1.jpeg"
    report = read_poll(feed(clip("complete", audio_url=MP3, image_url=cover), clip("complete")))
    assert (report.state, report.word) == ("succeeded", "SUCCESS")
    assert report.files == (File(MP3, "audio/mpeg"), File(cover, "image/jpeg"))


@pytest.mark.parametrize("stages", [["text"], ["first", "complete"], ["complete", "text"], []])
def test_a_feed_that_says_success_over_unfinished_clips_is_processing(stages: list[str]) -> None:
    report = read_poll(feed(*(clip(stage, audio_url=MP3) for stage in stages)))
    assert (report.state, report.word, report.recognised) == ("processing", "SUCCESS", True)


def test_one_finished_clip_is_a_result_when_the_other_failed() -> None:
    report = read_poll(feed(clip("error", fail_message="no"), clip("complete", audio_url=MP3)))
    assert (report.state, urls(report)) == ("succeeded", [MP3])


def test_a_feed_whose_clips_all_failed_has_failed() -> None:
    report = read_poll(feed(clip("error", fail_message="Topic too long."), clip("error")))
    assert (report.state, report.error_message) == ("failed", "Topic too long.")


def test_a_feed_with_an_unknown_clip_word_stays_open() -> None:
    report = read_poll(feed(clip("complete", audio_url=MP3), clip("mixing")))
    assert (report.state, report.recognised) == ("processing", False)


def test_a_failed_feed_has_failed() -> None:
    assert read_poll(feed(type_="FAILED")).state == "failed"


def test_the_files_of_a_cover_are_its_images() -> None:
    data = {"taskId": "cover1", "status": "SUCCESS", "images": [PNG, PNG + "?2"]}
    report = read_poll({"code": 200, "msg": "success", "data": data})
    assert (report.state, report.task_id, urls(report)) == (
        "succeeded",
        "cover1",
        [PNG, PNG + "?2"],
    )


@pytest.mark.parametrize("stage", ["text", "first"])
def test_udioapi_calls_back_at_each_stage_with_a_bare_list(stage: str) -> None:
    report = read_callback([clip(stage), clip(stage, audio_url=MP3)])
    assert (report.state, report.task_id, report.word) == ("processing", None, stage)


def test_udioapi_is_done_when_every_clip_is_complete() -> None:
    report = read_callback(
        [clip("complete", audio_url=MP3), clip("complete", audio_url=MP3 + "?b")]
    )
    assert (report.state, urls(report)) == ("succeeded", [MP3, MP3 + "?b"])


# KIE


def kie_job(state: str, **more: Any) -> dict[str, Any]:
    param = '{"input":{"image":"https://in.test/a.png"},"callBackUrl":"https://us.test/t"}'
    data = {"taskId": "k1", "model": "imagen4", "state": state, "param": param, **more}
    return {"code": 200, "msg": "success", "data": data}


@pytest.mark.parametrize("state", ["waiting", "queuing", "generating"])
def test_a_kie_job_is_running(state: str) -> None:
    assert read_callback(kie_job(state, resultJson="")).state == "processing"


def test_a_kie_job_keeps_its_results_in_a_string_of_json() -> None:
    report = read_callback(kie_job("success", resultJson=f'{{"resultUrls":["{PNG}"]}}', costTime=8))
    assert (report.state, report.task_id, urls(report)) == ("succeeded", "k1", [PNG])


@pytest.mark.parametrize("broken", ["{", "", "[1]", '"x"', "nonsense"])
def test_a_kie_job_with_broken_results_stays_open(broken: str) -> None:
    assert read_callback(kie_job("success", resultJson=broken)).state == "processing"


def test_a_kie_job_says_why_it_failed() -> None:
    report = read_callback(kie_job("fail", failCode="422", failMsg="Prompt rejected"))
    assert (report.state, report.error_code) == ("failed", "422")
    assert report.error_message == "Prompt rejected"


def test_kie_4o_image_calls_back_without_a_word() -> None:
    data = {"taskId": "k1", "info": {"result_urls": [PNG]}}
    report = read_callback({"code": 200, "msg": "success", "data": data})
    assert (report.state, report.word, urls(report)) == ("succeeded", None, [PNG])


def test_kie_flux_kontext_returns_the_result_and_not_the_original() -> None:
    info = {"originImageUrl": "https://in.test/a.png", "resultImageUrl": PNG}
    report = read_callback({"code": 200, "data": {"taskId": "k1", "info": info}})
    assert (report.state, urls(report)) == ("succeeded", [PNG])


@pytest.mark.parametrize("code", [400, 451, 501, 531])
def test_a_kie_callback_with_an_error_code_is_a_failure(code: int) -> None:
    data = {"taskId": "k1", "info": None}
    report = read_callback({"code": code, "msg": "credits refunded", "data": data})
    assert (report.state, report.error_code) == ("failed", str(code))
    assert report.error_message == "credits refunded"


def test_an_error_code_over_a_running_task_proves_nothing() -> None:
    assert read_callback(
        {"code": 500, "data": {"task_id": "a1", "status": "processing"}}
    ).state == ("processing")


@pytest.mark.parametrize(
    ("stage", "state"),
    [("text", "processing"), ("first", "processing"), ("complete", "succeeded")],
)
def test_kie_suno_names_its_stage(stage: str, state: str) -> None:
    clips = [{"id": "c1", "audio_url": MP3, "source_audio_url": "https://s.test/a.mp3"}]
    data = {"callbackType": stage, "task_id": "k1", "data": clips}
    report = read_callback({"code": 200, "msg": "ok", "data": data})
    assert (report.state, report.task_id) == (state, "k1")
    assert urls(report) == ([MP3] if state == "succeeded" else [])


# The other gateways


def wavespeed(status: str, **more: Any) -> dict[str, Any]:
    get = "https://api.wavespeed.test/predictions/w1/result"
    task = {"id": "w1", "model": "m", "input": {"image": "https://in.test/a.png"}}
    return {**task, "outputs": [], "urls": {"get": get}, "error": "", "status": status, **more}


def test_wavespeed_completes_with_its_outputs_only() -> None:
    report = read_callback(wavespeed("completed", outputs=[PNG]))
    assert (report.state, report.task_id, urls(report)) == ("succeeded", "w1", [PNG])
    assert read_poll({"code": 200, "message": "success", "data": report.raw}).files == report.files


def test_wavespeed_completed_without_outputs_stays_open() -> None:
    assert read_callback(wavespeed("completed")).state == "processing"


def test_wavespeed_fails_with_an_error() -> None:
    report = read_callback(wavespeed("failed", error="nsfw"))
    assert (report.state, report.error_message) == ("failed", "nsfw")


@pytest.mark.parametrize(
    ("status", "state"),
    [("completed", "succeeded"), ("failed", "failed"), ("cancelled", "failed")],
)
def test_evolink_bodies_are_those_of_its_tasks(status: str, state: str) -> None:
    body = {"id": "task-unified-1", "object": "image.generation.task", "status": status}
    report = read_callback({**body, "type": "image", "progress": 100, "results": [PNG]})
    assert (report.state, report.task_id) == (state, "task-unified-1")
    assert urls(report) == ([PNG] if state == "succeeded" else [])


@pytest.mark.parametrize("expires_at", [1_800_000_000, 1_800_000_000_000, "2027-01-15T08:00:00Z"])
def test_apimart_nests_urls_in_lists_and_says_when_they_expire(expires_at: Any) -> None:
    result = {"images": [{"url": [PNG], "expires_at": expires_at}]}
    report = read_poll({"code": 200, "data": {"id": "a1", "status": "completed", "result": result}})
    assert report.state == "succeeded"
    assert report.files == (File(PNG, "image/png", 1_800_000_000_000),)


def test_kling_relays_nest_results_under_task_result() -> None:
    result = {"images": [], "videos": [{"id": "v1", "url": "https://k.test/v/1", "duration": "5"}]}
    report = read_callback({"task_id": "k1", "task_status": "succeed", "task_result": result})
    assert report.files == (File("https://k.test/v/1", "video/mp4"),)


def test_a_kling_relay_says_why_it_failed() -> None:
    report = read_callback(
        {"task_id": "k1", "task_status": "failed", "task_status_msg": "risk control"}
    )
    assert (report.state, report.error_message) == ("failed", "risk control")


# Files


def test_a_picture_that_was_sent_is_no_result() -> None:
    echo = {"image": "https://in.test/a.png", "input_urls": ["https://in.test/b.png"]}
    data = {"status": "SUCCESS", **echo, "output": {"video_url": MP4}}
    assert urls(read_poll({"code": 200, "data": data})) == [MP4]


def test_without_a_word_a_picture_beside_a_task_may_be_the_one_that_was_sent() -> None:
    report = read_callback({"code": 200, "data": {"task_id": "n41_a", "image": PNG}})
    assert (report.state, report.files) == ("processing", ())


def test_a_type_that_echoes_a_parameter_is_not_a_status() -> None:
    data = {"task_id": "n41_a", "type": "pro", "output": [PNG]}
    report = read_poll({"code": 200, "data": data})
    assert (report.state, report.word, report.recognised) == ("processing", None, True)
    assert report.possible is not None


@pytest.mark.parametrize(
    "key",
    ["callback_url", "callBackUrl", "webhook", "webhook_url", "notify_url", "status_url", "param"],
)
def test_addresses_are_not_files(key: str) -> None:
    data = {"task_id": "n1_a", "status": "SUCCESS", key: "https://us.test/callbacks/apiinone/t"}
    assert read_poll({"code": 200, "data": data}).files == ()


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a.test/1.png",
        "javascript:alert(1)",
        "//",
        "https://",
        "https://[::1",
        "https://a.test/a\n.png",
        "https://a.test/" + "x" * 9_000,
    ],
)
def test_only_web_addresses_become_files(url: str) -> None:
    assert (
        read_poll({"data": {"task_id": "n1_a", "status": "SUCCESS", "output": [url]}}).files == ()
    )


def test_each_file_is_reported_once_and_their_number_is_bounded() -> None:
    many = [f"https://a.test/{number}.png" for number in range(500)]
    report = read_poll({"data": {"status": "SUCCESS", "output": [PNG, PNG, *many]}})
    assert len(report.files) == 100
    assert len(set(urls(report))) == 100


@pytest.mark.parametrize(
    ("url", "key", "media_type"),
    [
        ("https://a.test/1.SVG?sig=a.png", "output", "image/svg+xml"),
        ("https://a.test/1.webp#x", "output", "image/webp"),
        ("https://a.test/1", "image_url", "image/png"),
        ("https://a.test/1", "audio_url", "audio/mpeg"),
        ("https://a.test/png", "output", "application/octet-stream"),
        ("https://a.test/v1.2/get", "output", "application/octet-stream"),
        ("https://mp4", "output", "application/octet-stream"),
    ],
)
def test_a_media_type_is_guessed_by_extension_then_by_key(
    url: str, key: str, media_type: str
) -> None:
    assert read_poll({"data": {"status": "SUCCESS", key: url}}).files == (File(url, media_type),)
