"""The bytes of one POST to a subscriber, and the limits of the answer to it."""

import functools
import re
from collections.abc import Mapping

from service.delivery.target import SendError, Target

HEAD_BYTES = 32 * 1024  # The heads of one answer, interim answers included.
HEADERS = 100  # Stored; the others are dropped.
INTERIM_ANSWERS = 8
BODY_BYTES = 16 * 1024  # Stored; the rest is dropped.
# How much of an answer is read before the connection is closed. The status is known by then, so a
# 2xx with a huge body still counts as a success.
READ_BYTES = 1024 * 1024

# Set by the sender itself, or able to change where a message ends.
_OWN_HEADERS = (
    "connection|content-length|expect|host|keep-alive|proxy-authorization|proxy-connection|te|"
    "trailer|transfer-encoding|upgrade"
)
_PROXY_PREFIXES = ("proxy-", "x-smokescreen-")  # An outgoing proxy would read them as orders.


@functools.lru_cache(maxsize=1024)
def refuse_header(name: str) -> str | None:
    """Return why a header can never be sent, as what follows its name; None if it can."""
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
        return "may only have letters, digits and !#$%&'*+-.^_`|~ in its name"
    if re.fullmatch(_OWN_HEADERS, name.lower()):
        return "is set by the sender"
    if name.lower().startswith(_PROXY_PREFIXES):
        return "is for proxies, not for receivers"
    return None


def encode_request(target: Target, headers: Mapping[str, str], body: bytes) -> bytes:
    """Return the whole request; ValueError for a header that cannot be sent."""
    for name in headers:
        if reason := refuse_header(name):
            raise ValueError(f"The header {name.lower()} {reason}.")
    text = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if not text.count("\r") == text.count("\n") == len(headers) or "\0" in text:
        raise ValueError("A header's value must not contain line breaks or NUL.")
    length = b"content-length: %d\r\n\r\n" % len(body)
    return b"".join((target.head, text.encode("latin-1"), length, body))


def head_too_large() -> SendError:
    """Return the error for an answer whose head is over its limit."""
    return SendError("answer_too_large", f"The answer's headers are over {HEAD_BYTES} bytes.")
