"""Usage: counts and credits by model and day."""

from datetime import date

from service.api.call import Answer, Call, answer_list, bad_query
from service.api.checks import MODEL_ID, MODEL_ID_RULE
from service.model.clock import rfc3339
from service.store import generations

USAGE_DAYS, USAGE_DAYS_MAX = 30, 366


async def get(call: Call) -> Answer:
    """GET /v1/usage: from `since` to `until`, by default the 30 days that end today (UTC)."""
    until = _day(call, "until") or date.fromisoformat(rfc3339(call.context.clock())[:10])
    since = _day(call, "since") or date.fromordinal(max(1, until.toordinal() - USAGE_DAYS + 1))
    if since > until:
        raise bad_query("since", "must not be after until")
    if (until - since).days >= USAGE_DAYS_MAX:
        raise bad_query("since", f"must be less than {USAGE_DAYS_MAX} days before until")
    model = call.query_text("model", MODEL_ID, MODEL_ID_RULE)
    days = since.isoformat(), until.isoformat()
    rows = await call.database.read(generations.usage, call.tenant, *days, model)
    return answer_list([dict(row) for row in rows])


def _day(call: Call, name: str) -> date | None:
    rule = "must be a day, such as 2026-11-22"
    text = call.query_text(name, "[0-9]{4}-[0-9]{2}-[0-9]{2}", rule)
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError:
        raise bad_query(name, rule) from None
