"""Answers of the API as lines for people at a terminal."""

import argparse
import codecs
import re
import sys
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from service.cli import streams
from service.model.clock import parse_rfc3339
from service.model.text import encodable
from service.settings import ENVIRONMENT

# DEL, C1 controls, separators of lines, and formats such as marks that turn the direction of text.
_STEERING = re.compile(
    "[\\x7f-\\x9f\\xad\\u061c\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb]"
)
_GREEN, _RED, _YELLOW, _BOLD, _END = "\x1b[32m", "\x1b[31m", "\x1b[33m", "\x1b[1m", "\x1b[0m"
_COLOURS = {
    **dict.fromkeys(("succeeded", "delivered", "active", "live", "done"), _GREEN),
    **dict.fromkeys(("failed", "dead", "disabled", "revoked"), _RED),
    **dict.fromkeys(("timed_out", "canceled", "paused"), _YELLOW),
}
_STATES = ("status", "state")
FIELD_WIDTH = len("completed_at")  # So wide are the names of a generation's fields at least.


def plain(text: object) -> str:
    """Return `text` on one line, without the control characters that could steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in str("" if text is None else text))


def json_line(content: object) -> str:
    """Return content as JSON on one line, in which nothing can steer a terminal."""
    try:
        encoded = msgspec.json.encode(content)
    except UnicodeEncodeError:
        encoded = msgspec.json.encode(encodable(msgspec.to_builtins(content)))
    return harmless(encoded.decode())


def show(options: argparse.Namespace, content: object, lines: Iterable[str]) -> None:
    """Print content as JSON with `--json`, else the lines."""
    for line in [json_line(content)] if options.json else lines:
        streams.echo(line)


def harmless(json: str) -> str:
    """Return the same JSON; what could steer a terminal is escaped.

    JSON itself escapes only the control characters of ASCII. The others stand in strings only,
    where an escape means the same.
    """
    return json if json.isascii() and "\x7f" not in json else _STEERING.sub(_escape, json)


def _escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def is_coloured() -> bool:
    """Whether the output is a terminal that shows colours, and nobody wants none (NO_COLOR)."""
    if sys.stdout is None or not sys.stdout.isatty() or ENVIRONMENT.get("NO_COLOR"):
        return False
    return ENVIRONMENT.get("TERM") != "dumb"


def width(text: str) -> int:
    """Return how many columns of a terminal a text takes: those of CJK and emoji take two."""
    if text.isascii():
        return len(text)
    from wcwidth import wcswidth  # Its tables take a while to load.

    return max(wcswidth(text), 0)


def _cell(value: object) -> str:
    """Return a value as the output will show it, on one line."""
    if isinstance(value, bool):
        value = "yes" if value else "no"
    elif isinstance(value, list) and not any(isinstance(item, dict | list) for item in value):
        value = ",".join(map(str, value))
    elif isinstance(value, dict | list):
        value = json_line(value) if value else ""
    text, encoding = plain(value), getattr(sys.stdout, "encoding", None) or "utf-8"
    if text.isascii() or codecs.lookup(encoding).name == "utf-8":
        return text
    return text.encode(encoding, streams.ESCAPE).decode(encoding)


def table(
    rows: Iterable[Sequence[object]], *, first_width: int = 0, numbers: Container[int] = ()
) -> list[str]:
    """Return rows as lines with aligned columns, the first one at least so wide.

    `numbers` are the places of the columns whose cells stand at the right.
    """
    cells = [[_cell(cell) for cell in row] for row in rows]
    widths = [max(map(width, column)) for column in zip(*cells, strict=True)]
    if widths:
        widths[0] = max(widths[0], first_width)
    lines: list[str] = []
    for row in cells:
        spaces = [" " * (size - width(cell)) for cell, size in zip(row, widths, strict=True)]
        padded = [
            space + cell if place in numbers else cell + space
            for place, (cell, space) in enumerate(zip(row, spaces, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return lines


def page(answer: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    """Return a page of a list with a line of headings, and how to get the next page."""
    rows = [[_at(item, column) for column in columns] for item in answer["data"]]
    if not rows:
        return ["There are none."]
    headings = [column.replace(".", " ").replace("_", " ").upper() for column in columns]
    numbers = {
        place
        for place, column in enumerate(zip(*rows, strict=True))
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in column)
    }
    heading, *lines = table([headings, *rows], numbers=numbers)
    if is_coloured():
        heading = f"{_BOLD}{heading}{_END}"
        for column in {*_STATES} & {*columns}:
            states = [item.get(column) for item in answer["data"]]
            lines = [_coloured(line, state) for line, state in zip(lines, states, strict=True)]
    more = [f"more: --after {plain(answer['next'])}"] if answer.get("next") else []
    return [heading, *lines, *more]


def _at(item: Mapping[str, Any], column: str) -> object:
    outer, _, inner = column.partition(".")
    value = item.get(outer)
    return value.get(inner) if inner and isinstance(value, dict) else value


def _coloured(line: str, state: object) -> str:
    """Colour a state in a line, which has no escapes yet."""
    colour = _COLOURS.get(str(state))
    return line.replace(f" {state} ", f" {colour}{state}{_END} ", 1) if colour else line


def fields(values: Mapping[str, object], *, first_width: int = 0) -> list[str]:
    """Return a line for each name and value; empty values are left out."""
    rows = [(name, value) for name, value in values.items() if value not in (None, "", [], {})]
    return table(rows, first_width=first_width)


def generation(view: Mapping[str, Any]) -> list[str]:
    """Return the lines of a generation, with one for each of its files."""
    names = ("id", "model", "status", "route", "task_id", "credits", "retry_of", "notify_url")
    error = view["error"]
    shown = {name: view.get(name) for name in names}
    shown["error"] = error and f"{error['message']} ({error['code']})"
    shown |= {name: view[name] for name in ("created_at", "completed_at")}
    files = (view["output"] or {}).get("files", [])
    return [*fields(shown, first_width=FIELD_WIDTH), *map(_file, files)]


def _file(file: Mapping[str, Any]) -> str:
    expires_at = file.get("expires_at")
    until = f"  (until {plain(expires_at)})" if expires_at else ""
    return f"  {plain(file['url'] or 'inside of output.raw: see --json')}{until}"


def entry(view: Mapping[str, Any], start_at: str) -> str:
    """Return the line of a timeline's entry, which starts with the seconds since `start_at`."""
    seconds = (parse_rfc3339(view["at"]) - parse_rfc3339(start_at)) / 1_000
    return plain(f"{seconds:8.2f} s  {view['type']:<10}  {summary(view)}")


def summary(view: Mapping[str, Any]) -> str:
    """Return the summary of an entry, with its reason or upstream's own words."""
    detail = view["detail"]
    more = detail.get("reason") or detail.get("said")
    text = str(view["summary"]).rstrip(".")
    return f"{text} ({more})" if more else text
