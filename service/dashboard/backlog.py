"""How old the oldest undelivered delivery was over time, from rows of the list of deliveries."""

from collections.abc import Mapping, Sequence
from typing import Any

from service.dashboard.formats import write_seconds
from service.dashboard.plots import Bar, bars
from service.model.clock import DAY, MINUTE, SECOND, parse_rfc3339, rfc3339

POINTS = 48
Row = Mapping[str, Any]


def draw_backlog(latest: Sequence[Row], pending: Sequence[Row], now: int) -> dict[str, Any]:
    """Return the plot of the ages, its last and its greatest one in seconds, and its first time.

    It goes back as far as the latest deliveries do, at most a day. An age is that of the oldest
    among these rows: deliveries beside them could only be older. Dead letters wait for nobody.
    """
    rows = {each["id"]: each for each in (*latest, *pending)}.values()
    waits = [_read_wait(each, now) for each in rows if each["status"] in ("pending", "delivered")]
    start = min((parse_rfc3339(each["created_at"]) for each in latest), default=now)
    start = max(min(start, now - MINUTE), now - DAY)
    times = [now - (now - start) * back // (POINTS - 1) for back in reversed(range(POINTS))]
    ages = [_age_at(at, waits) for at in times]
    texts = [f"{rfc3339(at)[:19]}Z: {write_seconds(age)}" for at, age in zip(times, ages)]  # noqa: B905  both are of the times
    drawn: list[Bar] = bars(ages, texts) if latest else []
    return {"bars": drawn, "now": ages[-1], "longest": max(ages), "first": rfc3339(start)}


def _read_wait(row: Row, now: int) -> tuple[int, int]:
    """Return from when to when a delivery was undelivered; one that is pending still is."""
    end = now + 1 if row["delivered_at"] is None else parse_rfc3339(row["delivered_at"])
    return parse_rfc3339(row["created_at"]), end


def _age_at(at: int, waits: Sequence[tuple[int, int]]) -> float:
    oldest = min((created for created, end in waits if created <= at < end), default=at)
    return (at - oldest) / SECOND
