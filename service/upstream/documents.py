"""Reads the task id, status words and error from a JSON body of upstream.

Its versions and the providers that it resells use different names for the same values. So every
known name is looked up in every object that may have it; a body without any of them is no error.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from service.upstream import lenient
from service.upstream.vocabulary import CODES_FINE, FLAG_KEYS, State, state_of, state_of_flag

MAX_TEXT_CHARS = 500
MAX_WORD_CHARS = 100
MAX_ID_CHARS = 512
NUMBER_MAX = 2**53  # Every reader of JSON and every column holds an integer up to this.

JsonObject = dict[str, Any]

_WORD_KEYS = ("status", "state", "task_status", "taskStatus", "callbackType")
_PART_KEYS = ("response_data", "data", "results", "outputs", "images", "videos", "clips")
_ID_KEYS = ("task_id", "taskId", "workId", "work_id")
# Objects in which an answer may name a new task: never an echo of the request, never an error.
_HOLDER_KEYS = ("data", "task", "tasks", "output", "result", "results", "response", "generation")
_CODE_KEYS = ("failCode", "fail_code", "failureCode", "error_code", "errorCode")
_MESSAGE_KEY_LIST = """
    failMsg fail_msg fail_message error_message errorMessage task_status_msg fail_reason
    failure_reason failureReason failure extra_message status_msg
"""
_MESSAGE_KEYS = _MESSAGE_KEY_LIST.split()
_NO_ERROR_CODES = {None, *CODES_FINE}


class Document(msgspec.Struct, frozen=True):
    """A decoded body, with the object that describes the task."""

    raw: JsonObject | list[Any]
    is_whole: bool  # False if the body was cut: what is missing may be anything.
    root: JsonObject  # The outermost object; a list counts as its `data`.
    task: JsonObject  # Often the root itself.
    clips: tuple[JsonObject, ...]  # The parts of a task that have status words of their own.
    word: str | None  # The status word of the task as written, at most 100 characters.
    state: State | None  # What that word, or a flag in its place, means; None if unknown.
    task_ids: tuple[str, ...]  # Every id that the body gives the task, never one of an input.
    has_task_id: bool  # Whether there is any; `id` does not count, as it may be a file's.
    code: int | None  # The numeric error code, which may come with HTTP 200.
    size_bytes: int  # Of the body.

    @property
    def task_id(self) -> str | None:
        """Upstream's id for the task."""
        return self.task_ids[0] if self.task_ids else None

    @property
    def is_about_task(self) -> bool:
        """Whether the body is about a task: it names it, or has `data` in an envelope."""
        return bool(self.task_ids) or self.task is not self.root


def parse(body: bytes, asked_id: str | None = None) -> Document | None:
    """Decode a body and find its task: in an envelope's `data`, or the root; None: no JSON.

    Of several tasks it is the one with `asked_id`, the task that was asked about.
    """
    decoded = lenient.decode(body)
    if decoded is None:
        return None
    raw = decoded.value
    root = raw if isinstance(raw, dict) else {"data": raw}
    task = _task(root, asked_id)
    ids = _own_ids(task) or _own_ids(root)
    # The words of an envelope are about the request, but for an envelope that names the task.
    word_holder = root if task is not root and not _own_ids(task) and ids else task
    word = _status_word(task) or _status_word(word_holder)
    flag = next((state for f in _values((task,), FLAG_KEYS) if (state := state_of_flag(f))), None)
    return Document(
        raw=raw,
        is_whole=decoded.is_whole,
        root=root,
        task=task,
        clips=_clips(task, ids),
        word=word or (f"successFlag means {flag}" if flag else None),
        state=state_of(word) if word else flag,
        task_ids=ids,
        has_task_id=_has_key(task) or _has_key(root),
        code=_code(root),
        size_bytes=len(body),
    )


def _task(root: JsonObject, asked_id: str | None) -> JsonObject:
    data = root.get("data")
    if isinstance(data, dict):
        return root if _speaks_above(root, data, asked_id) else data
    output = root.get("output")
    if data is None and isinstance(output, dict) and not (_own_ids(root) or _status_word(root)):
        # DashScope (dashscope-sdk-python, api_entities/dashscope_response.py).
        return output if _has_key(output) and _status_word(output) else root
    objects = data if isinstance(data, list) else []
    parts = [item for item in objects if isinstance(item, dict) and asked_id in _own_ids(item)]
    if len(parts) > 1:  # The parts of the task, each with its id.
        return {"task_id": asked_id, "data": parts}
    if parts or asked_id in _own_ids(root):
        return parts[0] if parts else root
    first = objects[0] if objects else None
    return first if isinstance(first, dict) and _has_key(first) else root


def _speaks_above(root: JsonObject, data: JsonObject, asked_id: str | None) -> bool:
    """Whether an envelope names the task, and says that it is not done, above another's data."""
    ids = _own_ids(data)
    is_above = asked_id in _own_ids(root) and bool(ids) and asked_id not in ids
    # "success" may be about the request.
    return is_above and state_of(_status_word(root)) in ("processing", "failed")


def other_tasks(document: Document, asked_id: str | None) -> tuple[str, ...]:
    """Return the ids in a list of several tasks of which none was asked about; else nothing."""
    data = document.root.get("data")
    if asked_id in document.task_ids or not isinstance(data, list):
        return ()
    items = [item for item in data if isinstance(item, dict) and _has_key(item)]
    ids = tuple(dict.fromkeys(id_ for item in items for id_ in _own_ids(item)[:1]))
    return ids if len(ids) > 1 else ()


