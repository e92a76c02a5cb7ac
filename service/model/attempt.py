"""An attempt: one HTTP request of a delivery."""

from collections.abc import Iterable
from typing import Any

import msgspec

from service.model.view import view_of


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP request of a delivery. Without an answer, it has an `error_code` and no status."""

    id: str
    delivery_id: str
    number: int  # From 1, within the delivery.
    trigger: str  # "scheduled", "manual", "replay" or "test".
    started_at: int
    duration_ms: int
    status_code: int | None
    error_code: str | None
    error_message: str | None
    response_headers: list[tuple[str, str]]
    response_body: bytes  # The first 16 KiB.

    def view(self) -> dict[str, Any]:
        """Return the attempt as the API shows it: the body as text, invalid UTF-8 replaced."""
        error = {"code": self.error_code, "message": self.error_message}
        return {
            **view_of(self, "id", "number", "trigger", "started_at", "duration_ms", "status_code"),
            "error": error if self.error_code else None,
            "response_headers": joined_headers(self.response_headers),
            "response_body": self.response_body.decode("utf-8", "replace"),
        }


def joined_headers(lines: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return headers as the API shows them: values of a repeated name are joined by commas."""
    joined: dict[str, str] = {}
    for name, value in lines:
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined
