"""Looks for signs of a new task in an answer to a submission that speaks of trouble."""

import re
from collections.abc import Iterator

from service.upstream import documents, errors, results
from service.upstream.contents import Contents
from service.upstream.ids import ids_as, ids_of, task_ids_of
from service.upstream.names import ROLES
from service.upstream.scalars import JsonObject, id_of
from service.upstream.traces import Traces
from service.upstream.vocabulary import state_of

# An id that has no name has a digit: "accepted" is none.
_BARE_ID = re.compile(r"(?=.*[0-9])[A-Za-z0-9_-]{8,63}")
# Objects in which an answer may name a new task: never an echo of the request, never an error.
_HOLDER_KEYS = ("data", "task", "tasks", "output", "result", "results", "response", "generation")


class Signs:
    """The signs in an answer that upstream made a task."""

    def __init__(self, document: documents.Document, request: results.Request) -> None:
        self._objects = (document.root, *_holders(document.root))
        self._request = request
        self._traces = Traces(document.raw, request)
        self._contents = Contents()
        # The `url` of an error is no file.
        root = {name: v for name, v in document.root.items() if not ROLES[name].is_bare_url}
        self._contents.look_around(root)
        self._is_clean = _is_clean(document)
        self._is_working = any(map(_is_working, self._objects))

    def tell_of_task(self, *, is_unknown: bool) -> bool:
        """Whether a task was possibly made: there is an id, a file, a word or a URL of one.

        is_unknown: the error is not known. Any id may then be that of a task.
        """
        if is_unknown and (self._contents.names or any("name" in o for o in self._objects)):
            return True
        is_named = bool(self.task_ids() or self._contents.job_ids or self._contents.inner_ids)
        is_taken = is_named or self._is_working or self._traces.has_any
        return is_taken or bool(results.find(self._contents, "images", self._request))

    def task_ids(self) -> tuple[str, ...]:
        """Return every id by which an answer to a submission may name the task that it made.

        Without an id in the usual places, the only one at any depth counts, also in an error.
        The `id` of an envelope counts unless an error stands beside it: it is then the request's.
        """
        root, *holders = self._objects
        ids = [id_ for holder in holders for id_ in ids_of(holder)]
        if task_ids_of(root) or self._is_clean:
            ids = [*ids_of(root), *ids]
        deep = set(self._traces.task_ids)
        return tuple(dict.fromkeys(ids or (deep if len(deep) == 1 else ())))

    def job_ids(self, *, is_ok: bool) -> tuple[str, ...]:
        """Return the id of the only job that is named: if no task is named, it is the task's.

        So is the id of a request, if the answer has no error, or says that the task works.
        """
        contents = self._contents
        ids = {*contents.inner_ids, *contents.job_ids, *map(_operation, self._objects)} - {None}
        if not ids and is_ok and self._is_clean:
            ids = {_bare_id(self._objects[0])} - {None}
        if not ids and (self._is_working or (is_ok and self._is_clean)):
            ids = {id_ for object_ in self._objects for id_ in self._request_ids(object_)}
        return tuple(id_ for id_ in ids if id_) if len(ids) == 1 else ()

    def _request_ids(self, object_: JsonObject) -> tuple[str, ...]:
        """Return the ids of a request that may name the task, as with fal.

        Beside a code it is the envelope's, for tracing only (cloud.baidu.com/doc/qianfan-api).
        Taken for the task's, it would keep out the id by which a callback names the task.
        """
        is_of_envelope = "code" in object_ and not self._is_working
        return () if is_of_envelope else ids_as(object_, "other")


def _holders(root: JsonObject) -> Iterator[JsonObject]:
    for key in _HOLDER_KEYS:
        value = root.get(key)
        items = value if isinstance(value, list) else [value]
        yield from (item for item in items if isinstance(item, dict))


def _is_clean(document: documents.Document) -> bool:
    """Whether the answer has no error, or says that the task is well all the same."""
    word = documents.status_word(document.root)
    return state_of(word) in ("processing", "succeeded") or errors.read(document) == (None, None)


def _bare_id(root: JsonObject) -> str | None:
    """Return an id that stands in the place of the result.

    Meshy (docs.meshy.ai/openapi.yaml) and relays of Midjourney answer so.
    """
    result = root.get("result")
    return result if isinstance(result, str) and _BARE_ID.fullmatch(result) else None


def _operation(object_: JsonObject) -> str | None:
    """Return the name of an operation (google.aip.dev/151); other names may be of anything."""
    name = id_of(object_.get("name"))
    return name if name and "operations/" in name else None


def _is_working(object_: JsonObject) -> bool:
    """Whether an object has a word that means working, a place in a queue or a URL of a task."""
    if state_of(documents.status_word(object_)) == "processing":
        return True
    has_place = any(ROLES[name].is_of_queue and v is not None for name, v in object_.items())
    return has_place or isinstance(object_.get("urls"), dict)
