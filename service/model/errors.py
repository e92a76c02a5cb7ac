"""Errors that people see: RFC 9457 problems with stable codes, and what the store raises.

Exception
├── Problem            an answer of the API: status, code, sentence
├── SettingsError      a setting that is missing or wrong
├── CommandError       a command line that cannot do what it was asked to
└── StorageError       the database could not keep what it was given
    └── StorageBusyError    its queue is full
"""

from collections.abc import Mapping
from http import HTTPStatus

import msgspec


class FieldError(msgspec.Struct, frozen=True):
    """One wrong field: `pointer` is a JSON pointer (RFC 6901), or `?name` for a query parameter."""

    pointer: str
    message: str


class Problem(Exception):  # noqa: N818  RFC 9457 calls it a problem
    """An HTTP answer in `application/problem+json` (RFC 9457)."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: tuple[FieldError, ...] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = errors
        self.headers = headers or {}

    def document(self, request_id: str) -> dict[str, object]:
        """The problem as JSON; `errors` only where a field is to blame."""
        document: dict[str, object] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "request_id": request_id,
        }
        if self.errors:
            document["errors"] = self.errors
        return document


def invalid(detail: str, *errors: FieldError) -> Problem:
    """422: the request is well-formed JSON, but a field in it is wrong."""
    return Problem(422, "invalid_request", detail, errors=errors)


def not_found(what: str) -> Problem:
    """404, also for what belongs to another tenant."""
    return Problem(404, "not_found", f"There is no such {what}.")


class SettingsError(Exception):
    """A setting is missing or wrong; the message names the variable and says what to do."""


class CommandError(Exception):
    """A command cannot do what it was asked to; the message is a sentence for a terminal."""


class StorageError(Exception):
    """The database failed: nothing of the unit was stored. Answered 503."""


class StorageBusyError(StorageError):
    """The queue in front of the database is full. Answered 503."""
