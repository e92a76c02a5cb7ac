"""Answers of the API as lines for people at a terminal."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from service.model.clock import parse_rfc3339

# DEL, C1 controls, separators of lines, and formats such as marks that turn the direction of text.
_STEERING = re.compile(
    "[\\x7f-\\x9f\\xad\\u061c\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb]"
)


def plain(text: object) -> str:
    """Return `text` on one line, without the control characters that could steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in str("" if text is None else text))


def json_line(content: object) -> str:
    """Return content as JSON on one line, in which nothing can steer a terminal."""
    return harmless(msgspec.json.encode(content).decode())


def harmless(json: str) -> str:
    """Return the same JSON; what could steer a terminal is escaped.

    JSON itself escapes only the control characters of ASCII. The others stand in strings only,
    where an escape means the same.
    """
    return json if json.isascii() and "\x7f" not in json else _STEERING.sub(_escape, json)


def _escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def table(rows: Iterable[Sequence[object]]) -> list[str]:
    """Return rows as lines with aligned columns."""
    cells = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]


def fields(values: Mapping[str, object]) -> list[str]:
    """Return a line for each name and value; empty values are left out."""
    rows = [(name, value) for name, value in values.items() if value not in (None, "", [], {})]
    return table(rows or [("", "")])


def generation(view: Mapping[str, Any]) -> list[str]:
    """Return the lines of a generation, with one for each of its files."""
    names = ("id", "model", "status", "route", "task_id", "credits", "notify_url")
    error = view["error"]
    shown = {name: view[name] for name in names}
    shown["error"] = error and f"{error['message']} ({error['code']})"
    shown |= {name: view[name] for name in ("created_at", "completed_at")}
    files = (view["output"] or {}).get("files", [])
    return [
        *fields(shown),
        *(f"  {plain(file['url'] or 'inside of output.raw: see --json')}" for file in files),
    ]


def entry(view: Mapping[str, Any], start_at: str) -> str:
    """Return the line of a timeline's entry, which starts with the seconds since `start_at`."""
    seconds = (parse_rfc3339(view["at"]) - parse_rfc3339(start_at)) / 1_000
    return f"{seconds:8.2f} s  {view['type']:<10}  {plain(summary(view))}"


def summary(view: Mapping[str, Any]) -> str:
    """Return the summary of an entry, with its reason or upstream's own words."""
    detail = view["detail"]
    more = detail.get("reason") or detail.get("said")
    text = str(view["summary"]).rstrip(".")
    return f"{text} ({more})" if more else text
