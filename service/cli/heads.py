"""Heads of requests: whether the parser may have one at once, and how long its body is."""

import re

HEAD_BYTES = 64 * 1024
HEADERS_MAX = 256  # Each one takes many times its bytes in memory.
LINES_MAX = HEADERS_MAX + 2  # Of a head, with its first line and the empty one.
SLICE_BYTES = 64 * 1024  # So much is parsed of a connection in one round of the loop.

_LENGTH = re.compile(rb"\ncontent-length:[ \t]*([0-9]{1,15})[ \t]*\r\n")


def is_one_request(data: bytes) -> bool:
    """Whether these bytes are a head with its body, or with the beginning of it, and no more.

    False also for a head that has to be checked before the parser gets it. Most requests arrive
    whole: they need no buffer, and the parser reads head and body in one call. Only the parser
    decides how long a body is; here a length of more than 15 digits is left to it.
    """
    size = data.find(b"\n\r\n") + 3
    head = data[:size].lower()
    if size < 3 or len(data) > SLICE_BYTES or b"\n\n" in head or head.count(b"\n") > LINES_MAX:
        return False
    if b"upgrade" in head or b"transfer-encoding" in head:
        return False
    length = _LENGTH.match(head, max(head.find(b"\ncontent-length:"), 0))
    return len(data) <= size + (int(length[1]) if length else 0)


def read_body_length(headers: list[tuple[bytes, bytes]], version: str) -> int | None:
    """Return the length that the head gives; None for a chunked body.

    ValueError if it does not name one host, as HTTP/1.1 asks (RFC 9112, 3.2).
    """
    if [name for name, _ in headers].count(b"host") != 1 and version == "1.1":
        raise ValueError("a request of HTTP/1.1 has one Host")
    fields = dict(headers)
    # The parser has refused what is no number, and lengths that differ.
    return None if b"transfer-encoding" in fields else int(fields.get(b"content-length", 0))
