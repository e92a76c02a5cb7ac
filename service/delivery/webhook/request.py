"""One POST to a subscriber and what comes of it: the target, the request's bytes, the answer."""

import functools
import re
from collections.abc import Mapping
from typing import Literal

import msgspec

from service.delivery.webhook import egress

HEAD_BYTES = 32 * 1024  # of an answer, interim answers included
HEADERS = 100  # kept, the others are dropped
INTERIM_ANSWERS = 8
BODY_BYTES = 16 * 1024  # kept
READ_BYTES = 1024 * 1024  # of an answer, then the connection is closed

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

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# What the sender itself says, and what would change how a message ends.
_OWN_HEADERS = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


class Answer(msgspec.Struct, frozen=True, gc=False):
    """A receiver's final answer.

    A body over `READ_BYTES` is not read to its end: its status has been said by then, and a 2xx
    with a huge body is a success.
    """

    status_code: int  # 200 to 999; a redirect is an answer like any other
    headers: tuple[tuple[str, str], ...]  # names in lower case, repeated ones too, at most HEADERS
    body: bytes  # the first BODY_BYTES, as they came: nothing is decompressed
    body_truncated: bool  # there was more


class SendError(Exception):
    """There is no answer: `code` is stable, the message is for people.

    `maybe_received` is True once bytes of the request were written: the receiver may have acted.
    """

    def __init__(self, code: Code, message: str, *, maybe_received: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.maybe_received = maybe_received


class Target(msgspec.Struct, frozen=True):
    """A subscriber's URL, taken apart once. `origin` is who shares connections with whom."""

    url: str
    origin: str
    host: str
    port: int
    tls: bool
    head: bytes


def parse_target(url: str) -> Target:
    """`url` made ready for sending; ValueError as `egress.split_url` has it."""
    parts = egress.split_url(url)
    head = f"POST {parts.path} HTTP/1.1\r\nhost: {parts.authority}\r\n"
    return Target(
        url=f"{parts.scheme}://{parts.authority}{parts.path}",
        origin=f"{parts.scheme}://{parts.authority}",
        host=parts.host,
        port=parts.port,
        tls=parts.scheme == "https",
        head=head.encode("ascii"),
    )


def refuse_header(name: str, value: str) -> str | None:
    """Why a header can never be sent, as a sentence; None if it can."""
    if not _TOKEN.fullmatch(name):
        return "A header's name may only have letters, digits and !#$%&'*+-.^_`|~."
    if name.lower() in _OWN_HEADERS:
        return f"The header {name.lower()} is set by the sender."
    if any(character in value for character in "\r\n\0"):
        return "A header's value must not contain line breaks or NUL."
    try:
        value.encode("latin-1")
    except UnicodeEncodeError:
        return "A header's value must be Latin-1 text."
    return None


def encode_request(target: Target, headers: Mapping[str, str], body: bytes) -> bytes:
    """The whole request; ValueError for a header that `refuse_header` would refuse."""
    text = "".join([f"{_name(name)}: {value}\r\n" for name, value in headers.items()])
    if not text.count("\r") == text.count("\n") == len(headers) or "\0" in text:
        raise ValueError("A header's value must not contain line breaks or NUL.")
    length = b"content-length: %d\r\n\r\n" % len(body)
    return b"".join((target.head, text.encode("latin-1"), length, body))


@functools.lru_cache(maxsize=1024)
def _name(name: str) -> str:
    if reason := refuse_header(name, ""):
        raise ValueError(reason)
    return name
