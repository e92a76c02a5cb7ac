"""Plots of what waited over time, from rows of lists: deliveries, and open generations."""

from collections.abc import Mapping, Sequence
from typing import Any

from service.dashboard.formats import write_seconds
from service.dashboard.plots import Bar, bars
from service.model.clock import DAY, MINUTE, SECOND, parse_rfc3339, rfc3339

POINTS = 48
Row = Mapping[str, Any]
Span = tuple[int, int]


def draw_backlog(latest: Sequence[Row], pending: Sequence[Row], now: int) -> dict[str, Any]:
    """Return a plot of the age of the oldest delivery that waited, in seconds, and its first time.

    `now` and `longest` are the last and the greatest age. The plot begins with the oldest of
    `latest`, at most a day ago; one of `pending` may be older. Dead and canceled deliveries do not
    wait.
    """
    rows = _unite(latest, pending)
    waits = [
        _span(each, "created_at", "delivered_at", now)
        for each in rows
        if each["status"] in ("pending", "delivered")
    ]
    times = _points(latest, now)
    ages = [_age_at(at, waits) for at in times]
    texts = [f"{_write_time(at)}: {write_seconds(age)}" for at, age in zip(times, ages)]  # noqa: B905  both are of the times
    drawn: list[Bar] = bars(ages, texts) if latest else []
    return {"bars": drawn, "now": ages[-1], "longest": max(ages), "first": rfc3339(times[0])}


def draw_open(latest: Sequence[Row], opened: Sequence[Row], now: int) -> dict[str, Any]:
    """Return plots of how many generations were open and how many overdue, and their first time.

    The plots begin with the oldest of `latest`, at most a day ago, and count only these rows: there
    may be more. A timed-out generation with a late result counts until the result.
    """
    rows, times = _unite(latest, opened), _points(latest, now)
    spans = [_span(each, "created_at", "completed_at", now) for each in rows]
    late = [_span(each, "deadline_at", "completed_at", now) for each in rows]
    plots: dict[str, Any] = {"first": rfc3339(times[0])}
    for name, counted in (("open", spans), ("overdue", late)):
        counts = [sum(start <= at < end for start, end in counted) for at in times]
        texts = [f"{_write_time(at)}: {count} {name}" for at, count in zip(times, counts)]  # noqa: B905  both are of the times
        is_bad = [name == "overdue" and count > 0 for count in counts]
        plots[name] = bars(counts, texts, is_bad) if latest else []
    return plots


def _unite(latest: Sequence[Row], waiting: Sequence[Row]) -> list[Row]:
    return list({each["id"]: each for each in (*latest, *waiting)}.values())


def _points(latest: Sequence[Row], now: int) -> list[int]:
    """Return the times of the bars, in milliseconds."""
    start = min((parse_rfc3339(each["created_at"]) for each in latest), default=now)
    start = max(min(start, now - MINUTE), now - DAY)
    return [now - (now - start) * back // (POINTS - 1) for back in reversed(range(POINTS))]


def _write_time(at: int) -> str:
    return f"{rfc3339(at)[:19]}Z"


def _span(row: Row, first: str, last: str, now: int) -> Span:
    """Return from when to when a row waited; without a last time it still waits."""
    return parse_rfc3339(row[first]), now + 1 if row[last] is None else parse_rfc3339(row[last])


def _age_at(at: int, waits: Sequence[Span]) -> float:
    oldest = min((created for created, end in waits if created <= at < end), default=at)
    return (at - oldest) / SECOND
