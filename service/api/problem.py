"""Problems: the API's answers when it refuses or fails (RFC 9457)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import TypeVar

import msgspec

T = TypeVar("T")
PROBLEM_TYPE = "application/problem+json"
ERRORS_MAX = 100
# Both may quote the client's text, which may be as long as its body.
POINTER_CHARACTERS = 512
MESSAGE_CHARACTERS = 512


class FieldError(msgspec.Struct, frozen=True):
    """One wrong field: `pointer` is a JSON pointer (RFC 6901), or `?name` for a query parameter.

    `?` is the whole query.
    """

    pointer: str
    message: str

    def shortened(self) -> "FieldError":
        """Return an error with both texts cut to their limits; a long pointer is cut at a step."""
        pointer, message = self.pointer, self.message
        if len(pointer) > POINTER_CHARACTERS:
            pointer = pointer[:POINTER_CHARACTERS].rpartition("/")[0]
            message = f"has an entry with a long name that {message}"
        if len(message) > MESSAGE_CHARACTERS:
            message = message[: MESSAGE_CHARACTERS - 1] + "…"
        return FieldError(pointer, message)


# The codes of the problems that name what is wrong in `errors`, at least one thing.
CODES_WITH_ERRORS = ("invalid_request", "invalid_query", "address_refused")


@dataclass(eq=False)
class Problem(Exception):  # noqa: N818  RFC 9457 calls it a problem
    """An answer with an error status, a stable code and a sentence for people.

    It has `errors` if its code is one of CODES_WITH_ERRORS, and only then.
    """

    status: int
    code: str
    detail: str
    errors: Sequence[FieldError] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert bool(self.errors) == (self.code in CODES_WITH_ERRORS), self.code

    def body(self, request_id: str) -> bytes:
        """Return the body in JSON; it has `errors` only if fields are wrong, and at most 100."""
        document = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "request_id": request_id,
        }
        first = [error.shortened() for error in self.errors[:ERRORS_MAX]]
        errors = {"errors": first} if first else {}
        return msgspec.json.encode({**document, **errors})


def refuse_fields(detail: str, errors: Sequence[FieldError]) -> None:
    """Problem 422 if there are errors: the body is JSON, but fields in it are wrong."""
    if errors:
        raise Problem(422, "invalid_request", detail, errors)


def not_found(noun: str) -> Problem:
    """404: there is no such row, or it belongs to another tenant."""
    return Problem(404, "not_found", f"There is no such {noun}.")


def require(noun: str, resource: T | None) -> T:
    """Return the resource; Problem 404 if there is none."""
    if resource is None:
        raise not_found(noun)
    return resource


conflict = partial(Problem, 409, "conflict")
subscriber_disabled = partial(
    Problem, 409, "subscriber_disabled", "The subscriber is disabled; enable it first."
)
# The secret key that sealed the secret was lost, or only this process does not have it.
secret_unreadable = partial(
    Problem,
    409,
    "secret_unreadable",
    "The stored secret is sealed under a key that is not in GENHOOK_SECRET_KEYS of this process: "
    "give it the key. docs/operations.md says what to do if the key is lost.",
)
# The database is full, busy or gone.
unavailable = partial(Problem, 503, "storage_unavailable", headers={"retry-after": "1"})
# The service does not run, so the request can have stored nothing.
not_started = partial(unavailable, "Nothing was stored: the service could not start.")
# The process stops; the client has to repeat a request that it has not answered.
stopping = partial(
    Problem,
    503,
    "stopping",
    "The process stops. If the request asked for a change, that may have been stored.",
    headers={"retry-after": "1"},
)
# A fault of genhook; the log has the traceback.
internal_error = partial(Problem, 500, "internal_error", "Something went wrong here.")
