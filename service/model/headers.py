"""HTTP headers as the API shows them."""

from collections.abc import Iterable


def joined_headers(lines: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the values by header name; values of a repeated name are joined by commas."""
    joined: dict[str, str] = {}
    for name, value in lines:
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined
