"""Finds the task in a JSON body of upstream, with its ids, its status word and its code.

Upstream's versions and the providers that it resells name the same values differently. So every
known name is looked up in every object that may have it; a body without any of them is no error.
"""

from typing import Any

import msgspec

from service.upstream import lenient
from service.upstream.ids import ids_as, ids_of, task_ids_of
from service.upstream.names import ROLES, UNKNOWN
from service.upstream.scalars import JsonObject, number_of, text_of
from service.upstream.vocabulary import (
    CODES_FINE,
    FLAG_KEYS,
    WORD_CHARS_MAX,
    WORDS_OF_REQUESTS,
    State,
    is_known,
    is_of_clip,
    is_trouble,
    may_be_of_failed_request,
    may_be_of_request,
    state_of,
    state_of_flag,
)

WEAK_CHARS_MAX = len("success")
ENVELOPES_MAX = 4  # Within each other.

# The names under which the task may stand. The last three may hold its result instead: there, only
# an object that names a task is one.
_TASK_KEYS = ("data", "task", "output", "result", "response")
_OWN_KEYS = _TASK_KEYS[:2]
_WORD_KEYS = ("status", "state", "task_status", "taskStatus", "callbackType")


class Document(msgspec.Struct, frozen=True):
    """A decoded body, with the object that describes the task."""

    raw: JsonObject | list[Any]
    is_whole: bool  # False if the body was cut: what is missing may be anything.
    root: JsonObject  # The outermost object; a list counts as its `data`.
    task: JsonObject  # Often the root itself.
    key: str  # The name under which the task stands, if it is not the root.
    word: str | None  # The status word of the task as written, at most 100 characters.
    state: State | None  # What that word, or a flag in its place, means; None if unknown.
    may_be_of_request: bool  # Whether the word stands in the envelope and may be about the request.
    task_ids: tuple[str, ...]  # Every id that the body gives the task, never one of an input.
    has_failed: bool  # Whether it names the task and says that it failed, whatever its code is.
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

    @property
    def has_task_id(self) -> bool:
        """Whether the body names the task; `id` does not count, as it may be a file's."""
        return bool(task_ids_of(self.task) or task_ids_of(self.root))


def parse(body: bytes, asked_id: str | None = None) -> Document | None:
    """Decode a body and find its task, in an envelope or as the root; None if it is no JSON.

    Of several tasks it is the one with `asked_id`, the task that was polled.
    """
    decoded = lenient.decode(body)
    if decoded is None:
        return None
    raw = decoded.value
    root = raw if isinstance(raw, dict) else {"data": raw}
    key, task = "data", _task(root, asked_id)
    own_ids = ids_of(task)
    ids = own_ids or (ids_of(root) if task is not root else ())
    if not ids and asked_id is not None:
        own_ids = ids = _other_names(root, task, asked_id)
    if not ids and not _has_own_word(task) and (held := _held(root, asked_id)):
        root, key, task = held
        own_ids = ids = ids_of(task)
    word = status_word(task)
    # The words of an envelope are about the request, but for an envelope that names the task.
    is_borrowed = word is None and not own_ids and bool(ids)
    if is_borrowed:
        word = status_word(root)
    state = state_of(word) if word else _flag(task)
    code = _code(root) or (None if state or task is root else _trouble(task))
    may_tell = task is not root or _tells(word, code, is_named=asked_id in own_ids)
    return Document(
        raw=raw,
        is_whole=decoded.is_whole,
        root=root,
        task=task,
        key=key,
        word=word or (f"a flag means {state}" if state else None),
        state=state,
        may_be_of_request=is_borrowed or (task is root and may_be_of_request(word)),
        task_ids=ids,
        has_failed=state == "failed" and bool(own_ids) and may_tell,
        code=code,
        size_bytes=len(body),
    )


def _tells(word: str | None, code: int | None, *, is_named: bool) -> bool:
    """Whether a failure at the top is about the task, also beside a code that the poll failed.

    A flag is. Code 500 says that something broke: the task, if the body names the one polled.
    """
    return not word or (code == 500 and is_named and not may_be_of_failed_request(word))


