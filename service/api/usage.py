"""Usage: counts and credits by model and day."""

import re
from datetime import date

from service.api.call import Answer, Call, answer_list, bad_query
from service.model.clock import rfc3339
from service.store import generations

USAGE_DAYS, USAGE_DAYS_MAX = 30, 366
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


async def get(call: Call) -> Answer:
    """GET /v1/usage."""
    since, until = _span(call)
    rows = await call.database.read(
        generations.usage, call.tenant, since.isoformat(), until.isoformat(), call.query_model()
    )
    return answer_list([dict(row) for row in rows])


def _span(call: Call) -> tuple[date, date]:
    """Return the first and the last day; by default the 30 days that end today (UTC)."""
    until = _day(call, "until") or date.fromisoformat(rfc3339(call.context.clock())[:10])
    since = _day(call, "since") or date.fromordinal(max(1, until.toordinal() - USAGE_DAYS + 1))
    if since > until:
        raise bad_query("since", "must not be after until")
    if (until - since).days >= USAGE_DAYS_MAX:
        raise bad_query("since", f"must be less than {USAGE_DAYS_MAX} days before until")
    return since, until


def _day(call: Call, name: str) -> date | None:
    text = call.query.get(name)
    if text is None:
        return None
    try:
        return date.fromisoformat(text if _DAY.fullmatch(text) else "")
    except ValueError:
        raise bad_query(name, "must be a day, such as 2026-11-22") from None
