"""Usage by model and day, API keys, and the workers with readiness and metrics."""

import re
from collections import defaultdict
from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

from starlette.responses import Response

from service.dashboard.calls import ApiCall
from service.dashboard.plots import bars
from service.dashboard.visit import Visit
from service.model.key import SCOPES
from service.store.shards import ALL, SHARDS

COUNTS = ("generations", "succeeded", "failed", "timed_out", "canceled", "credits")
ROWS_MAX = 200  # Of the table by day; the API returns more.
DAYS_MAX = 366  # Of the plot.
_HELP = re.compile(r"# HELP (\w+) (.*)")
_VALUE = re.compile(r"""(genhook_\w+)\{role="\w+"\} ([0-9.e+-]+)""")


async def show_usage(visit: Visit) -> Response:
    """GET /dashboard/usage: of the reader's tenant, or of another one for an operator."""
    rows = (await visit.get_list("/v1/usage", **visit.filters))["data"]
    models: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(COUNTS, 0))
    days: dict[str, int] = defaultdict(int)
    for row in rows:
        days[row["day"]] += row["credits"]
        for name in COUNTS:
            models[row["model"]][name] += row[name]
    ordered = _fill(days)
    values: dict[str, Any] = {
        "rows": rows,
        "rows_max": ROWS_MAX,
        "models": sorted(models.items(), key=lambda item: -item[1]["credits"]),
        "credits": bars([n for _, n in ordered], [f"{day}: {n:,} credits" for day, n in ordered]),
        "first": ordered[0][0] if ordered else "",
        "last": ordered[-1][0] if ordered else "",
        "total": sum(days.values()),
    }
    return visit.render("usage.html", 200, counts=COUNTS, **values)


def _fill(days: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return (day, credits) for the latest DAYS_MAX days in order, days without usage included."""
    if not days:
        return []
    last = date.fromisoformat(max(days))
    count = min((last - date.fromisoformat(min(days))).days + 1, DAYS_MAX)
    shown = [(last - timedelta(days=back)).isoformat() for back in reversed(range(count))]
    return [(day, days.get(day, 0)) for day in shown]


async def show_keys(visit: Visit) -> Response:
    """GET /dashboard/keys."""
    page = await visit.get_list("/v1/keys", **visit.filters)
    scopes = [each for each in SCOPES if each != "operator" or visit.may("operator")]
    return visit.render("keys.html", 200, page=page, scopes=scopes)


async def show_workers(visit: Visit) -> Response:
    """GET /dashboard/workers: shards by worker, readiness, and metrics without further labels."""
    workers = (await visit.get("/v1/workers"))["data"] if visit.may("operator") else None
    held = [shard for each in workers or () for shard in each["shards"]]
    ready = await visit.send(ApiCall(path="/readyz"))
    metrics = await visit.send(ApiCall(path="/metrics"))
    text = metrics.content if metrics.is_success else ""
    helps = dict(_HELP.findall(text))
    gauges = [(helps.get(name, name), name, float(value)) for name, value in _VALUE.findall(text)]
    values = {
        "workers": workers,
        "shards": SHARDS,
        "free": sorted(ALL.difference(held)),
        "checks": ready.content["checks"],
        "status": ready.content["status"],
    }
    return visit.render("workers.html", 200, gauges=gauges, **values)
