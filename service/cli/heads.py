"""Heads of requests: whether one came whole with its body, and how long the body is."""

import re

HEAD_BYTES = 64 * 1024
HEADERS_MAX = 256  # Each one takes many times its bytes in memory.
LINES_MAX = HEADERS_MAX + 2  # Of a head, with its first line and the empty one.
SLICE_BYTES = 64 * 1024  # So much is parsed of a connection in one round of the loop.

_LENGTH = re.compile(rb"\ncontent-length:[ \t]*([0-9]{1,15})[ \t]*\r\n")


def measure_one_request(data: bytes) -> int | None:
    """Return the length of the body if these bytes begin one request, and hold nothing after it.

    None if the head is incomplete, or if it has to be checked before the parser gets it. Most
    requests arrive whole: they need no buffer, and the parser reads head and body in one call.
    """
    size = data.find(b"\n\r\n") + 3
    head = data[:size].lower()
    if size < 3 or len(data) > SLICE_BYTES or b"\n\n" in head or head.count(b"\n") > LINES_MAX:
        return None
    if b"upgrade" in head or b"transfer-encoding" in head or head.count(b"\nhost:") != 1:
        return None
    match = _LENGTH.search(head)
    length = int(match[1]) if match else 0
    return length if len(data) <= size + length else None


def read_body_length(headers: list[tuple[bytes, bytes]], version: str) -> int | None:
    """Return the length that the head gives; None for a chunked body.

    ValueError if it does not name one host, as HTTP/1.1 asks (RFC 9112, 3.2).
    """
    if [name for name, _ in headers].count(b"host") != 1 and version == "1.1":
        raise ValueError("a request of HTTP/1.1 has one Host")
    fields = dict(headers)
    # The parser has refused what is no number, and lengths that differ.
    return None if b"transfer-encoding" in fields else int(fields.get(b"content-length", 0))
