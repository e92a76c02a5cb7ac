"""Reads the facts in a JSON body from upstream: its envelope, task id, status words and error.

The versions of API in One and the providers that it resells use different names for the same
facts, and the body of the task route is not documented. So every known name is read at every known
place, and a body that is not understood is no error.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import msgspec

MAX_BODY_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 64
MAX_TEXT_CHARS = 500
MAX_WORD_CHARS = 100

State = Literal["processing", "succeeded", "failed"]
Object = dict[str, Any]

_WORDS: dict[State, str] = {
    "processing": "pending queued waiting queuing created processing generating running in_progress"
    " text first submitted new",
    "succeeded": "success succeeded succeed complete completed finished",
    "failed": "fail failed failure error cancel canceled cancelled create_task_failed"
    " generate_cover_failed",
}
STATE_OF_WORD = {word: state for state, words in _WORDS.items() for word in words.split()}

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
_REMARK_KEYS = ("message", "msg", "detail")
_TASK_ID = re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,159}")


class Shape(msgspec.Struct, frozen=True):
    """A decoded body, and where the task is described in it.

    raw: the decoded JSON. root: the outermost object; a list counts as its `data`.
    task: the object that describes the task, often the root itself. clips: the parts of a song.
    """

    raw: Object | list[Any]
    root: Object
    task: Object
    clips: tuple[Object, ...]


def parse(body: bytes) -> Shape | None:
    """Decode a body and find the task in it; None if `decode` refuses the body.

    The task stands in an envelope (`{code, message, data: {…}}`), alone, or is a list of clips.
    """
    raw = decode(body)
    if raw is None:
        return None
    root = raw if isinstance(raw, dict) else {"data": raw}
    data = root.get("data")
    task = data if isinstance(data, dict) else root
    if isinstance(data, list) and data and isinstance(data[0], dict) and _has_task_id(data[0]):
        task = data[0]
    return Shape(raw, root, task, _clips(task))


def decode(body: bytes) -> Object | list[Any] | None:
    """Return the JSON object or array; None for anything else, too large or nested too deeply."""
    if len(body) > MAX_BODY_BYTES:
        return None
    try:
        value = msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) and not _is_too_deep(value) else None


def _is_too_deep(value: Object | list[Any]) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        children = (each.values() if isinstance(each, dict) else each for each in level)
        level = [child for group in children for child in group if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def _clips(task: Object) -> tuple[Object, ...]:
    """Return the objects of the first list in which at least one has a status word."""
    for items in (task.get("response_data"), task.get("data")):
        if isinstance(items, list):
            clips = tuple(item for item in items if isinstance(item, dict))
            if any(clip_words(clips)):
                return clips
    return ()


def clip_words(clips: Iterable[Object]) -> list[str | None]:
    """Return the status word of each clip."""
    return [_text(clip.get("status")) for clip in clips]


def status_word(shape: Shape) -> str | None:
    """Return the status word as written, at most 100 characters; None if there is none."""
    word = _first_text(_values((shape.task, shape.root), _WORD_KEYS))
    # Suno's feed has its status under `type`; elsewhere `type` repeats a parameter of the request.
    if word is None and "response_data" in shape.task:
        word = _text(shape.task.get("type"))
    return word[:MAX_WORD_CHARS] if word else None


def state_of(word: str | None) -> State | None:
    """Return the state that a status word means, in any case; None for an unknown word."""
    return STATE_OF_WORD.get(re.sub(r"[\s-]+", "_", word.strip().lower())) if word else None


def task_id(shape: Shape) -> str | None:
    """Return upstream's id for the task; None unless it is safe in a path: 1 to 160 characters."""
    text = _first_text(_values((shape.task, shape.root), (*_ID_KEYS, "id")))
    return text if text and _TASK_ID.fullmatch(text) else None


def names_task(shape: Shape) -> bool:
    """Whether the body has an id under a name that only tasks have: `id` may be a request's."""
    return _has_task_id(shape.task) or _has_task_id(shape.root)


def _has_task_id(place: Object) -> bool:
    return any(_text(place.get(key)) for key in _ID_KEYS)


def error_code(shape: Shape) -> int | None:
    """Return the body's numeric error code, which may come with HTTP 200; None if it has none."""
    error = shape.root.get("error")
    values = (shape.root.get("code"), error.get("code") if isinstance(error, dict) else None)
    code = next((number for number in map(_number, values) if number is not None), None)
    return None if _is_success(code) else code


def _is_success(code: int | None) -> bool:
    return code is None or code == 0 or 200 <= code <= 299


def read_error(shape: Shape) -> tuple[str | None, str | None]:
    """Return the code and the message of a failure, each at most 500 characters, or None."""
    places = (shape.task, *shape.clips, shape.root)
    errors = [place["error"] for place in places if isinstance(place.get("error"), dict)]
    return _first_text(_codes(shape, places, errors)), _first_text(_messages(shape, places, errors))


def _codes(shape: Shape, places: Sequence[Object], errors: Sequence[Object]) -> Iterator[Any]:
    yield from _values(places, _CODE_KEYS)
    # A code that is a name says most ("content_policy"), then the type ("authentication_error").
    yield from (error.get("code") for error in errors if _number(error.get("code")) is None)
    yield from _values(errors, ("type", "code"))
    code = shape.root.get("code")
    if not _is_success(_number(code)) or (isinstance(code, str) and state_of(code) is None):
        yield code


def _messages(shape: Shape, places: Sequence[Object], errors: Sequence[Object]) -> Iterator[Any]:
    yield from _values(places, _MESSAGE_KEYS)
    yield from _values(errors, ("message",))
    yield from _values(places, ("error",))
    # The envelope of a failed task may have the message "success", which explains nothing.
    remarks = _values((shape.task, shape.root), _REMARK_KEYS)
    yield from (remark for remark in remarks if state_of(_text(remark)) is None)


def _values(places: Iterable[Object], keys: Sequence[str]) -> Iterator[Any]:
    return (place.get(key) for place in places for key in keys)


def _first_text(values: Iterable[Any]) -> str | None:
    return next((text for text in map(_text, values) if text), None)


def _text(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value).strip()[:MAX_TEXT_CHARS] or None


def _number(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
