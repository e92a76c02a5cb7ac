"""Reads answers of providers that were once read wrongly, each with its source."""

from typing import Any

import pytest

from tests.upstream.test_wire import MP4, PNG, read_callback, read_poll, urls


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


@pytest.mark.parametrize("code", [1026, 1027])
def test_sensitive_content_ends_the_task_it_names(code: int) -> None:
    # platform.minimax.io/docs/api-reference/errorcode.
    base_resp = {"status_code": code, "status_msg": "output contains sensitive content"}
    report = read_poll({"task_id": "t", "status": "Fail", "base_resp": base_resp})
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
