"""Events: list or pull them, get one."""

import msgspec

from service.api.call import Answer, Call, answer_list
from service.api.problem import require
from service.model.event import EVENT_TYPES
from service.store import events
from service.store.database import Transaction


async def list_(call: Call) -> Answer:
    """GET /v1/events.

    With `order=asc`, `next` is null only on an empty page: a reader that has all events can
    continue from its last page once there are more.
    """
    only = events.Filter(
        type=call.query_choice("type", EVENT_TYPES),
        generation_id=call.query_id("generation_id", "gen"),
    )
    page = call.page("evt")
    rows, after = await call.database.read(events.list_page, page, call.tenant, only)
    if page.ascending and rows and after is None:
        after = rows[-1]["id"]
    return answer_list([msgspec.Raw(row["body"]) for row in rows], after)


async def get(tx: Transaction, call: Call) -> Answer:
    """GET /v1/events/{id}: the bytes that are sent to subscribers."""
    event = require("event", await events.get(tx, call.tenant, call.path["id"]))
    return Answer(event.body, media_type="application/json")
