"""One API call: who asks, what for, and the answer; bodies decoded and checked in one place."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from service.api.checks import MODEL_ID, MODEL_ID_RULE, escape
from service.api.parts import Parts, Worker
from service.context import Context
from service.delivery.dispatch import Dispatcher
from service.generations.poll import Poller
from service.model import clock
from service.model.errors import FieldError, Problem, invalid
from service.model.key import Key, Scope
from service.store.pages import Page

T = TypeVar("T")
LIMIT_MAX = 250
PAGING = frozenset({"limit", "after", "order"})

_encode = msgspec.json.Encoder().encode
_WHERE = re.compile(r"(?P<message>.*?)(?: - at `(?P<path>[^`]*)`)?", re.DOTALL)
_FIELD = re.compile(r"Object (?:missing required|contains unknown) field `(?P<name>[^`]*)`")
_INTEGER = re.compile(r"0|[1-9][0-9]{0,8}")
_STEP = re.compile(r"\.([^.\[]+)|\[([^\]]*)\]")


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was authenticated and found to be well-formed."""

    parts: Parts
    key: Key
    path: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    request_id: str
    resource_id: str = ""

    @property
    def context(self) -> Context:
        """What the verbs are given."""
        return self.parts.context

    @property
    def poller(self) -> Poller:
        """Who asks upstream."""
        return self.parts.poller

    @property
    def dispatcher(self) -> Dispatcher:
        """Who sends webhooks."""
        return self.parts.dispatcher

    @property
    def worker(self) -> Worker:
        """Who does due work."""
        return self.parts.worker

    @property
    def tenant(self) -> str:
        """Whose rows the call is about."""
        return self.key.tenant

    def decode(self, kind: type[T], *, empty: bytes = b"") -> T:
        """The body as `kind`, where there is none `empty`.

        Problem 400 if it is no JSON, 422 with a pointer if a field is wrong.
        """
        try:
            return msgspec.json.decode(self.body or empty, type=kind)
        except msgspec.ValidationError as error:
            raise invalid("The request has a wrong field.", _field_error(str(error))) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Problem(400, "invalid_json", f"The body is not JSON: {error}") from None

    def page(self, prefix: str) -> Page:
        """`limit`, `after` and `order`; Problem 400 if one is wrong."""
        limit = self.query_integer("limit", 50, 1, LIMIT_MAX)
        order = self.query_choice("order", ("asc", "desc"))
        after = self.query.get("after")
        if after is not None and not re.fullmatch(rf"{prefix}_[0-9a-f]{{32}}", after):
            raise bad_query("after", "must be the `next` of an earlier page")
        return Page(limit=limit, after=after, ascending=order == "asc")

    def query_integer(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number in the query; Problem 400 unless it is from `low` to `high`."""
        text = self.query.get(name, str(default))
        if not _INTEGER.fullmatch(text) or not low <= int(text) <= high:
            raise bad_query(name, f"must be a whole number from {low} to {high}")
        return int(text)

    def query_id(self, name: str, prefix: str) -> str | None:
        """An id in the query; Problem 400 if it is not shaped like one of ours."""
        text = self.query.get(name)
        if text is not None and not re.fullmatch(rf"{prefix}_[0-9a-f]{{32}}", text):
            raise bad_query(name, f"must be an id, {prefix}_ and 32 hexadecimal digits")
        return text

    def query_model(self) -> str | None:
        """The `model` of the query; Problem 400 if no model can have that name."""
        model = self.query.get("model")
        if model is not None and not MODEL_ID.fullmatch(model):
            raise bad_query("model", MODEL_ID_RULE)
        return model

    def query_time(self, name: str) -> int | None:
        """A time in the query as milliseconds; Problem 400 if it is none."""
        text = self.query.get(name)
        if text is None:
            return None
        try:
            return clock.parse_rfc3339(text.replace(" ", "+"))
        except (ValueError, OverflowError):
            raise bad_query(
                name, "must be an RFC 3339 time, such as 2026-11-22T18:20:00Z"
            ) from None

    def query_choice(self, name: str, words: Sequence[str]) -> str | None:
        """A word in the query; Problem 400 if it is none of `words`."""
        word = self.query.get(name)
        if word is not None and word not in words:
            raise bad_query(name, f"must be one of: {', '.join(words)}")
        return word

    def may(self, scope: Scope) -> bool:
        """True if the key has the scope; `admin` includes the others."""
        return scope in self.key.scopes or "admin" in self.key.scopes


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a handler answers: JSON by default."""

    status: int = 200
    content: Any = None
    body: bytes | None = None
    media_type: str = "application/json"
    headers: Mapping[str, str] = {}

    def encoded(self) -> bytes:
        """The body's bytes."""
        if self.body is not None:
            return self.body
        return b"" if self.content is None else _encode(self.content)


def listed(rows: Sequence[Mapping[str, Any]], *, more: bool) -> Answer:
    """A page of things that have an `id`."""
    after = rows[-1]["id"] if more and rows else None
    return Answer(content={"data": rows, "next": after})


def bad_query(name: str, message: str) -> Problem:
    """400: a query parameter is wrong or unknown."""
    error = FieldError(f"?{name}", message)
    return Problem(400, "invalid_query", f"The query parameter {name} {message}.", errors=(error,))


def _field_error(text: str) -> FieldError:
    """What msgspec says, as a JSON pointer and a sentence."""
    found = _WHERE.fullmatch(text)
    message, path = (found["message"], found["path"] or "$") if found else (text, "$")
    steps = [name or index for name, index in _STEP.findall(path)]
    if field := _FIELD.match(message):
        steps.append(field["name"])
        message = "is required" if "missing" in message else "is not a field of this request"
    pointer = "".join("/" + escape(step) for step in steps)
    return FieldError(pointer, message)
