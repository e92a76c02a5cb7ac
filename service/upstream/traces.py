"""Looks at any depth of an answer for what may be of a task, also in its errors and its texts.

It has the last word on whether a submission is sent again: what looks like a task only by its name
is enough to not pay twice.
"""

import re
from typing import Any

from service.upstream import lenient
from service.upstream.contents import JSON_DEPTH_MAX, JSON_TEXTS_MAX
from service.upstream.documents import status_word
from service.upstream.names import NO_NAME, ROLES, Role
from service.upstream.results import Request
from service.upstream.scalars import JsonObject, id_of
from service.upstream.vocabulary import may_be_of_request, state_of

# In a page, in prose or in JSON that somebody cut.
_TEXT_WITH_ID = re.compile(r"(?i)\btask[ _-]?u?u?ids?[\"'\\]*\s*[:=]\s*[\"'\\]*[\w.-]")
_REQUEST_ID = re.compile(r"(?i)req[a-z]*[_-]")


class Traces:
    """What an answer, or a text, holds at any depth that may be of a new task."""

    def __init__(self, value: Any, request: Request) -> None:
        self.task_ids: list[str] = []  # Under names of tasks, but not in an echo of the request.
        self.has_any = False
        self._request = request
        self._texts = 0
        self._look_into(value, NO_NAME)

    def _look_into(self, value: Any, role: Role, depth: int = 0, *, is_echo: bool = False) -> None:
        if isinstance(value, dict):
            self._look_into_object(value, depth, is_echo=is_echo)
        elif isinstance(value, list):
            for item in value:
                self._look_into(item, role, depth, is_echo=is_echo)
        elif value is not None and not isinstance(value, bool):
            self._note(value, role, is_echo=is_echo)
            if isinstance(value, str) and depth < JSON_DEPTH_MAX and self._texts < JSON_TEXTS_MAX:
                self._look_into_text(value, depth + 1, is_echo=is_echo)

    def _look_into_object(self, object_: JsonObject, depth: int, *, is_echo: bool) -> None:
        word = status_word(object_)
        if state_of(word) in ("processing", "succeeded") and not may_be_of_request(word):
            self.has_any = True
        for name, value in object_.items():
            role = ROLES[name]
            is_inside = is_echo or (role.is_echo and not role.key.startswith("error"))
            self._look_into(value, role, depth, is_echo=is_inside)

    def _look_into_text(self, text: str, depth: int, *, is_echo: bool) -> None:
        if self._request.holds(text):
            return
        if _TEXT_WITH_ID.search(text):
            self.has_any = True
        if (value := lenient.opened(text)) is not text:
            self._texts += 1
            self._look_into(value, NO_NAME, depth, is_echo=is_echo)

    def _note(self, value: str | float, role: Role, *, is_echo: bool) -> None:
        """Note an id, also one that no path can hold."""
        is_empty = not value or (isinstance(value, str) and not value.strip())
        if not role.names_any or is_empty:
            return
        id_ = id_of(value)
        if id_ and (self._request.holds(id_) or (role.key == "id" and _REQUEST_ID.match(id_))):
            return
        self.has_any = True
        if id_ and role.id == "task" and not is_echo:
            self.task_ids.append(id_)
