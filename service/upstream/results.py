"""Finds the files and texts of a result in the contents of a body."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal

import msgspec

from service.upstream import lenient, links
from service.upstream.contents import JSON_DEPTH_MAX, Contents, Text
from service.upstream.names import PICTURE, RESULT, UNKNOWN
from service.upstream.scalars import JsonObject, id_of

MAX_FILES = 100
Scope = Literal["results", "images", "anything"]


class File(msgspec.Struct, frozen=True):
    """One file of a result. `expires_at` is when its URL expires, in milliseconds, where known.

    A URL without a scheme is relative to upstream. None: the file is in the JSON itself.
    """

    url: str | None
    media_type: str
    expires_at: int | None = None


class Request:
    """What was sent for a generation, as JSON or decoded: its files are no results."""

    def __init__(self, content: Any = None) -> None:
        self._content = content

    def holds(self, id_: str) -> bool:
        """Whether an id is a whole value of the request: one within a text may be any word."""
        return id_ in self._values

    def names(self, text: str, url: str | None) -> bool:
        """Whether the request named a file, by the text that stands in the answer or its URL."""
        return text in self._files or url in self._files

    @cached_property
    def _json(self) -> bytes:
        content = self._content
        return content if isinstance(content, bytes) else msgspec.json.encode(content)

    @cached_property
    def _files(self) -> frozenset[str]:
        # Without a slash it has neither a link nor a file in base64.
        return self._values if b"/" in self._json else frozenset()

    @cached_property
    def _values(self) -> frozenset[str]:
        decoded = lenient.decode(self._json)
        return frozenset(_values_in(decoded.value)) if decoded else frozenset()


def _values_in(value: Any, depth: int = JSON_DEPTH_MAX) -> Iterator[str]:
    """Yield the texts and the numbers of a request, and the links that its texts are or hold.

    JSON in a text is read too: in an answer that repeats the text it is opened as well.
    """
    if isinstance(value, str):
        yield value
        for text in (value, *value.split()):
            if "/" in text and (link := links.read(text)) and link.url:
                yield link.url
        if depth and (opened := lenient.opened(value)) is not value:
            yield from _values_in(opened, depth - 1)
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _values_in(item, depth)
    elif number := id_of(value):
        yield number


NOTHING = Request()


def find(contents: Contents, scope: Scope, request: Request) -> tuple[File, ...]:
    """Return the files of a task's result: under names that hold only results.

    If there are none and the scope is "images" or "anything", look under names of pictures, which
    may be inputs. If there are still none and it is "anything", take every URL of the task: for a
    task that reports success. It was billed, so an unknown name must not hide its result. What the
    request named is never a result.
    """
    files = _files(contents, RESULT, request)
    if not files and scope != "results":
        files = _files(contents, PICTURE, request)
    if not files and scope == "anything":
        files = _files(contents, UNKNOWN, request)
    return files


def find_in_parts(parts: list[JsonObject], request: Request) -> tuple[File, ...]:
    """Return the files of these parts of a task: audio, videos and cover pictures."""
    contents = Contents()
    contents.look_into({"results": parts})
    return _files(contents, RESULT, request)


def has_text(task: JsonObject) -> bool:
    """Whether the task has a result without a file: lyrics, even an empty list of them."""
    values = [task.get(key) for key in ("lyricParams", "alignedWords", "lyrics")]
    return any(isinstance(v, list) or (isinstance(v, str) and v.strip()) for v in values)


def _files(contents: Contents, place: int, request: Request) -> tuple[File, ...]:
    """Return the first file of each URL, and each without one, at most MAX_FILES."""
    files: list[File] = []
    urls: set[str | None] = set()
    for text in contents.texts:
        if place not in (UNKNOWN, text.place):
            continue
        link = _link(text, may_be_any=place == UNKNOWN)
        if link is None or link.url in urls or request.names(text.text, link.url):
            continue
        media_type = link.media_type or links.media_type_of(link.url or "")
        files.append(File(link.url, media_type or text.type_role.media_type, text.expires_at))
        if link.url is not None:
            urls.add(link.url)
        if len(files) == MAX_FILES:
            break
    return tuple(files)


def _link(text: Text, *, may_be_any: bool) -> links.Link | None:
    """Return the link that a text is; under an unknown name it may be any path."""
    if link := links.read(text.text):
        is_relative = link.url is not None and link.url.startswith("/")
        return None if may_be_any and is_relative else link
    # A bare name under `file` or `image` may be that of what was sent.
    is_path = text.role.is_url or (text.role.names_file and "/" in text.text)
    return links.read_path(text.text) if is_path and not may_be_any else None
