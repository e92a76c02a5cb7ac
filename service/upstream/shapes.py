"""What a JSON body from upstream says: its envelope, task id, status words and error.

Several generations of API in One and the providers that it resells each have their own names for
the same four facts, and the body of its task route is documented nowhere: so every name seen is
read here, wherever it stands, and nothing that is not understood is an error.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec

MAX_BODY_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 64
MAX_TEXT_CHARS = 500
MAX_WORD_CHARS = 100

State = Literal["processing", "succeeded", "failed"]
Places = tuple[dict[str, Any], ...]

_WORDS: dict[State, str] = {
    "processing": "pending queued waiting queuing created processing generating running in_progress"
    " text first submitted new",
    "succeeded": "success succeeded succeed complete completed finished",
    "failed": "fail failed failure error cancel canceled cancelled create_task_failed"
    " generate_cover_failed",
}
MEANING = {word: state for state, words in _WORDS.items() for word in words.split()}

_WORD_KEYS = ("status", "state", "task_status", "taskStatus", "callbackType")
_ID_KEYS = ("task_id", "taskId", "workId", "work_id")
_CODE_KEYS = ("failCode", "fail_code", "error_code", "errorCode")
_MESSAGE_KEYS = (
    "failMsg",
    "fail_msg",
    "fail_message",
    "error_message",
    "errorMessage",
    "task_status_msg",
    "fail_reason",
    "extra_message",
)
_TASK_ID = re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,159}")


class Shape(msgspec.Struct, frozen=True):
    """A decoded body: the whole, the object that tells of the task, and its clips, if any."""

    outer: dict[str, Any]
    node: dict[str, Any]
    clips: tuple[dict[str, Any], ...]


def decode(body: bytes) -> dict[str, Any] | list[Any] | None:
    """Return the JSON object or array; None for anything else, too large or nested too deeply."""
    if len(body) > MAX_BODY_BYTES:
        return None
    try:
        value = msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if not isinstance(value, dict | list) or _is_deep(value):
        return None
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return False
    return True


def _children(parent: dict[str, Any] | list[Any]) -> Iterator[Any]:
    children = parent.values() if isinstance(parent, dict) else parent
    return (child for child in children if isinstance(child, dict | list))


def open_up(value: dict[str, Any] | list[Any]) -> Shape:
    """Find the task in an envelope: `{code, message, data: {…}}`, bare, or a list of clips."""
    outer = value if isinstance(value, dict) else {"data": value}
    data = outer.get("data")
    node = data if isinstance(data, dict) else outer
    if isinstance(data, list) and data and isinstance(data[0], dict) and _is_task(data[0]):
        node = data[0]
    lists = (node.get("response_data"), node.get("data"))
    clips = next((given for given in lists if isinstance(given, list) and any(_words(given))), [])
    return Shape(outer, node, tuple(clip for clip in clips if isinstance(clip, dict)))


def _is_task(place: dict[str, Any]) -> bool:
    return any(_text(place.get(key)) for key in _ID_KEYS)


def _words(clips: Iterable[Any]) -> Iterator[str | None]:
    return (_text(clip.get("status")) for clip in clips if isinstance(clip, dict))


def word(shape: Shape) -> str | None:
    """Return the status word as written, at most 100 characters; None if there is none."""
    places = (shape.node, shape.outer)
    written = _first(place.get(key) for place in places for key in _WORD_KEYS)
    # Suno's feed says `type` where others say `status`; elsewhere `type` is a parameter's echo.
    if written is None and "response_data" in shape.node:
        written = _text(shape.node.get("type"))
    return written[:MAX_WORD_CHARS] if written else None


def meaning(written: str | None) -> State | None:
    """Return what a status word means, in any case; None for a word that is not known."""
    return MEANING.get(re.sub(r"[\s-]+", "_", written.strip().lower())) if written else None


def clip_words(shape: Shape) -> tuple[str | None, ...]:
    """Return the status word of each clip."""
    return tuple(_words(shape.clips))


def task_id(shape: Shape) -> str | None:
    """Return upstream's id for the task; None unless it is safe in a path: 1 to 160 characters."""
    places = (shape.node, shape.outer)
    found = _first(place.get(key) for place in places for key in (*_ID_KEYS, "id"))
    return found if found and _TASK_ID.fullmatch(found) else None


def names_task(shape: Shape) -> bool:
    """Whether the body has an id that can only be a task's: `id` alone may be a request's."""
    return _is_task(shape.node) or _is_task(shape.outer)


def body_code(shape: Shape) -> int | None:
    """Return the numeric code of the body: some upstreams answer HTTP 200 with an error in it."""
    error = shape.outer.get("error")
    codes = (shape.outer.get("code"), error.get("code") if isinstance(error, dict) else None)
    return next((number for number in map(_number, codes) if number is not None), None)


def is_fine(code: int | None) -> bool:
    """Whether a body's code, or having none, means no error."""
    return code is None or code == 0 or 200 <= code <= 299


def error(shape: Shape) -> tuple[str | None, str | None]:
    """Return the code and the message of a failure, at most 500 characters each; None if unsaid."""
    places = (shape.node, *shape.clips, shape.outer)
    nested = [place["error"] for place in places if isinstance(place.get("error"), dict)]
    return _first(_codes(shape, places, nested)), _first(_messages(shape, places, nested))


def _codes(shape: Shape, places: Places, nested: list[dict[str, Any]]) -> Iterator[Any]:
    yield from (place.get(key) for place in places for key in _CODE_KEYS)
    # A code that is a name says most: "content_policy"; then the type: "authentication_error".
    yield from (given.get("code") for given in nested if _number(given.get("code")) is None)
    yield from (given.get(key) for given in nested for key in ("type", "code"))
    code = shape.outer.get("code")
    if not is_fine(_number(code)) or (isinstance(code, str) and meaning(code) is None):
        yield code


def _messages(shape: Shape, places: Places, nested: list[dict[str, Any]]) -> Iterator[Any]:
    yield from (place.get(key) for place in places for key in _MESSAGE_KEYS)
    yield from (given.get("message") for given in nested)
    yield from (place.get("error") for place in places)
    # `message` is "success" in the envelope of a task that failed: then it says nothing.
    remarks = ((shape.node, shape.outer), ("message", "msg", "detail"))
    yield from (
        place.get(key)
        for place, key in itertools.product(*remarks)
        if meaning(_text(place.get(key))) is None
    )


def _first(values: Iterable[Any]) -> str | None:
    return next((text for text in map(_text, values) if text), None)


def _text(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value).strip()[:MAX_TEXT_CHARS] or None


def _number(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
