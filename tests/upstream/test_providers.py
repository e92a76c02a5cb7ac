"""Reads answers of providers that were once read wrongly, each with its source."""

from typing import Any

import msgspec
import pytest

from tests.upstream.test_wire import (
    MP4,
    PNG,
    read_accepted,
    read_callback,
    read_poll,
    read_rejected,
    urls,
)

GLB = "https://assets.test/model.glb"


def dashscope(word: str, task_id: str = "t") -> dict[str, Any]:
    # dashscope-sdk-python, api_entities/dashscope_response.py.
    output = {"task_id": task_id, "task_status": word, "results": [{"url": PNG}]}
    return {"request_id": "r", "output": output, "usage": {"image_count": 1}}


@pytest.mark.parametrize(
    ("word", "state", "files"),
    [("RUNNING", "processing", []), ("FAILED", "failed", []), ("SUCCEEDED", "succeeded", [PNG])],
)
def test_a_task_that_stands_in_output_is_read_with_its_word(
    word: str, state: str, files: list[str]
) -> None:
    for report in (read_poll(dashscope(word)), read_callback(dashscope(word))):
        assert (report.state, report.task_id, urls(report)) == (state, "t", files)
    assert read_poll(dashscope("SUCCEEDED", "another")).task_ids == ("another",)


def test_an_input_in_the_parameters_that_a_task_repeats_is_no_result() -> None:
    # docs.kie.ai/runway-api/get-ai-video-details.
    data = {
        "taskId": "t",
        "generateParam": {"prompt": "x", "imageUrl": "https://in.test/1.png"},
        "state": "success",
        "videoInfo": {"videoId": "v", "videoUrl": MP4, "imageUrl": PNG},
    }
    report = read_poll({"code": 200, "msg": "success", "data": data})
    assert (report.state, urls(report)) == ("succeeded", [MP4, PNG])


def test_the_progress_video_beside_the_result_is_no_result() -> None:
    # github.com/lumalabs/lumaai-python, types/generation.py.
    assets = {"video": MP4, "image": PNG, "progress_video": MP4 + "?progress"}
    report = read_poll({"id": "t", "state": "completed", "assets": assets})
    assert (report.state, urls(report)) == ("succeeded", [MP4, PNG])


def test_the_address_of_the_result_is_no_file() -> None:
    # fal.ai/docs/model-apis/model-endpoints/queue.
    body = {"status": "COMPLETED", "task_id": "t", "response_url": "https://q.test/requests/t"}
    report = read_poll(body)
    assert report.possible
    assert report.possible.files == ()


@pytest.mark.parametrize("code", [1200, 1400, 1401, 1402, 1403, 1405])
def test_a_failed_task_with_a_code_of_its_provider_has_failed(code: int) -> None:
    # wavespeed.ai/docs/error-codes.
    report = read_poll({"id": "t", "status": "failed", "code": code, "error": "no such size"})
    assert (report.state, report.error_message) == ("failed", "no such size")
    report = read_poll({"code": code, "message": "no such size", "data": {"id": "t"}})
    assert (report.state, report.error_message) == ("failed", "no such size")


@pytest.mark.parametrize("code", [1026, 1027])
def test_sensitive_content_ends_the_task_it_names(code: int) -> None:
    # platform.minimax.io/docs/api-reference/errorcode.
    base_resp = {"status_code": code, "status_msg": "output contains sensitive content"}
    for word in ({"status": "Fail"}, {"status": ""}, {}):
        report = read_poll({"task_id": "t", **word, "base_resp": base_resp})
        assert (report.state, report.error_message) == ("failed", base_resp["status_msg"])


@pytest.mark.parametrize(
    "result",
    [
        {"content": {"video_url": MP4}},  # Volcengine Ark.
        {"generated": [MP4]},  # Freepik.
        {"creations": [{"id": "c", "url": MP4}]},  # Vidu.
        {"payload": {"video": {"url": MP4}}},  # fal's webhooks.
    ],
)
def test_a_result_under_the_name_of_its_provider_is_found_at_once(result: dict[str, Any]) -> None:
    # As a review reported them; but for fal.ai/docs/model-apis/model-endpoints/webhooks, no page
    # was seen.
    report = read_poll({"id": "t", "status": "succeeded", **result})
    assert (report.state, urls(report)) == ("succeeded", [MP4])


def tripo(word: str, **output: Any) -> dict[str, Any]:
    # github.com/VAST-AI-Research/tripo-python-sdk, tripo3d/models.py.
    data = {"task_id": "t", "type": "text_to_model", "status": word, "progress": 100}
    more = {"input": {"prompt": "x"}, "output": output, "error_msg": None, "create_time": 1}
    return {"code": 0, "data": {**data, **more}}


