"""Every word and code of the tables, in a body of the provider that its source describes."""

import gc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from service.upstream import nouns, vocabulary, wire
from tests.upstream.test_wire import JSON, read_accepted, read_poll, read_rejected

URL = "https://cdn.example/out/1.mp4"
Body = Callable[[str], dict[str, Any]]
OUTPUT = {"image_urls": [URL]}

# A body of each provider, as its source shows it. API in One puts those without an id of a task, or
# with one that is not under a known name, into its own envelope.
BODY_OF: dict[str, Body] = {
    "API in One": lambda word: enveloped({"task_id": "t", "status": word, "output": OUTPUT}),
    "UdioAPI": lambda word: {"data": [{"id": "c1", "status": word, "audio_url": URL}]},
    "KIE": lambda word: enveloped({"taskId": "t", "status": word, "response": {"url": URL}}),
    "WaveSpeed": lambda word: enveloped({"id": "t", "status": word, "outputs": [URL]}),
    "Evolink": lambda word: {"id": "t", "status": word, "progress": 100, "results": [URL]},
    "APIMart": lambda word: enveloped({"id": "t", "status": word, "result": {"videos": [URL]}}),
    "Kling": lambda word: {
        "code": 0,
        "message": "SUCCEED",
        "request_id": "r",
        "data": {"task_id": "t", "task_status": word, "task_result": {"videos": [{"url": URL}]}},
    },
    "BFL": lambda word: {"id": "t", "status": word, "result": {"sample": URL}},
    "Replicate": lambda word: {
        "id": "t",
        "status": word,
        "input": {"image": URL},
        "output": [URL],
        "error": None,
        "urls": {"get": "https://api.example/t", "cancel": "https://api.example/t/cancel"},
    },
    "fal": lambda word: enveloped({"task_id": "t", "status": word, "payload": {"video": URL}}),
    "RunPod": lambda word: {"id": "t", "status": word, "delayTime": 5, "output": {"video": URL}},
    "Luma": lambda word: {"id": "t", "state": word, "assets": {"video": URL}, "request": {}},
    "Runway": lambda word: {"id": "t", "status": word, "output": [URL], "progress": 1.0},
    "MiniMax": lambda word: {
        "task_id": "t",
        "status": word,
        "file_id": "205",
        "base_resp": {"status_code": 0, "status_msg": "success"},
    },
    "DashScope": lambda word: enveloped(
        {"task_id": "t", "task_status": word, "results": [{"url": URL}]}
    ),
    "OpenAI": lambda word: {"id": "t", "object": "video", "status": word, "progress": 100},
    "Midjourney relays": lambda word: {"id": "t", "status": word, "imageUrl": URL},
    "Tripo": lambda word: {
        "code": 0,
        "data": {"task_id": "t", "status": word, "input": {}, "output": {"model": URL}},
    },
    "Meshy": lambda word: {"id": "t", "status": word, "model_urls": {"glb": URL}, "progress": 100},
    "Novita": lambda word: {
        "task": {"task_id": "t", "status": f"TASK_STATUS_{word}", "reason": ""},
        "images": [],
        "videos": [{"video_url": URL}],
    },
    "HeyGen": lambda word: {
        "code": 100,
        "message": "Success",
        "data": {"id": "t", "status": word, "video_url": URL, "error": None},
    },
    "Vertex AI": lambda word: {"id": "t", "state": f"JOB_STATE_{word}", "output": {"gcsUri": URL}},
    "Jimeng": lambda word: {
        "code": 10000,
        "data": {"task_id": "t", "status": word, "image_urls": [URL], "binary_data_base64": []},
        "message": "Success",
        "request_id": "r",
        "status": 10000,
    },
    "anybody": lambda word: {"id": "t", "status": word, "images": [URL], "errors": ["1 of 4"]},
}


def enveloped(data: dict[str, Any]) -> dict[str, Any]:
    return {"code": 200, "message": "success", "data": data}


ENTRIES = [
    (source, word, state)
    for source, words_of in vocabulary._WORDS_OF_PROVIDERS.items()
    for state, words in words_of.items()
    for word in words.split()
]


@pytest.mark.parametrize(("source", "word", "state"), ENTRIES)
@pytest.mark.parametrize("spell", [str, str.upper, str.title, lambda word: word.replace("_", " ")])
def test_every_word_is_read_in_a_body_of_its_provider(
    source: str, word: str, state: str, spell: Callable[[str], str]
) -> None:
    body = BODY_OF[source.partition(" (")[0]](spell(word))
    for report in (read_poll(body), wire.read_callback(msgspec.json.encode(body))):
        assert report is not None
        assert report.recognised
        outcome = report.possible or report
        assert outcome.state == state
        assert bool(outcome.files) <= (state == "succeeded")


def test_every_entry_names_its_source() -> None:
    for source in vocabulary._WORDS_OF_PROVIDERS:
        assert source.endswith(")")
        assert "." in source.partition("(")[2] or "clients" in source


