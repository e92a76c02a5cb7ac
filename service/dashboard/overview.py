"""The first page: rates, success and durations of generations; the backlog of deliveries."""

from collections.abc import Container, Sequence
from datetime import date, timedelta
from functools import partial
from operator import itemgetter
from typing import Any

from starlette.responses import Response

from service.dashboard.backlog import Row, draw_backlog, draw_open
from service.dashboard.calls import ApiCall
from service.dashboard.formats import seconds_since
from service.dashboard.plots import bars
from service.dashboard.subscribers import read_all
from service.dashboard.visit import Visit
from service.model.clock import parse_rfc3339, rfc3339
from service.model.generation import OPEN

DAYS = 30
LATEST = 50  # Generations whose durations are drawn.
RECENT = 100  # Generations of which the open ones are drawn, beside those that are open now.
OPEN_MAX = 100
SUBSCRIBERS_MAX = 10
DELIVERIES_MAX, PENDING_MAX = 200, 50  # Rows from which the backlog is drawn.


async def show(visit: Visit) -> Response:
    """GET /dashboard."""
    usage = await visit.get("/v1/usage")
    recent = (await visit.get("/v1/generations", limit=str(RECENT)))["data"]
    lists = [
        await visit.get("/v1/generations", status=status, limit=str(OPEN_MAX)) for status in OPEN
    ]
    opened = sorted(
        (each for page in lists for each in page["data"]), key=itemgetter("deadline_at")
    )
    sent = (await visit.get("/v1/deliveries", limit=str(DELIVERIES_MAX)))["data"]
    pending = await visit.get("/v1/deliveries", status="pending", limit=str(PENDING_MAX))
    # An open page asks for each row of a subscriber by itself.
    has_rows = visit.may("manage") and not visit.is_live
    subscribers = await read_all(visit) if has_rows else []
    subscribers.sort(key=partial(_rank, _failing(sent, pending["data"])))
    # Their pending deliveries take long to count, so the page comes without them.
    for first in subscribers[:1]:
        visit.show_call(ApiCall(path=f"/v1/subscribers/{first['id']}/stats"))
    values = {
        "days": _by_day(usage["data"], visit.now),
        "durations": _durations(recent[:LATEST]),
        "backlog": draw_backlog(sent, pending["data"], visit.now),
        "has_more_pending": bool(pending["next"]),
        "waiting": draw_open(recent, opened, visit.now),
        "open_count": len(opened),
        "has_more_open": any(page["next"] for page in lists),
        "overdue": [each for each in opened if parse_rfc3339(each["deadline_at"]) <= visit.now],
        "subscribers": subscribers[:SUBSCRIBERS_MAX],
        "subscriber_count": len(subscribers),
        "is_empty": not recent,
    }
    return visit.render("overview.html", 200, **values)


def _failing(*lists: Sequence[Row]) -> set[str]:
    """Return the ids of subscribers whose deliveries are dead, or wait after an error."""
    rows = [each for rows in lists for each in rows]
    return {
        each["subscriber_id"]
        for each in rows
        if each["status"] == "dead" or (each["status"] == "pending" and each["last_error"])
    }


def _rank(failing: Container[str], subscriber: Row) -> int:
    """Return 0 if a subscriber needs help, 1 if a person stopped it, else 2."""
    if subscriber["disabled_reason"] in ("gone", "failing") or subscriber["id"] in failing:
        return 0
    return 2 if subscriber["status"] == "active" else 1


def _by_day(usage: Sequence[Row], now: int) -> dict[str, Any]:
    """Return plots of the days, and their sums."""
    today = date.fromisoformat(rfc3339(now)[:10])
    days = [(today - timedelta(days=back)).isoformat() for back in reversed(range(DAYS))]
    names = ("generations", "succeeded", "failed", "timed_out", "credits")
    sums = {day: dict.fromkeys(names, 0) for day in days}
    for row in usage:
        for name in names if row["day"] in sums else ():
            sums[row["day"]][name] += row[name]
    counts = [sums[day]["generations"] for day in days]
    rates = [_success_rate(sums[day]) for day in days]
    totals = {name: sum(each[name] for each in sums.values()) for name in names}
    return {
        "counts": bars(counts, [f"{day}: {count:,}" for day, count in zip(days, counts)]),  # noqa: B905  both are of the days
        "rates": bars(
            [rate or 0 for rate in rates],
            [f"{d}: {'no outcome' if r is None else f'{r:.0%}'}" for d, r in zip(days, rates)],  # noqa: B905  both are of the days
            [rate is not None and rate < 0.9 for rate in rates],
            top=1,  # A rate of 100% has the full height.
        ),
        "today": counts[-1],
        "totals": totals,
        "success_rate": _success_rate(totals),
        "first": days[0],
        "last": days[-1],
    }


def _success_rate(row: Row) -> float | None:
    ended = row["succeeded"] + row["failed"] + row["timed_out"]
    return row["succeeded"] / ended if ended else None


def _durations(latest: Sequence[Row]) -> dict[str, Any]:
    """Return a plot of the durations of the latest generations that succeeded, oldest first."""
    ended = [each for each in reversed(latest) if each["status"] == "succeeded"]
    seconds = [seconds_since(each["completed_at"], each["created_at"]) for each in ended]
    texts = [
        f"{each['model']}, {each['created_at'][:19]}Z: {took:.1f} s"
        for each, took in zip(ended, seconds, strict=True)
    ]
    ranked = sorted(seconds)
    return {
        "bars": bars(seconds, texts),
        "count": len(ranked),
        "median": ranked[len(ranked) // 2] if ranked else None,
        "longest": ranked[-1] if ranked else None,
    }