def test_the_models_of_tripo_are_its_result() -> None:
    body = tripo("success", model=GLB, pbr_model=GLB + "?pbr", rendered_image=PNG)
    report = read_poll(body)
    assert (report.state, urls(report)) == ("succeeded", [GLB, GLB + "?pbr", PNG])
    assert report.files[0].media_type == "model/gltf-binary"
    for word in ("banned", "expired", "cancelled"):
        assert read_poll(tripo(word)).state == "failed"
    report = read_poll(tripo("unknown"))
    assert (report.state, report.recognised) == ("processing", False)


def test_tripo_says_why_it_failed() -> None:
    body = tripo("failed")
    body["data"] |= {"error_code": 2008, "error_msg": "not allowed"}
    report = read_poll(body)
    assert (report.error_code, report.error_message) == ("2008", "not allowed")


def test_a_model_that_made_the_result_is_none() -> None:
    for model in ("https://models.test/kling", {"name": "kling", "url": "https://models.test/k"}):
        report = read_poll({"id": "t", "status": "completed", "model": model})
        assert report.possible
        assert report.possible.files == ()


def meshy(word: str, **more: Any) -> dict[str, Any]:
    # docs.meshy.ai/openapi.yaml, docs.meshy.ai/api/image-to-3d.
    thumbnail = "https://assets.test/preview.png"
    about = {"id": "t", "type": "image-to-3d", "thumbnail_url": thumbnail, "progress": 100}
    return {**about, "status": word, "texture_urls": [], "task_error": {"message": ""}, **more}


def test_the_models_of_meshy_are_its_result_and_its_thumbnail_is_none() -> None:
    fbx = "https://assets.test/model.fbx"
    models = {"glb": GLB, "fbx": fbx, "obj": ""}
    report = read_poll(meshy("SUCCEEDED", model_urls=models))
    assert (report.state, urls(report)) == ("succeeded", [GLB, fbx])
    textures = [{"base_color": PNG}]
    report = read_poll(meshy("SUCCEEDED", model_urls=models, texture_urls=textures))
    assert urls(report) == [PNG, GLB, fbx]
    report = read_poll(meshy("FAILED", model_urls={}, task_error={"message": "too busy"}))
    assert (report.state, report.error_message) == ("failed", "too busy")


@pytest.mark.parametrize(
    "body",
    [
        {"result": "018a210d-8ba4-705c-b111-1f1776f7f578"},  # docs.meshy.ai/openapi.yaml.
        # docs.octopusx.ai/en/images/midjourney/submit.
        {"code": 1, "description": "Submit success", "result": "1712158011464906"},
    ],
)
def test_an_id_that_stands_for_the_task_in_place_of_a_result_is_the_tasks(
    body: dict[str, Any],
) -> None:
    assert read_accepted(body).task_id == body["result"]


@pytest.mark.parametrize("result", ["accepted", "ok", "a1", "v2/model", "see 12345678", 12345678])
def test_a_text_that_is_no_id_in_place_of_a_result_names_no_task(result: Any) -> None:
    assert read_rejected({"code": 200, "result": result}).outcome == "lost"
    assert read_rejected({"code": 418, "result": "1712158011464906"}).outcome == "lost"


def novita(word: str, **more: Any) -> dict[str, Any]:
    # novita.ai/docs/api-reference/model-apis-task-result.
    task = {"task_id": "t", "task_type": "TXT_TO_VIDEO", "status": word, "reason": "", "eta": 0}
    body = {"extra": {"seed": "1", "debug_info": {}}, "task": {**task, **more}}
    return {**body, "images": [], "videos": [], "audios": []}


def test_a_task_that_stands_in_task_has_its_result_beside_it() -> None:
    body = novita("TASK_STATUS_SUCCEED")
    body |= {"videos": [{"video_url": MP4, "video_type": "mp4"}], "images": [{"image_url": PNG}]}
    for report in (read_poll(body), read_callback(body)):
        assert (report.state, report.task_id, report.recognised) == ("succeeded", "t", True)
        assert urls(report) == [MP4]
    body["videos"] = []
    assert urls(read_poll(body)) == [PNG]


@pytest.mark.parametrize("word", ["TASK_STATUS_QUEUED", "TASK_STATUS_PROCESSING"])
def test_a_task_that_stands_in_task_is_open_with_its_word(word: str) -> None:
    body = {**novita(word, progress_percent=50), "images": [{"image_url": PNG}]}
    for report in (read_poll(body), read_callback(body)):
        assert (report.state, report.task_id, report.possible) == ("processing", "t", None)


