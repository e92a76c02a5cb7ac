"""What delivery knows of a target: where an attempt goes, what it sends, what comes back."""

from collections.abc import Mapping
from typing import Literal, Protocol

import msgspec

Code = Literal[
    "address_refused",
    "dns_failed",
    "connect_refused",
    "connect_failed",
    "timeout",
    "tls_failed",
    "connection_closed",
    "protocol_error",
    "answer_too_large",
    "internal_error",
]


class Target(msgspec.Struct, frozen=True):
    """A subscriber's URL, parsed once; targets with the same `origin` share connections.

    Attributes:
        head: the request line and the host header, as they are written.

    """

    url: str
    origin: str
    host: str
    port: int
    tls: bool
    head: bytes


class Answer(msgspec.Struct, frozen=True, gc=False):
    """A receiver's final answer, whatever its status.

    Attributes:
        status_code: 200 to 999; redirects are not followed.
        headers: names in lower case, repeated ones too, at most webhook.request.HEADERS.
        body: the first webhook.request.BODY_BYTES as they came, not decompressed.

    """

    status_code: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class SendError(Exception):
    """The attempt got no answer: `code` is stable, the message is for people."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


class Sender(Protocol):
    """Carries one attempt to its target: webhook/sender.py, or webhook/proxy.py through a proxy."""

    async def send(
        self, target: Target, headers: Mapping[str, str], body: bytes, deadline_seconds: float
    ) -> Answer:
        """POST the body and return the answer; SendError if there is none in time."""
        ...
