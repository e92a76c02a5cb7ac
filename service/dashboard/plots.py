"""Plots as numbers: bars over time and marks on a time axis, in percent of the width."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from service.model.clock import parse_rfc3339

HEIGHT = 48  # Of a plot of bars, in CSS pixels.
GAP = 0.2  # The share of a bar's place that stays empty.
PLACES_MIN = 12  # Fewer bars are as narrow as so many.
AXIS_ROWS_MAX = 20  # The list beside the time axis has all entries.
# The axis is linear for so long at its start, and logarithmic after it.
RESOLUTION_SECONDS = 0.1
TICKS = (
    *((1, "1 s"), (10, "10 s"), (60, "1 min"), (600, "10 min"), (3_600, "1 h")),
    *((21_600, "6 h"), (86_400, "1 day"), (604_800, "7 days")),
)
_LABELS = {  # Of rows, by type of entry; genhook's own types are not here.
    **dict.fromkeys(("submission", "submitted", "poll"), "to upstream"),
    "callback": "from upstream",
}


class Bar(NamedTuple):
    """A bar: its left edge and width in percent, its top and height in pixels, and its text."""

    x: float
    width: float
    y: float
    height: float
    text: str
    is_bad: bool


def bars(
    values: Sequence[float], texts: Sequence[str], bad: Sequence[bool] = (), top: float = 0
) -> list[Bar]:
    """Return a bar for each value; `top`, or else the greatest value, is as high as the plot."""
    top = top or max(values, default=0) or 1
    place = 100 / max(len(values), PLACES_MIN)
    drawn = []
    for index, (value, text) in enumerate(zip(values, texts, strict=True)):
        height = round(max(value / top * (HEIGHT - 2), 1.5 if value else 0.5), 1)
        x, width = round(index * place + place * GAP / 2, 2), round(place * (1 - GAP), 2)
        is_bad = bool(bad) and bad[index]
        drawn.append(Bar(x, width, round(HEIGHT - height, 1), height, text, is_bad))
    return drawn


class Mark(NamedTuple):
    """A point on the time axis, in percent of its width; `text` is its tooltip."""

    x: float
    type: str
    text: str
    is_bad: bool


class AxisRow(msgspec.Struct, kw_only=True):
    """A row of the time axis: the entries about one party."""

    label: str
    marks: list[Mark] = []


class Axis(NamedTuple):
    """A time axis: its rows, and its ticks as (percent, label)."""

    rows: list[AxisRow]
    ticks: list[tuple[float, str]]


def draw_axis(entries: Sequence[Mapping[str, Any]]) -> Axis:
    """Place the entries of a timeline, oldest first, on an axis with a logarithmic scale."""
    times = [parse_rfc3339(entry["at"]) for entry in entries]
    start = min(times, default=0)
    total = max((max(times, default=0) - start) / 1_000, 1.0)
    rows: dict[str, AxisRow] = {}
    for entry, at in zip(entries, times, strict=True):
        label = _label_of(entry)
        if label not in rows and len(rows) == AXIS_ROWS_MAX:
            continue
        seconds = (at - start) / 1_000
        text = f"{seconds:.2f} s: {entry['summary']}"
        mark = Mark(_place(seconds, total), entry["type"], text, _is_bad(entry))
        rows.setdefault(label, AxisRow(label=label)).marks.append(mark)
    ticks = [(_place(at, total), text) for at, text in TICKS if at < total * 0.8]
    return Axis(list(rows.values()), [(_place(0, total), "0"), *ticks])


def _label_of(entry: Mapping[str, Any]) -> str:
    """Return the label of an entry's row; each subscriber has a row of attempts."""
    if entry["type"] == "attempt":
        return f"…{entry['detail']['subscriber_id'][-8:]}"
    return _LABELS.get(entry["type"], "genhook")


def _place(seconds: float, total: float) -> float:
    """Return the place of a moment on the axis, from 1 to 99 percent, by its logarithm."""
    share = math.log1p(seconds / RESOLUTION_SECONDS) / math.log1p(total / RESOLUTION_SECONDS)
    return round(1 + 98 * min(share, 1), 2)


def _is_bad(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of a timeline shows that something went wrong."""
    detail = entry["detail"]
    status = detail.get("status_code")
    is_refused = isinstance(status, int) and status >= 400
    is_rejected = detail.get("verdict") in ("rejected", "unreadable")
    return is_refused or is_rejected or bool(detail.get("error"))
