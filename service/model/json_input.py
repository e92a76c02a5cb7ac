"""Decodes JSON that clients write, if it has few values, and each name of an object once.

JSON is decoded on the event loop. Text takes 3 to 9 ms for each MiB, but 1 MiB of empty lists takes
a hundred times as long to decode, and later to walk. So values are counted first, by C alone.
"""

from typing import Any

import msgspec

from service.model.json_names import find_repeated

VALUES_MAX = 10_000
TOO_MANY = f"must have at most {VALUES_MAX} values, at all levels together"


class ManyValuesError(ValueError):
    """JSON has more than VALUES_MAX values."""


class RepeatedNameError(ValueError):
    """An object of JSON has a name twice; the message is the name."""


def decode(body: bytes) -> Any:
    """Return a client's JSON, decoded.

    ManyValuesError, RepeatedNameError, or what msgspec raises (also RecursionError) if it is no
    JSON; msgspec.ValidationError if a number of it is out of range.
    """
    if not has_few_values(body):
        raise ManyValuesError(TOO_MANY)
    document = msgspec.json.decode(body)
    # `find_repeated` would decode a body that is only a text of JSON, whose values nobody counted.
    if isinstance(document, dict | list):
        name = find_repeated(body, document)
        if name is not None:
            raise RepeatedNameError(name)
    return document


def has_few_values(body: bytes, values_max: int = VALUES_MAX) -> bool:
    """Whether JSON has at most so many values; an empty list or object may count as two.

    Before each value but the outermost stands one comma or bracket, or a name behind one; those in
    texts are left out. Only for what is JSON is the answer right; decoding ends where it is not.
    """
    if len(body) <= values_max or _count(body) <= values_max:
        return True
    body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if body.count(b'"') > 4 * values_max:  # Each value has at most a name and a text.
        return False
    return _count(b"".join(body.split(b'"')[::2])) <= values_max


def _count(text: bytes) -> int:
    return text.count(b",") + text.count(b"[") + text.count(b"{")
