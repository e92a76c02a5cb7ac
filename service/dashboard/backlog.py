"""What waited over time, from rows of lists: deliveries, and generations without end."""

from collections.abc import Mapping, Sequence
from typing import Any

from service.dashboard.formats import write_seconds
from service.dashboard.plots import Bar, bars
from service.model.clock import DAY, MINUTE, SECOND, parse_rfc3339, rfc3339

POINTS = 48
Row = Mapping[str, Any]
Span = tuple[int, int]


def draw_backlog(latest: Sequence[Row], pending: Sequence[Row], now: int) -> dict[str, Any]:
    """Return the plot of the ages, its last and its greatest one in seconds, and its first time.

    It goes back as far as the latest deliveries do, at most a day. An age is that of the oldest
    among these rows: deliveries beside them could only be older. Dead letters wait for nobody.
    """
    rows = _unite(latest, pending)
    waits = [
        _span(each, "created_at", "delivered_at", now)
        for each in rows
        if each["status"] in ("pending", "delivered")
    ]
    times = _points(latest, now)
    ages = [_age_at(at, waits) for at in times]
    texts = [f"{_name(at)}: {write_seconds(age)}" for at, age in zip(times, ages)]  # noqa: B905  both are of the times
    drawn: list[Bar] = bars(ages, texts) if latest else []
    return {"bars": drawn, "now": ages[-1], "longest": max(ages), "first": rfc3339(times[0])}


def draw_open(latest: Sequence[Row], opened: Sequence[Row], now: int) -> dict[str, Any]:
    """Return plots of how many generations were open and how many overdue, and their first time.

    They go back as far as the latest generations do, at most a day, and count these rows: others
    could only be more. One that timed out and got its result later counts until then.
    """
    rows, times = _unite(latest, opened), _points(latest, now)
    spans = [_span(each, "created_at", "completed_at", now) for each in rows]
    late = [_span(each, "deadline_at", "completed_at", now) for each in rows]
    plots: dict[str, Any] = {"first": rfc3339(times[0])}
    for name, counted in (("open", spans), ("overdue", late)):
        counts = [sum(start <= at < end for start, end in counted) for at in times]
        texts = [f"{_name(at)}: {count} {name}" for at, count in zip(times, counts)]  # noqa: B905  both are of the times
        is_bad = [name == "overdue" and count > 0 for count in counts]
        plots[name] = bars(counts, texts, is_bad) if latest else []
    return plots


def _unite(latest: Sequence[Row], waiting: Sequence[Row]) -> list[Row]:
    return list({each["id"]: each for each in (*latest, *waiting)}.values())


def _points(latest: Sequence[Row], now: int) -> list[int]:
    """Return the times of the bars."""
    start = min((parse_rfc3339(each["created_at"]) for each in latest), default=now)
    start = max(min(start, now - MINUTE), now - DAY)
    return [now - (now - start) * back // (POINTS - 1) for back in reversed(range(POINTS))]


def _name(at: int) -> str:
    return f"{rfc3339(at)[:19]}Z"


def _span(row: Row, first: str, last: str, now: int) -> Span:
    """Return from when to when a row waited; one without an end still does."""
    return parse_rfc3339(row[first]), now + 1 if row[last] is None else parse_rfc3339(row[last])


def _age_at(at: int, waits: Sequence[Span]) -> float:
    oldest = min((created for created, end in waits if created <= at < end), default=at)
    return (at - oldest) / SECOND
