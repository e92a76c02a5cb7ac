"""What the API answers, as lines for a person at a terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from service.model.clock import parse_rfc3339


def plain(text: object) -> str:
    """`text` on one line, without the control characters that could steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in str("" if text is None else text))


def table(rows: Iterable[Sequence[object]]) -> list[str]:
    """Rows as lines, their columns aligned."""
    cells = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]


def fields(thing: Mapping[str, object]) -> list[str]:
    """A name and a value on each line; what is empty is left out."""
    return table([(n, v) for n, v in thing.items() if v not in (None, "", [], {})] or [("", "")])


def generation(found: Mapping[str, Any]) -> list[str]:
    """A generation, its files one on each line."""
    shown = {
        name: found[name]
        for name in ("id", "model", "status", "route", "task_id", "credits", "notify_url")
    }
    error = found["error"]
    shown["error"] = error and f"{error['message']} ({error['code']})"
    shown |= {name: found[name] for name in ("created_at", "completed_at")}
    files = (found["output"] or {}).get("files", [])
    return [*fields(shown), *(f"  {plain(file['url'])}" for file in files)]


def entry(found: Mapping[str, Any], start_at: str) -> str:
    """An entry of a timeline, with the seconds since `start_at` before it."""
    seconds = (parse_rfc3339(found["at"]) - parse_rfc3339(start_at)) / 1_000
    return f"{seconds:8.2f} s  {found['type']:<10}  {plain(said(found))}"


def said(found: Mapping[str, Any]) -> str:
    """What an entry says, with what else is worth knowing of it."""
    detail = found["detail"]
    more = detail.get("reason") or detail.get("said")
    summary = str(found["summary"]).rstrip(".")
    return f"{summary} ({more})" if more else summary
