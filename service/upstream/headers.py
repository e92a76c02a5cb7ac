"""Reads which task the headers of an answer to a submission name, by its URL or its id."""

from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from service.upstream import mentions
from service.upstream.scalars import id_of

# RFC 9110, 10.2.2 and 8.7. Operation-Location: Microsoft's REST guidelines for long operations.
_PLACES = ("location", "operation-location", "content-location")
# `function-execution-id` and the like come with any answer of their gateway.
_ID_ENDS = ("task-id", "job-id", "prediction-id", "generation-id")
# Ids under these may be of something else: they are only signs of a task.
_SIGN_ENDS = ("run-id", "operation-id", "order-id", "task-uuid", "job-uuid")


def task_id_of(headers: Mapping[str, str]) -> str | None:
    """Return the task that headers name, by a URL as `…/tasks/{id}` or by its id."""
    places = (headers[name] for name in _PLACES if name in headers)
    steps = (mentions.task_in_path(_path(place)) for place in places)
    values = (value.strip() for name, value in headers.items() if name.endswith(_ID_ENDS))
    ids = (id_of(text) for text in (*(unquote(step) for step in steps if step), *values))
    return next(filter(None, ids), None)


def tell_of_task(headers: Mapping[str, str]) -> bool:
    """Whether headers show that a task may have been made, though they may not name it."""
    ends = (*_ID_ENDS, *_SIGN_ENDS)
    signs = (v for name, v in headers.items() if name == _PLACES[1] or name.endswith(ends))
    if task_id_of(headers) or any(map(str.strip, signs)):
        return True
    paths = [_path(headers.get(name, "")) for name in _PLACES]
    is_id = (mentions.is_id(unquote(path.rpartition("/")[2])) for path in paths)
    return any(is_id) or any(map(mentions.task_in_path, paths))  # It may be too long for an id.


def tell_of_body(headers: Mapping[str, str]) -> bool:
    """Whether there was a body, though nobody can decompress it: it may name a task."""
    return headers.get("content-encoding", "identity").strip().lower() != "identity"


def _path(place: str) -> str:
    try:
        return urlsplit(place.strip()).path
    except ValueError:
        return ""  # No URL, such as one whose host is a cut IPv6 address.
