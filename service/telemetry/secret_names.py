"""Names under which upstream sends secrets, and the cutting of texts under them out of raw JSON."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

_NAMES = """
    callbackurl webhook webhookurl webhooksecret webhookhmackey notifyurl secret apikey
    authorization accesstoken token password
"""
_HIDDEN = frozenset(_NAMES.split())
HIDDEN_NAME = re.compile(f'"(?:{"|".join(sorted(_HIDDEN))})":')
# In lower case. A quote of JSON within a text of JSON has backslashes before it: 1, 3, 7 or 15.
_OPENING = re.compile(
    rb'"[_-]*+(?:'
    + "|".join("[_-]*+".join(name) for name in sorted(_HIDDEN)).encode()
    + rb')[_-]*+(?P<escape>\\{0,15}+)"\s*+:\s*+(?P=escape)"'
)


def is_hidden(name: str, value: Any) -> bool:
    """Whether a value of decoded JSON is a secret by its name, in any case, without `_` and `-`."""
    # `token` may also be a number: how many were used.
    plain = name.replace("_", "").replace("-", "").lower()
    return plain in _HIDDEN and not isinstance(value, int | float | None)


def cut_texts(body: bytes, replacement: bytes) -> bytes:
    """Return JSON with each text under a secret name replaced, also in a text of JSON within it.

    Nothing else of it changes, as JSON that is decoded and encoded again would. The JSON may be
    cut off, or stand beside something else.
    """
    pieces, at = [], 0
    for start, end in _find_texts(body):
        pieces += [body[at:start], replacement]
        at = end
    return b"".join((*pieces, body[at:])) if pieces else body


def _find_texts(body: bytes) -> Iterator[tuple[int, int]]:
    lowered, at = body.lower(), 0
    while opening := _OPENING.search(lowered, at):
        escape, start = opening["escape"], opening.start()
        before = lowered[max(0, start - len(escape) - 1) : start]
        if before.endswith(escape) and before != escape + b"\\":
            text = _text_after(len(escape)).match(body, opening.end())
            assert text is not None  # It may be empty.
            yield text.span()
            at = text.end()
        else:
            at = start + 1


@cache
def _text_after(escapes: int) -> re.Pattern[bytes]:
    r"""Match the rest of a text whose quotes have so many backslashes before them.

    A backslash within it has twice as many, and two; a quote within it has one less. So `\\"` ends
    a text, and `\"` does not. Any other quote ends it, too: then it is a text that was cut off, and
    the quote is that of a text around it.
    """
    size = 2 * escapes + 2
    escaped = rb'\\{%d}|\\{%d}"' % (size, size - 1)
    return re.compile(rb'(?:[^"\\]++|%b|\\{1,%d}+(?!["\\]))*+' % (escaped, size - 1))