def _task(root: JsonObject, asked_id: str | None) -> JsonObject:
    data = root.get("data")
    if type(data) is str:
        data = lenient.opened(data)
    if isinstance(data, dict):
        return data if asked_id is None else _task_in_data(root, data, asked_id)
    items = data if isinstance(data, list) else []
    return _item(items, asked_id) or _other_item(root, items, asked_id) or root


def _held(
    root: JsonObject, asked_id: str | None, depth: int = ENVELOPES_MAX
) -> tuple[JsonObject, str, JsonObject] | None:
    """Return the envelope right around a task, the name of the task in it, and the task."""
    for key, items in _lists(root):
        if item := _item(items, asked_id):
            return root, key, item
    inner = {key: _only(root[key]) for key in _TASK_KEYS if key in root}
    if len(root) == 1:
        inner = _enclosed(root) | inner
    objects = {key: value for key, value in inner.items() if isinstance(value, dict)}
    for key, object_ in objects.items():
        is_asked = asked_id is not None and asked_id in ids_of(object_)
        if is_asked or task_ids_of(object_) or _is_task(object_):
            return root, key, object_
    # The error code of an envelope would be lost if the task were looked for within it.
    if depth and not is_known(_code(root)):
        closed = (_held(o, asked_id, depth - 1) for o in objects.values() if not _has_own_word(o))
        if held := next(filter(None, closed), None):
            return held
    for key in _OWN_KEYS:
        if key in objects and not isinstance(root[key], list) and status_word(objects[key]):
            return root, key, objects[key]
    return None


def _enclosed(root: JsonObject) -> JsonObject:
    """Return the values of an object by name, without those under names of files and echoes.

    Leonardo's is `generations_by_pk` (docs.leonardo.ai/reference/getgenerationbyid).
    """
    pairs = ((key, value, ROLES[key]) for key, value in root.items())
    return {k: v for k, v, role in pairs if role.place == UNKNOWN and not role.is_echo}


def _lists(object_: JsonObject) -> list[tuple[str, list[Any]]]:
    """Return the lists of an object that may hold tasks, or parts of one."""
    pairs = object_.items()
    return [(k, v) for k, v in pairs if isinstance(v, list) and ROLES[k].may_hold_parts]


def _only(value: Any) -> Any:
    """Return the only item of a list, or the JSON in a text, as far as they are nested."""
    for _ in range(ENVELOPES_MAX):
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        elif isinstance(value, str):
            value = lenient.opened(value)
        else:
            break
    return value


def _task_in_data(root: JsonObject, data: JsonObject, asked_id: str) -> JsonObject:
    ids = ids_of(data)
    if asked_id in ids:
        return data
    if ids:
        # If the envelope names the task and says that it is not done, `data` is another task's.
        # Its "success" may be about the request.
        is_above = asked_id in ids_of(root)
        is_open = state_of(status_word(root)) in ("processing", "failed")
        return root if is_above and is_open else data
    lists = _lists(data)
    own = (_item(items, asked_id) for _, items in lists)
    if task := next(filter(None, own), None):
        return task
    # Beside a status word of `data`, or under names of results, the items are parts of the task.
    if not _has_own_word(data) and asked_id not in data.values():
        others = (_other_item(root, v, asked_id) for k, v in lists if ROLES[k].place == UNKNOWN)
        return next(filter(None, others), data)
    return data


def _other_names(root: JsonObject, task: JsonObject, asked_id: str) -> tuple[str, ...]:
    """Return the ids of a task that has none under the usual names: ids of a job name it too.

    The id that was polled names the task wherever it stands, also as the id of a request.
    """
    jobs = ids_as(task, "job")
    others = (*ids_as(root, "job", "other"), *ids_as(task, "other"))
    # Google's operations are named by `name` (google.aip.dev/151).
    if asked_id in (*jobs, *others, task.get("name"), root.get("name")):
        return (asked_id,)
    return jobs if task is not root else ()


def _item(items: list[Any], asked_id: str | None) -> JsonObject | None:
    """Return the task that was polled from a list of tasks; None if it is not there."""
    own = [item for item in items if isinstance(item, dict) and asked_id in ids_of(item)]
    if len(own) > 1:  # The parts of the task, each with its id.
        return {"task_id": asked_id, "data": own}
    return own[0] if own else None


