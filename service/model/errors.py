"""The exceptions of genhook, and the parts of an RFC 9457 problem.

Exception
├── Problem            an HTTP error of the API (RFC 9457)
├── SettingsError      a setting is missing or wrong
├── CommandError       a command of the command line failed
└── StorageError       the database failed: nothing was stored
    └── StorageBusyError    the queue in front of the database is full
"""

from http import HTTPStatus

import msgspec


class FieldError(msgspec.Struct, frozen=True):
    """A wrong field of a request.

    pointer: a JSON pointer (RFC 6901) to the field, or `?name` for a query parameter.
    """

    pointer: str
    message: str


def pointer(*steps: str | int) -> str:
    """Return the JSON pointer (RFC 6901) that these names and indexes form."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


class Problem(Exception):  # noqa: N818  RFC 9457 calls it a problem
    """An HTTP error, answered as `application/problem+json` (RFC 9457)."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: tuple[FieldError, ...] = (),
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = errors
        self.retry_after_seconds = retry_after_seconds

    def document(self, request_id: str) -> dict[str, object]:
        """Return the JSON of the answer; it has `errors` only where fields are wrong."""
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
    """Return a 422 for well-formed JSON with wrong fields."""
    return Problem(422, "invalid_request", detail, errors=errors)


def not_found(noun: str) -> Problem:
    """Return a 404, also for a row of another tenant."""
    return Problem(404, "not_found", f"There is no such {noun}.")


class SettingsError(Exception):
    """A setting is missing or wrong. The message names the variable and the remedy."""


class CommandError(Exception):
    """A command failed. The message is a sentence for the terminal."""


class StorageError(Exception):
    """The database failed, and nothing of the unit of work was stored. Answered with 503."""


class StorageBusyError(StorageError):
    """The queue in front of the database is full. Answered with 503."""