def test_a_task_that_stands_in_task_says_why_it_failed() -> None:
    report = read_poll(novita("TASK_STATUS_FAILED", reason="nsfw"))
    assert (report.state, report.task_id, report.error_message) == ("failed", "t", "nsfw")


@pytest.mark.parametrize(
    ("word", "state"),
    [
        # docs.cloud.google.com: Vertex AI V1 API, JobState.
        *[("JOB_STATE_SUCCEEDED", "succeeded"), ("JOB_STATE_FAILED", "failed")],
        *[("JOB_STATE_PAUSED", "processing"), ("TASK_STATUS_FAILED", "failed")],
        *[("video-status-completed", "succeeded"), ("STATE_RUNNING", "processing")],
    ],
)
def test_a_word_may_have_the_name_of_its_kind_before_it(word: str, state: str) -> None:
    report = read_poll({"name": "t", "id": "t", "state": word, "output": [PNG]})
    assert (report.state, report.recognised, report.word) == (state, True, word)


@pytest.mark.parametrize("word", ["JOB_STATE_UNSPECIFIED", "TASK_STATUS_", "STATUSFAILED"])
def test_the_name_of_a_kind_alone_is_no_word(word: str) -> None:
    report = read_poll({"id": "t", "state": word})
    assert (report.state, report.recognised) == ("processing", False)


def heygen(word: str, **more: Any) -> dict[str, Any]:
    # docs.heygen.com/reference/video-status.
    about = {"id": "t", "callback_id": None, "created_at": 1, "duration": 8.5, "error": None}
    return {"code": 100, "message": "Success", "data": {**about, "status": word, **more}}


def test_a_code_of_100_is_no_error_with_heygen() -> None:
    more = {"thumbnail_url": PNG, "gif_url": "https://a.test/1.gif", "video_url": MP4}
    report = read_poll(heygen("completed", **more))
    assert (report.state, report.task_id, urls(report)) == ("succeeded", "t", [MP4])
    assert read_poll(heygen("waiting")).state == "processing"
    error = {"code": 40119, "detail": "Video is too long", "message": "Video is too long"}
    report = read_poll(heygen("failed", error=error))
    assert (report.state, report.error_message) == ("failed", "Video is too long")
    report = read_poll(heygen("failed"))
    assert (report.state, report.error_code, report.error_message) == ("failed", None, None)
    assert read_rejected({"code": 100, "message": "Success", "data": None}).code == "no_task"


def test_what_fal_completes_with_an_error_has_failed_at_once() -> None:
    # github.com/fal-ai/fal, pull request 1143: `error` and `error_type` beside COMPLETED.
    more = {"error": "Runner died", "error_type": "runner_disconnected", "logs": []}
    body: dict[str, Any] = {"request_id": "r", "task_id": "t", "status": "COMPLETED", **more}
    for report in (read_poll(body), read_callback(body)):
        assert (report.state, report.error_message) == ("failed", "Runner died")
    body = {"task_id": "t", "status": "COMPLETED", "payload": {"video": {"url": MP4}}, **more}
    assert (read_poll(body).state, urls(read_poll(body))) == ("succeeded", [MP4])


def test_the_id_of_a_request_is_no_tasks_in_an_envelope_with_a_code() -> None:
    # cloud.baidu.com/doc/qianfan-api: it is for troubleshooting.
    for body in ({"code": 200, "request_id": "r1"}, {"code": 0, "request_id": "r1", "data": None}):
        assert read_rejected(body).outcome == "lost"
    assert read_accepted({"request_id": "r1"}).task_id == "r1"
    queued = {"code": 200, "request_id": "r1", "status": "IN_QUEUE"}
    assert read_accepted(queued).task_id == "r1"


@pytest.mark.parametrize("key", ["output", "result", "response", "resultJson", "image_urls"])
def test_a_result_that_is_a_text_of_json_is_read(key: str) -> None:
    # docs.kie.ai/market/common/get-task-detail shows it for resultJson.
    for value in ({"image_urls": [PNG]}, [PNG], [{"url": PNG}]):
        text = msgspec.json.encode(value).decode()
        report = read_poll({"data": {"task_id": "t", "status": "success", key: text}})
        assert (report.state, urls(report)) == ("succeeded", [PNG])


def test_the_words_in_a_text_of_json_have_no_say() -> None:
    for word in ("processing", "failed"):
        text = msgspec.json.encode({"status": word, "url": PNG}).decode()
        report = read_poll({"data": {"task_id": "t", "status": "success", "output": text}})
        assert (report.state, urls(report)) == ("succeeded", [PNG])