def _other_item(root: JsonObject, items: list[Any], asked_id: str | None) -> JsonObject | None:
    """Return the first of a list of tasks; None if the list belongs to the task itself."""
    first = items[0] if items else None
    if not isinstance(first, dict) or (asked_id is not None and asked_id in root.values()):
        return None
    # Several items with an `id` each are the parts that one create request or callback is about.
    is_alone = asked_id is not None or len(items) == 1
    may_be_task = is_alone and not ids_of(root) and not _has_own_word(root)
    return first if task_ids_of(first) or (may_be_task and _is_task(first)) else None


def _has_own_word(object_: JsonObject) -> bool:
    word = status_word(object_)
    # A number may be the code of the request, as with Jimeng.
    return word is not None and not may_be_of_request(word) and not word.isdigit()


def _is_task(item: JsonObject) -> bool:
    """Whether an item of a list is a task with a word or a result of its own.

    A clip of Suno has an `id` and a word too: it is a part of a task that has another id.
    """
    word = status_word(item)
    has_outcome = word is not None or "output" in item
    is_clip = is_of_clip(word) or any(ROLES[name].key == "audiourl" for name in item)
    return has_outcome and not is_clip and bool(ids_of(item))


def other_tasks(document: Document, asked_id: str | None) -> tuple[str, ...]:
    """Return the ids in a list of several tasks of which none was polled; else nothing."""
    if asked_id in document.task_ids:
        return ()
    lists = [v for k, v in _lists(document.root) if k == "data" or not document.task_ids]
    items = [item for items in lists for item in items if isinstance(item, dict)]
    of_tasks = [task_ids_of(item) or (ids_of(item) if _is_task(item) else ()) for item in items]
    ids = tuple(dict.fromkeys(id_ for ids in of_tasks for id_ in ids[:1]))
    return ids if len(ids) > 1 else ()


def status_word(object_: JsonObject) -> str | None:
    """Return the status word of an object as written, at most 100 characters."""
    for key in _WORD_KEYS:
        if key in object_ and (word := text_of(object_[key])):
            may_be_weak = len(word) <= WEAK_CHARS_MAX  # Saves a look-up for most words.
            exact = _exact_word(object_, key, word) if may_be_weak else None
            return (exact or word)[:WORD_CHARS_MAX]
    # Suno's feed has its status under `type`; elsewhere `type` repeats a parameter of the request.
    if "response_data" in object_ and (word := text_of(object_.get("type"))):
        return word[:WORD_CHARS_MAX]
    return None


def _exact_word(object_: JsonObject, weak_key: str, weak: str) -> str | None:
    """Return the known word of an object beside a word or a code that may be the request's."""
    if weak.lower() not in WORDS_OF_REQUESTS and not weak.isdigit():
        return None
    words = (text_of(object_[key]) for key in _WORD_KEYS if key in object_ and key != weak_key)
    return next((word for word in words if state_of(word)), None)


def _flag(task: JsonObject) -> State | None:
    flags = (state_of_flag(task[key]) for key in FLAG_KEYS if key in task)
    return next(filter(None, flags), None) or _state_of_operation(task)


def _state_of_operation(task: JsonObject) -> State | None:
    """Return the state of an operation: it has a response or an error when `done` is true.

    See google.aip.dev/151. A response beside an explicit "not done" is partial or old.
    """
    if task.get("done") is False or task.get("completed") is False:
        return "processing"
    if task.get("done") is not True:
        return None
    if isinstance(task.get("error"), dict):
        return "failed"
    return "succeeded" if "response" in task else None


def _code(root: JsonObject) -> int | None:
    """Return the error code of the envelope."""
    code = number_of(root["code"]) if "code" in root else None
    if code is None and "error" in root:
        code = _error_code(root)
    base = root.get("base_resp") if code is None else None  # MiniMax's envelope.
    if isinstance(base, dict):
        code = number_of(base.get("status_code"))
    return None if code in CODES_FINE else code


def _trouble(task: JsonObject) -> int | None:
    """Return the code by which an error in a task says how the poll went, not the task."""
    code = _error_code(task)
    return code if code is not None and is_trouble(code) else None


def _error_code(object_: JsonObject) -> int | None:
    error = object_.get("error")
    return number_of(error.get("code")) if isinstance(error, dict) else None
