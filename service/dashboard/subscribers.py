"""Subscribers: a list, and one with its health."""

from typing import Any

from starlette.responses import Response

from service.dashboard.calls import LIMIT_MAX, ApiCall
from service.dashboard.plots import bars
from service.dashboard.visit import Visit
from service.model.event import EVENT_TYPES

QUANTILES = ("p50", "p95", "p99")


async def show_list(visit: Visit) -> Response:
    """GET /dashboard/subscribers."""
    page = await visit.get("/v1/subscribers", **visit.filters)
    return visit.render("subscribers.html", 200, page=page, event_types=EVENT_TYPES)


async def read_all(visit: Visit) -> list[dict[str, Any]]:
    """Return all subscribers of the tenant, newest first: the API bounds how many it has."""
    rows: list[dict[str, Any]] = []
    after: dict[str, str] = {}
    while True:
        page = await visit.get("/v1/subscribers", limit=str(LIMIT_MAX), **after)
        rows += page["data"]
        if page["next"] is None:
            return rows
        after = {"after": page["next"]}


async def show_health(visit: Visit) -> Response:
    """GET /dashboard/subscribers/{id}/health: a row that the overview asks for by itself."""
    if not visit.is_live:
        return visit.redirect(f"/subscribers/{visit.id}")
    path = f"/v1/subscribers/{visit.id}"
    subscriber, stats = await visit.get(path), await visit.get(f"{path}/stats")
    return visit.render("health.html", 200, subscriber=subscriber, stats=stats)


async def show(visit: Visit) -> Response:
    """GET /dashboard/subscribers/{id}. The page asks for its statistics later: they take long."""
    path = f"/v1/subscribers/{visit.id}"
    subscriber = await visit.get(path)
    deliveries = None  # A key with `manage` alone may not read deliveries.
    if visit.may("read"):
        visit.show_call(ApiCall(path=f"{path}/stats"))
        page = await visit.get("/v1/deliveries", subscriber_id=visit.id, limit="10")
        deliveries = page["data"]
    return visit.render("subscriber.html", 200, subscriber=subscriber, deliveries=deliveries)


async def show_stats(visit: Visit) -> Response:
    """GET /dashboard/subscribers/{id}/stats: a page; the subscriber's page shows a part of it."""
    stats = await visit.get(f"/v1/subscribers/{visit.id}/stats")
    latency = stats["latency_ms"]
    pairs = [(period, name) for period in ("hour", "day") for name in QUANTILES]
    values = [latency[period][name] or 0 for period, name in pairs]
    texts = [f"{period}, {name}: {latency[period][name] or 0:,.0f} ms" for period, name in pairs]
    shown = {
        "stats": stats,
        "quantiles": QUANTILES,
        "latency": bars(values, texts) if any(values) else [],
    }
    return visit.render("subscriber_stats.html", 200, id=visit.id, **shown)
