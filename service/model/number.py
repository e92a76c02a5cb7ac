"""Numbers in settings and options: ASCII digits, and a fraction where one is allowed.

Python's own `int` and `float` also read `1_0`, digits of other scripts, and spaces around them.
"""

import re

_WHOLE = re.compile(r"[0-9]{1,20}")
_DECIMAL = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?")


def read_whole(text: str) -> int | None:
    """Read a whole number of up to 20 digits; None for any other text."""
    return int(text) if _WHOLE.fullmatch(text) else None


def read_decimal(text: str) -> float | None:
    """Read a number that may have a fraction, each of up to 20 digits; None for other text."""
    return float(text) if _DECIMAL.fullmatch(text) else None
