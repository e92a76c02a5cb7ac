"""Heads of requests: whether one came whole with its body, and how long the body is."""

import re

HEAD_LINES = 256  # Each header takes many times its bytes in memory.
SLICE_BYTES = 64 * 1024  # So much is parsed of a connection in one round of the loop.

_LENGTH = re.compile(rb"\ncontent-length:[ \t]*([0-9]{1,15})[ \t]*\r\n")


def missing_bytes(data: bytes) -> int | None:
    """Return how many bytes are missing of the one request that these bytes begin with its head.

    None if they hold no whole head, or more than one request. Most requests arrive whole: they need
    no buffer, and the parser reads head and body in one call.
    """
    size = data.find(b"\n\r\n") + 3
    head = data[:size].lower()
    if size < 3 or len(data) > SLICE_BYTES or b"\n\n" in head or head.count(b"\n") > HEAD_LINES:
        return None
    if b"upgrade" in head or b"transfer-encoding" in head:
        return None
    length = _LENGTH.search(head)
    missing = size + (int(length[1]) if length else 0) - len(data)
    return missing if missing >= 0 else None


def read_body_length(headers: list[tuple[bytes, bytes]]) -> int | None:
    """Return the length that the head gives; None for a chunked body."""
    fields = dict(headers)
    # The parser has refused what is no number, and lengths that differ.
    return None if b"transfer-encoding" in fields else int(fields.get(b"content-length", 0))