def test_no_word_has_two_states() -> None:
    states: dict[str, set[str]] = {}
    for _, word, state in ENTRIES:
        states.setdefault(word, set()).add(state)
    assert [word for word, found in states.items() if len(found) > 1] == []


@pytest.mark.parametrize("word", ["CALLBACK_EXCEPTION", "Task not found", "UNKNOWN", "queued_wait"])
def test_a_word_that_ends_no_task_stays_open(word: str) -> None:
    report = read_poll({"id": "t", "status": word})
    assert (report.state, report.recognised, report.possible) == ("processing", False, None)


@pytest.mark.parametrize(
    ("flag", "state"),
    [
        *[(0, "processing"), (1, "succeeded"), (2, "failed"), (3, "failed")],
        *[("PENDING", "processing"), ("SUCCESS", "succeeded"), ("GENERATE_WAV_FAILED", "failed")],
    ],
)
def test_a_flag_stands_in_place_of_a_word(flag: Any, state: str) -> None:
    data = {"taskId": "t", "successFlag": flag, "response": {"audioWavUrl": "https://a.test/1.wav"}}
    report = read_poll(enveloped({**data, "errorCode": None, "errorMessage": None}))
    assert report.state == state
    assert len(report.files) == (state == "succeeded")


def test_runway_says_why_it_failed() -> None:
    report = read_poll(
        {"id": "t", "status": "FAILED", "failure": "No faces.", "failureCode": "SAFETY.INPUT"}
    )
    assert (report.error_code, report.error_message) == ("SAFETY.INPUT", "No faces.")


@pytest.mark.parametrize("code", sorted(vocabulary.CODES_FINE))
def test_a_code_that_is_no_error_hides_no_task_and_is_no_reason(code: int) -> None:
    body = {"code": code, "data": {"task_id": "t", "status": "complete", "data": [URL]}}
    assert read_accepted(body).task_id == "t"
    assert read_poll(body).state == "succeeded"
    assert read_rejected({"code": code, "msg": "ok", "data": None}).code == "no_task"


@pytest.mark.parametrize("code", sorted(vocabulary.CODES_AGAIN))
def test_a_code_that_means_again_is_sent_again(code: int) -> None:
    answer = read_rejected({"code": code, "msg": "later", "data": None})
    assert (answer.outcome, answer.repeats_max) == ("put_off", None)
    minimax = {"base_resp": {"status_code": code, "status_msg": "later"}}
    assert read_rejected(minimax).outcome == "put_off"


@pytest.mark.parametrize("code", sorted(vocabulary.CODES_NEVER))
def test_a_code_that_means_never_is_not_sent_again(code: int) -> None:
    assert read_rejected({"code": code, "msg": "no", "data": None}).outcome == "refused"
    minimax = {"base_resp": {"status_code": code, "status_msg": "no"}}
    assert read_rejected(minimax).outcome == "refused"


@pytest.mark.parametrize("code", sorted(vocabulary.TASK_ENDS))
def test_a_code_that_ends_its_task_needs_the_task(code: int) -> None:
    assert read_poll({"code": code, "msg": "no", "data": {"taskId": "t"}}).state == "failed"
    body = msgspec.json.encode({"code": code, "msg": "no", "data": None})
    assert isinstance(wire.read_poll(200, JSON, body), wire.NoReport)


@pytest.mark.parametrize("code", sorted(vocabulary.QUESTION_TROUBLE))
def test_a_code_about_the_question_ends_no_task(code: int) -> None:
    body = msgspec.json.encode({"code": code, "msg": "no", "data": {"taskId": "t"}})
    assert isinstance(wire.read_poll(200, JSON, body), wire.NoReport)


@pytest.mark.parametrize(
    "code", sorted(vocabulary.CODES_AGAIN | vocabulary.QUESTION_TROUBLE | {409, 423, 455, 499})
)
def test_a_code_that_means_again_ends_no_task_that_it_names(code: int) -> None:
    body = {"code": code, "msg": "try again later", "data": {"taskId": "t"}}
    answer = wire.read_poll(200, JSON, msgspec.json.encode(body), "t")
    assert isinstance(answer, wire.NoReport)
    report = wire.read_callback(msgspec.json.encode(body))
    assert report
    assert not report.reports_end


def test_no_text_longer_than_a_word_is_remembered() -> None:
    vocabulary._plain_word.cache_clear()
    body = {"data": {"task_id": "t", "status": "x" * 10_000, "error": "y" * 10_000}}
    wire.read_callback(msgspec.json.encode(body))
    wire.read_create(500, JSON, msgspec.json.encode({"z" * 10_000: 1, **body}))
    gc.collect()
    remembered = [*gc.get_referents(vocabulary._plain_word), *gc.get_referents(nouns.names_job)]
    assert any(isinstance(text, str) for text in remembered)
    assert not [text for text in remembered if isinstance(text, str) and len(text) > 200]