def _has_key(object_: JsonObject) -> bool:
    """Whether an object names a task under a key that says so."""
    return _first_text(_values((object_,), _ID_KEYS)) is not None


def _own_ids(object_: JsonObject) -> tuple[str, ...]:
    """Return the ids that an object gives itself; `id` only where no key says "task"."""
    texts = [_id(object_[key]) for key in _ID_KEYS if key in object_]
    ids = tuple(dict.fromkeys(text for text in texts if text))
    # Beside `data`, the id of an envelope may be that of the request.
    own = None if ids or isinstance(object_.get("data"), dict) else _id(object_.get("id"))
    return (own,) if own else ids


def named_ids(document: Document) -> tuple[str, ...]:
    """Return every id by which an answer to a submission may name the task that it made.

    The `id` of an envelope counts unless an error stands beside it: it is then the request's.
    """
    ids = [id_ for holder in _holders(document.root) for id_ in _own_ids(holder)]
    root_ids = _own_ids(document.root)
    is_open = state_of(_status_word(document.root)) in ("processing", "succeeded")
    if _has_key(document.root) or is_open or read_error(document) == (None, None):
        ids = [*root_ids, *ids]
    return tuple(dict.fromkeys(ids))


def _holders(root: JsonObject) -> Iterator[JsonObject]:
    for value in _values((root,), _HOLDER_KEYS):
        items = value if isinstance(value, list) else [value]
        yield from (item for item in items if isinstance(item, dict))


def _id(value: Any) -> str | None:
    """Return an id as written; None if no path can hold it. Ids are opaque: any text may be one."""
    text = _text(value, MAX_ID_CHARS + 1)
    # A server or a proxy would read dots as steps in the path, also encoded.
    return text if text and len(text) <= MAX_ID_CHARS and text not in {".", ".."} else None


def _code(root: JsonObject) -> int | None:
    """Return the error code of the envelope."""
    error, base = root.get("error"), root.get("base_resp")  # MiniMax's envelope.
    codes = (
        root.get("code"),
        error.get("code") if isinstance(error, dict) else None,
        base.get("status_code") if isinstance(base, dict) else None,
    )
    code = next((number for number in map(_number, codes) if number is not None), None)
    return None if code in _NO_ERROR_CODES else code


def _clips(task: JsonObject, ids: tuple[str, ...]) -> tuple[JsonObject, ...]:
    """Return the objects of the first list in which at least one has a status word.

    What names another task than one of `ids` is no part of the task.
    """
    for key in _PART_KEYS:
        items = task.get(key)
        if isinstance(items, list):
            objects = [item for item in items if isinstance(item, dict)]
            clips = tuple(
                o for o in objects if not (ids and _has_key(o)) or {*_own_ids(o)} & {*ids}
            )
            if any(clip_words(clips)):
                return clips
    return ()


def clip_words(clips: Iterable[JsonObject]) -> list[str | None]:
    """Return the status word of each clip."""
    return [_text(clip.get("status")) for clip in clips]


def _status_word(task: JsonObject) -> str | None:
    word = _first_text(_values((task,), _WORD_KEYS))
    # Suno's feed has its status under `type`; elsewhere `type` repeats a parameter of the request.
    if word is None and "response_data" in task:
        word = _text(task.get("type"))
    return word[:MAX_WORD_CHARS] if word else None


def read_error(document: Document) -> tuple[str | None, str | None]:
    """Return the code and the message of a failure, each at most 500 characters, or None."""
    objects = (document.task, *document.clips, document.root)
    nested = _values(objects, ("error", "base_resp", "detail"))
    errors = [error for error in nested if isinstance(error, dict)]
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
        *_values(errors, ("message", "msg", "detail", "reason", *_MESSAGE_KEYS)),
        *_values(objects, ("error",)),
        *(message for message in envelope if state_of(_text(message)) is None),
    )
    return _first_text(codes), _first_text(messages)


def has_error(task: JsonObject) -> bool:
    """Whether an object holds an error of its own: a text, a code or an object with one."""
    values = [task.get(key) for key in ("error", "errorMessage", "error_message", "failMsg")]
    return any(_is_error(value) for value in values)


def _is_error(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_is_error(value.get(key)) for key in ("message", "msg", "code", "type"))
    if isinstance(value, str):
        text = value.strip().lower()
        return text not in {"", "none", "null", "no error", "0"} and state_of(text) != "succeeded"
    return _number(value) not in _NO_ERROR_CODES


def is_partial(task: JsonObject) -> bool:
    """Whether the task says that it is not complete: a progress below 100."""
    text = str(task.get("progress", "")).strip().removesuffix("%")
    return bool(re.fullmatch(r"[0-9]{1,3}(\.[0-9]+)?", text)) and float(text) < 100


def _values(objects: Iterable[JsonObject], keys: Sequence[str]) -> Iterator[Any]:
    return (object_.get(key) for object_ in objects for key in keys)


def _first_text(values: Iterable[Any]) -> str | None:
    return next(filter(None, map(_text, values)), None)


def _text(value: Any, chars: int = MAX_TEXT_CHARS) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    if isinstance(value, int) and value.bit_length() > 4 * lenient.DIGITS_MAX:
        return None  # Python refuses to write it.
    return str(value).strip()[:chars] or None


def _number(value: Any) -> int | None:
    """Return an integer, clamped to what every column holds."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return clamp(value)


def clamp(number: int | None) -> int | None:
    """Return a number of a stranger within the range that every reader of JSON can hold."""
    return None if number is None else max(-NUMBER_MAX, min(number, NUMBER_MAX))
