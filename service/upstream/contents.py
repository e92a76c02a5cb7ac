"""Goes once through a body, for ids of tasks, parts of the task and texts that may be links.

No rule looks into an echo of the request or into an error: what stands there is not the task's.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from service.model import clock
from service.upstream import lenient, links
from service.upstream.documents import ENVELOPES_MAX, Document
from service.upstream.ids import ids_of, task_ids_of
from service.upstream.names import AROUND, BY_NAME, NO_NAME, RESULT, ROLES, UNKNOWN, Role
from service.upstream.scalars import JsonObject, id_of
from service.upstream.vocabulary import WORD_CHARS_MAX, state_of

NAMES_MAX = 1_000  # Ids that are compared with those of other generations' tasks.
TEXTS_MAX = 10_000  # Texts that may be links; further ones are ignored.
JSON_TEXTS_MAX = 100
JSON_DEPTH_MAX = 3
_BEFORE_JSON = "{[ \r\n\t"
_YEAR_10000 = 253_402_300_800_000
_WORD_KEYS = ("status", "state", "task_status", "taskStatus")


class Text(NamedTuple):
    """A text that may be a link, with the names that tell about its file."""

    text: str
    role: Role  # Of the name that it stands under.
    type_role: Role  # Of the name that tells the media type.
    place: int  # RESULT, PICTURE, UNKNOWN or AROUND.
    expires_at: int | None


class Part(NamedTuple):
    """A part of the task; in a list of parts some may have no status word."""

    word: str | None
    object_: JsonObject


class _Spot(NamedTuple):
    """Where an object or a list stands."""

    type_role: Role = NO_NAME
    place: int = BY_NAME
    may_hold_parts: bool = True
    expires_at: int | None = None


_TASK = _Spot()
_ENVELOPE = _Spot(may_hold_parts=False)


class Contents:
    """What one body holds, in its order."""

    def __init__(self, task_ids: tuple[str, ...] = ()) -> None:
        self.texts: list[Text] = []
        self.parts: list[Part] = []
        self.names: list[str] = []  # Every id that may be that of a task.
        self.inner_ids: list[str] = []  # Those of `names` that are ids of tasks.
        self.job_ids: list[str] = []  # Those of `names` that may be ids of a job behind a task.
        self._task_ids = frozenset(task_ids)
        self._tasks_within: list[tuple[JsonObject, _Spot]] = []
        self._unknown = UNKNOWN
        self._json_texts = self._json_depth = 0

    def look_around(self, envelope: JsonObject) -> None:
        """Note the values around a task: ids, and links under names of results; no parts."""
        self._unknown = AROUND
        self.look_into(envelope, _ENVELOPE)

    def look_into(self, object_: JsonObject, spot: _Spot = _TASK) -> None:
        """Note the ids, the parts and the links that an object holds."""
        above, place, may_hold_parts, expires_at = spot
        if "expires_at" in object_ or "expiresAt" in object_:
            expires_at = _expiry(object_) or expires_at
        for name, value in object_.items():
            role, kind = ROLES[name], type(value)
            if role.id and kind is not dict and kind is not list:
                self._note_id(role, value)
            elif (kind is str or kind is dict or kind is list) and (
                not role.is_echo or (role.is_model and place == RESULT)
            ):
                at = role.place if place == BY_NAME else place
                if role.is_preview or at == UNKNOWN:
                    at = self._unknown
                # In `images: [{url}]` and `model_urls: {glb}` the name above tells the media type.
                is_told = above.is_url or (role.is_bare_url and above is not NO_NAME)
                type_role = above if is_told else role
                if kind is str:
                    if at != AROUND:
                        self._note_text(Text(value, role, type_role, at, expires_at))
                    continue
                # Within `outputs: {"a": {status}, "b": {status}}` any name may be that of a part.
                is_inside = may_hold_parts and (role.may_hold_parts or place != BY_NAME)
                below = _Spot(type_role, at, is_inside, expires_at)
                if kind is list:
                    self._look_into_list(value, role, below)
                elif role.key != "urls":  # `urls: {get, cancel}` are URLs of the task.
                    word = _word(value) if is_inside else None
                    if word and (role.may_hold_parts or state_of(word)):
                        self.parts.append(Part(word, value))
                    self.look_into(value, below)

    def _look_into_list(self, items: list[Any], role: Role, spot: _Spot) -> None:
        parts: list[Part] = []
        has_word = False
        for item in items:
            kind = type(item)
            if kind is dict:
                # Beside a result, a list may hold other tasks: their files are not this task's.
                ids = task_ids_of(item) if self._task_ids else ()
                if ids and self._task_ids.isdisjoint(ids):
                    self.names += ids
                    if spot.may_hold_parts:
                        self._tasks_within.append((item, spot))
                    continue
                word = _word(item)
                has_word = has_word or word is not None
                parts.append(Part(word, item))
                self.look_into(item, spot)
            elif kind is str and spot.place != AROUND:
                self._keep(Text(item, role, spot.type_role, spot.place, spot.expires_at))
            elif kind is list:
                self._look_into_list(item, role, spot)
        if has_word and spot.may_hold_parts:
            self.parts += parts

    def look_into_tasks_within(self) -> None:
        """Take tasks within the task as its parts, if it has neither another part nor a result.

        Their ids are in `names`: if one is another generation's, so is the answer.
        """
        if self.parts or any(text.place == RESULT for text in self.texts):
            return
        for item, spot in tuple(self._tasks_within):
            self.parts.append(Part(_word(item), item))
            self.look_into(item, spot)

    def _note_text(self, text: Text) -> None:
        if text.role.may_hold_link or text.type_role.is_url:
            self._keep(text)
        elif self._unknown != AROUND:
            self._keep(text._replace(place=UNKNOWN))

    def _look_into_text(self, text: Text) -> None:
        """Note the links of a text that is JSON, but no status words: a model may have written it.

        The limits are for a body of many such texts, beside or within each other.
        """
        if self._json_texts == JSON_TEXTS_MAX or self._json_depth == JSON_DEPTH_MAX:
            return
        self._json_texts += 1
        self._json_depth += 1
        if (value := lenient.opened(text.text)) is not text.text:
            spot = _Spot(ROLES["results"], text.place, may_hold_parts=False)
            self._look_into_list([value], ROLES["results"], spot)
        self._json_depth -= 1

    def _keep(self, text: Text) -> None:
        written = text.text
        is_short = len(written) < links.INLINE_MIN_CHARS
        if is_short and "." not in written and "/" not in written and ":" not in written:
            return  # Neither a path nor a URL nor a file in base64.
        if written[0] in _BEFORE_JSON and text.role.may_hold_parts:
            self._look_into_text(text)
        elif len(self.texts) < TEXTS_MAX:
            self.texts.append(text)

    def _note_id(self, role: Role, value: Any) -> None:
        # A number is an id only under the name of a task's id: it may count anything.
        id_ = id_of(value) if role.id == "task" or type(value) is str else None
        if id_ is None:
            return
        self.names.append(id_)
        if role.id == "task":
            self.inner_ids.append(id_)
        elif role.id == "job":
            self.job_ids.append(id_)


def read_contents(document: Document) -> Contents:
    """Go through a task, then through the envelope around it."""
    contents = Contents(document.task_ids)
    contents.look_into(document.task)
    if document.state == "succeeded":
        contents.look_into_tasks_within()
    if document.root is not document.task:
        contents.look_around({**document.root, document.key: None})
        contents.names += _ids_beside(document.root.get(document.key), document.task)
    return contents


def _ids_beside(holder: Any, task: JsonObject, depth: int = ENVELOPES_MAX) -> Iterator[str]:
    """Yield the ids of the objects in lists beside a task: they may be other tasks.

    holder: the value that holds the task, at any depth.
    """
    if holder is task or not depth:
        return
    if isinstance(holder, str):
        holder = lenient.opened(holder)
    if isinstance(holder, list):
        for item in holder:
            if isinstance(item, dict) and item is not task:
                yield from ids_of(item)
    elif isinstance(holder, dict):
        for value in holder.values():
            yield from _ids_beside(value, task, depth - 1)


def _word(object_: JsonObject) -> str | None:
    """Return the status word of a part; a number may be the code of a request."""
    for key in _WORD_KEYS:
        if key in object_:
            word = object_[key]
            if type(word) is str and (word := word.strip()) and not word.isdigit():
                return word[:WORD_CHARS_MAX]
    return None


def _expiry(object_: JsonObject) -> int | None:
    """Return `expires_at` in milliseconds; None unless it is a date from 1970 to 9999."""
    value = object_.get("expires_at", object_.get("expiresAt"))
    if isinstance(value, str):
        try:
            expires_at = clock.parse_rfc3339(value)
        except (ValueError, OverflowError):
            return None
    # Seconds before 2001 count from another time: a wrong date is worse than none.
    elif isinstance(value, int | float) and value >= clock.EPOCH_SECONDS_MIN:
        # Numbers below this are seconds (up to the year 5138), others milliseconds (from 1973).
        expires_at = int(value * (clock.SECOND if value < 100_000_000_000 else 1))
    else:
        return None
    return expires_at if 0 <= expires_at < _YEAR_10000 else None
