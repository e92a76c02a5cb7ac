"""Reads the task id, status words and error from a JSON body of upstream.

Its versions and the providers that it resells use different names for the same values. So every
known name is looked up in every object that may have it; a body without any of them is no error.
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
JsonObject = dict[str, Any]

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
_MESSAGE_KEY_LIST = """
    failMsg fail_msg fail_message error_message errorMessage task_status_msg fail_reason
    extra_message
"""
_MESSAGE_KEYS = _MESSAGE_KEY_LIST.split()
_NO_ERROR_CODES = {None, 0, *range(200, 300)}
_TASK_ID = re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,159}")


class Document(msgspec.Struct, frozen=True):
    """A decoded body, with the object that describes the task."""

    raw: JsonObject | list[Any]
    root: JsonObject  # The outermost object; a list counts as its `data`.
    task: JsonObject  # Often the root itself.
    clips: tuple[JsonObject, ...]  # The parts of a song.
    word: str | None  # The status word as written, at most 100 characters.
    task_id: str | None  # Upstream's id for the task, if it is safe in a path.
    has_task_id: bool  # Whether there is any; `id` does not count, as it may be a request's.
    code: int | None  # The numeric error code, which may come with HTTP 200.


def parse(body: bytes) -> Document | None:
    """Decode a body and find its task: in an envelope's `data`, or the root; None: no JSON."""
    raw = decode(body)
    if raw is None:
        return None
    root = raw if isinstance(raw, dict) else {"data": raw}
    data = root.get("data")
    task = data if isinstance(data, dict) else root
    first = data[0] if isinstance(data, list) and data else None
    if isinstance(first, dict) and _first_text(_values((first,), _ID_KEYS)):
        task = first
    places = (task, root)
    id_ = _first_text(_values(places, (*_ID_KEYS, "id")))
    error = root.get("error")
    codes = (root.get("code"), error.get("code") if isinstance(error, dict) else None)
    code = next((number for number in map(_number, codes) if number is not None), None)
    return Document(
        raw=raw,
        root=root,
        task=task,
        clips=_clips(task),
        word=_status_word(task, root),
        task_id=id_ if id_ and _TASK_ID.fullmatch(id_) else None,
        has_task_id=_first_text(_values(places, _ID_KEYS)) is not None,
        code=None if code in _NO_ERROR_CODES else code,
    )


def decode(body: bytes) -> JsonObject | list[Any] | None:
    """Return the JSON object or array; None for any other body, or one too large or deep."""
    try:
        value = msgspec.json.decode(body) if len(body) <= MAX_BODY_BYTES else None
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) and not _is_too_deep(value) else None


def _is_too_deep(value: JsonObject | list[Any]) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        children = (each.values() if isinstance(each, dict) else each for each in level)
        level = [child for group in children for child in group if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def _clips(task: JsonObject) -> tuple[JsonObject, ...]:
    """Return the objects of the first list in which at least one has a status word."""
    for items in (task.get("response_data"), task.get("data")):
        if isinstance(items, list):
            clips = tuple(item for item in items if isinstance(item, dict))
            if any(clip_words(clips)):
                return clips
    return ()


def clip_words(clips: Iterable[JsonObject]) -> list[str | None]:
    """Return the status word of each clip."""
    return [_text(clip.get("status")) for clip in clips]


def _status_word(task: JsonObject, root: JsonObject) -> str | None:
    word = _first_text(_values((task, root), _WORD_KEYS))
    # Suno's feed has its status under `type`; elsewhere `type` repeats a parameter of the request.
    if word is None and "response_data" in task:
        word = _text(task.get("type"))
    return word[:MAX_WORD_CHARS] if word else None


def state_of(word: str | None) -> State | None:
    """Return the state that a status word means, in any case; None for an unknown word."""
    return STATE_OF_WORD.get(re.sub(r"[\s-]+", "_", word.strip().lower())) if word else None


def read_error(document: Document) -> tuple[str | None, str | None]:
    """Return the code and the message of a failure, each at most 500 characters, or None."""
    objects = (document.task, *document.clips, document.root)
    errors = [object_["error"] for object_ in objects if isinstance(object_.get("error"), dict)]
    code = document.root.get("code")
    is_word = isinstance(code, str) and state_of(code) is None
    codes = (
        *_values(objects, _CODE_KEYS),
        # A name as code ("content_policy") is more exact than the type ("authentication_error").
        *(error.get("code") for error in errors if _number(error.get("code")) is None),
        *_values(errors, ("type", "code")),
        code if is_word or _number(code) not in _NO_ERROR_CODES else None,
    )
    # The envelope of a failed task may have the message "success": that is no error message.
    envelope = _values((document.task, document.root), ("message", "msg", "detail"))
    messages = (
        *_values(objects, _MESSAGE_KEYS),
        *_values(errors, ("message",)),
        *_values(objects, ("error",)),
        *(message for message in envelope if state_of(_text(message)) is None),
    )
    return _first_text(codes), _first_text(messages)


def _values(objects: Iterable[JsonObject], keys: Sequence[str]) -> Iterator[Any]:
    return (object_.get(key) for object_ in objects for key in keys)


def _first_text(values: Iterable[Any]) -> str | None:
    return next(filter(None, map(_text, values)), None)


def _text(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value).strip()[:MAX_TEXT_CHARS] or None


def _number(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
