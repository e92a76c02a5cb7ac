"""Header lines as people see them."""

from collections.abc import Iterable


def joined_headers(lines: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Header lines by name; the values of a name that came more than once joined by commas."""
    joined: dict[str, str] = {}
    for name, value in lines:
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined
