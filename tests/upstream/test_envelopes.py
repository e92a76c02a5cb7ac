"""What a body says of its task stays the same in any envelope that is known."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.upstream import wire
from tests.upstream.test_vocabulary import BODY_OF, ENTRIES
from tests.upstream.test_wire import JSON, MP4, PNG, urls

Wrap = Callable[[Any], Any]


def text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def under(key: str, **more: Any) -> list[Wrap]:
    """Return envelopes with a body under a key: as it is, in a list, and as a text of JSON."""
    return [
        lambda value: {**more, key: value},
        lambda value: {**more, key: [value]},
        lambda value: {**more, key: text(value)},
    ]


WRAPS: list[Wrap] = [
    lambda value: [value],
    *[wrap for key in ("data", "task", "output", "result", "response") for wrap in under(key)],
    *under("data", code=200, message="success"),
    *under("result", status="success", success=True),
    *under("output", request_id="r", usage={"image_count": 1}),
]
# Where they hold an object and nothing else.
OF_ANY_NAME = [under(key)[0] for key in ("generations_by_pk", "an_unknown_name")]
# Bodies in which more than a word tells.
OTHERS: list[Any] = [
    {"code": 501, "msg": "no gpu", "data": {"taskId": "t", "info": None}},
    {"code": 200, "msg": "success", "data": {"taskId": "t", "info": {"result_urls": [PNG]}}},
    {"code": 500, "msg": "no gpu", "data": {"taskId": "t", "state": "fail", "failMsg": "no gpu"}},
    {"code": 429, "msg": "later", "data": {"taskId": "t"}},
    {"id": "t", "status": "completed", "results": [{"url": PNG, "status": "processing"}]},
    {"id": "t", "status": "failed", "error": "nsfw", "urls": {"get": "https://a.test/t"}},
    {"id": "t", "status": "unheard of", "output": {"video_url": MP4}},
    {"id": "t", "status": "completed", "output": text({"video_url": MP4})},
    {"task_id": "t", "status": "COMPLETED", "error": "Runner died"},
    {"task": {"task_id": "t", "status": "TASK_STATUS_SUCCEED"}, "images": [{"image_url": PNG}]},
]
BODIES = OTHERS + [
    BODY_OF[source](word)
    for source, word in dict.fromkeys(
        (source.partition(" (")[0], word) for source, word, _ in ENTRIES
    )
    if source != "UdioAPI"  # It names no task.
]


def reading(value: Any) -> list[Any]:
    """Return what a poll, a question about the task, and a callback make of a body."""
    body = msgspec.json.encode(value)
    answers = wire.read_poll(200, JSON, body), wire.read_poll(200, JSON, body, "t")
    return [*map(told, answers), told(wire.read_callback(body))]


def told(answer: wire.Answer | None) -> Any:
    if not isinstance(answer, wire.Report):
        return answer and answer.outcome
    possible = answer.possible and (answer.possible.state, urls(answer.possible))
    return answer.state, answer.task_ids, answer.word, urls(answer), possible, answer.is_proof


@given(st.sampled_from(BODIES), st.lists(st.sampled_from(WRAPS), min_size=1, max_size=3))
def test_an_envelope_changes_nothing_of_a_task_that_is_named(body: Any, wraps: list[Wrap]) -> None:
    value = body
    for wrap in wraps:
        value = wrap(value)
    assert reading(value) == reading(body)


@pytest.mark.parametrize("wrap", WRAPS + OF_ANY_NAME)
def test_each_envelope_alone_changes_nothing(wrap: Wrap) -> None:
    for body in BODIES:
        assert reading(wrap(body)) == reading(body)
