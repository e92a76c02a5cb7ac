"""Events: list them, pull new ones, get one."""

import msgspec

from service.api.call import Answer, Call, answer_list, get_own
from service.model.event import EVENT_TYPES, Event
from service.store import events
from service.store.database import Transaction


async def list_(call: Call) -> Answer:
    """GET /v1/events.

    With `order=asc`, `next` is null only on an empty page: a reader that has all events can
    continue from its last page once there are more.
    """
    type_ = call.query_choice("type", EVENT_TYPES)
    filters = type_, call.query_id("generation_id", "gen")
    page = call.page("evt")
    items, after = await events.read_page(call.database, page, call.tenant, *filters)
    if page.ascending and items and after is None:
        after = items[-1]["id"]
    bodies = [msgspec.Raw(row["body"]) for row in items]
    return answer_list(bodies, after)


async def get(tx: Transaction, call: Call) -> Answer:
    """GET /v1/events/{id}: the bytes that are sent to subscribers."""
    return Answer((await get_own(tx, call, Event)).body, media_type="application/json")
