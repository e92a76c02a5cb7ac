"""Heads of requests, and ends of chunked bodies: how much the parser may have at once."""

import re

HEAD_BYTES = 64 * 1024
HEADERS_MAX = 256  # Each one takes many times its bytes in memory.
LINES_MAX = HEADERS_MAX + 2  # Of a head, with its first line and the empty one.
SLICE_BYTES = 64 * 1024  # So much is parsed of a connection in one round of the loop.
EMPTY_LINE = re.compile(rb"\n\r?\n")  # Ends a head, and a chunked body.

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


def find_empty_line(before: bytes, data: bytearray, size: int) -> int:
    """Return where the first empty line in `data` ends, or `size` if none ends before.

    before: the last two bytes that came before. A body may have such a line at each byte, so the
    search copies nothing of `data`.
    """
    if joint := EMPTY_LINE.search(before + data[:2]):
        return joint.end() - len(before)
    inside = EMPTY_LINE.search(data, 0, size)
    return inside.end() if inside else size


def read_body_length(headers: list[tuple[bytes, bytes]], version: str) -> int | None:
    """Return the length that the head gives; None for a chunked body.

    ValueError if it does not name one host, as HTTP/1.1 asks (RFC 9112, 3.2).
    """
    if [name for name, _ in headers].count(b"host") != 1 and version == "1.1":
        raise ValueError("a request of HTTP/1.1 has one Host")
    fields = dict(headers)
    # The parser has refused what is no number, and lengths that differ.
    return None if b"transfer-encoding" in fields else int(fields.get(b"content-length", 0))
