"""Problems: the API's answers when it refuses or fails (RFC 9457)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TypeVar

import msgspec

T = TypeVar("T")
PROBLEM_TYPE = "application/problem+json"


class FieldError(msgspec.Struct, frozen=True):
    """One wrong field: `pointer` is a JSON pointer (RFC 6901), or `?name` for a query parameter."""

    pointer: str
    message: str


@dataclass(eq=False)
class Problem(Exception):  # noqa: N818  RFC 9457 calls it a problem
    """An answer with an error status, a stable code and a sentence for people."""

    status: int
    code: str
    detail: str
    errors: Sequence[FieldError] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self, request_id: str) -> bytes:
        """Return the body in JSON; it has `errors` only if fields are wrong."""
        document = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "request_id": request_id,
        }
        errors = {"errors": self.errors} if self.errors else {}
        return msgspec.json.encode({**document, **errors})


def refuse_fields(detail: str, errors: Sequence[FieldError]) -> None:
    """Problem 422 if there are errors: the body is JSON, but fields in it are wrong."""
    if errors:
        raise Problem(422, "invalid_request", detail, errors)


def not_found(noun: str) -> Problem:
    """404: there is no such row, or it belongs to another tenant."""
    return Problem(404, "not_found", f"There is no such {noun}.")


def found(noun: str, resource: T | None) -> T:
    """Return the resource; Problem 404 if there is none."""
    if resource is None:
        raise not_found(noun)
    return resource


def subscriber_disabled() -> Problem:
    """409: nothing is delivered to a disabled subscriber."""
    return Problem(409, "subscriber_disabled", "The subscriber is disabled; enable it first.")


def unavailable(detail: str) -> Problem:
    """503: the database is full, busy or gone."""
    return Problem(503, "storage_unavailable", detail, headers={"retry-after": "1"})


def internal_error() -> Problem:
    """500: a fault of genhook; the log has the traceback."""
    return Problem(500, "internal_error", "Something went wrong here.")
