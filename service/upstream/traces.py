"""Looks for traces of a task at any depth of an answer, also in its errors and its texts.

They decide whether a submission is sent again: a value that looks like a task only by its name is
enough to not pay twice.
"""

import re
from typing import Any, NamedTuple

from service.upstream import errors, lenient, mentions, nouns
from service.upstream.contents import JSON_DEPTH_MAX, JSON_TEXTS_MAX
from service.upstream.documents import status_word
from service.upstream.names import CHARACTERS_MAX, NO_NAME, ROLES, Role
from service.upstream.results import Request
from service.upstream.scalars import JsonObject, id_of
from service.upstream.vocabulary import may_be_of_request, state_of

_REQUEST_ID = re.compile(r"(?i)req[a-z]*[_-]")
# A text or a number under these may be the id of the task.
_BARE_KEYS = ("result", "data", "output", "response")
_COUNT_DIGITS_MAX = 4


class _Spot(NamedTuple):
    """Where a value stands."""

    role: Role = NO_NAME  # Of the name right above it.
    is_echo: bool = False
    is_job: bool = False  # Whether a name says that it is a task, or a part of one.
    is_count: bool = False  # Whether a number there counts tasks.
    depth: int = 0  # In how many texts of JSON it is nested.


class Traces:
    """The traces of a new task in an answer, or in a text, at any depth."""

    def __init__(self, value: Any, request: Request) -> None:
        self.task_ids: list[str] = []  # Under names of tasks, but not in an echo of the request.
        self.has_any = False
        self._request = request
        self._texts = self._chars = 0
        self._look_into(value, _Spot())

    def _look_into(self, value: Any, spot: _Spot) -> None:
        if isinstance(value, dict):
            self._look_into_object(value, spot)
        elif isinstance(value, list):
            for item in value:
                self._look_into(item, spot)
        elif value is not None and not isinstance(value, bool):
            self._note(value, spot)
            if isinstance(value, str):
                self._look_into_text(value, spot)

    def _look_into_object(self, object_: JsonObject, above: _Spot) -> None:
        word = status_word(object_)
        is_working = state_of(word) in ("processing", "succeeded") and not may_be_of_request(word)
        if is_working or (word and nouns.says_taken(word)):
            self.has_any = True
        for name, value in object_.items():
            role = ROLES[name]
            is_echo = above.is_echo or (role.is_echo and not role.key.startswith("error"))
            is_job = nouns.names_job(name[:CHARACTERS_MAX]) or (
                above.is_job and not nouns.is_property(name)
            )
            is_count = nouns.counts_jobs(name) or above.is_count
            if value is True and nouns.says_taken(name):
                self.has_any = True
            if not name.isidentifier():
                self._look_into_text(name, above)
            self._look_into(value, _Spot(role, is_echo, is_job, is_count, above.depth))

    def _look_into_text(self, text: str, spot: _Spot) -> None:
        if self._request.holds(text):
            return
        is_readable = spot.depth < JSON_DEPTH_MAX and self._texts < JSON_TEXTS_MAX
        value = lenient.opened(text) if is_readable else text
        if value is not text:
            self._texts += 1
            self._look_into(value, _Spot(is_echo=spot.is_echo, depth=spot.depth + 1))
            return
        self._chars += len(text)
        self.has_any = (
            self.has_any
            or self._chars > mentions.TEXT_CHARS_MAX  # What is not read may name a task.
            or mentions.tell_of_task(text, self._request.holds)
        )

    def _note(self, value: str | float, spot: _Spot) -> None:
        """Note an id, also one that no path can hold."""
        role, id_ = spot.role, id_of(value)
        if id_ and (self._request.holds(id_) or (role.key == "id" and _REQUEST_ID.match(id_))):
            return
        if role.names_any or (spot.is_job and not (spot.is_count and _is_count(value))):
            is_sign = value != 0 and bool(str(value).strip()) and not errors.is_nothing(value)
        elif role.key in _BARE_KEYS:
            is_sign = mentions.is_bare_id(str(value))
        else:
            is_sign = role.is_of_queue or ("progress" in role.key and not isinstance(value, str))
        self.has_any |= is_sign
        if is_sign and id_ and role.id == "task" and not spot.is_echo:
            self.task_ids.append(id_)


def _is_count(value: str | float) -> bool:
    return len(str(value)) <= _COUNT_DIGITS_MAX and str(value).isdigit()
