"""Events, read: also the pull interface, in order and from a cursor."""

import msgspec

from service.api.call import Answer, Call
from service.model.errors import not_found
from service.model.event import EVENT_TYPES
from service.store import events


async def list_(call: Call) -> Answer:
    """GET /v1/events.

    With `order=asc`, `next` is there as long as the page is not empty, so that a reader who has
    caught up can come back for what is new.
    """
    only = events.Filter(
        type=call.query_choice("type", EVENT_TYPES),
        generation_id=call.query_id("generation_id", "gen"),
    )
    page = call.page("evt")
    rows, after = await call.context.database.read(events.page, page, call.tenant, only)
    if page.ascending and rows and after is None:
        after = rows[-1]["id"]
    bodies = [msgspec.Raw(row["body"]) for row in rows]
    return Answer(content={"data": bodies, "next": after})


async def get(call: Call) -> Answer:
    """GET /v1/events/{id}: the very bytes that subscribers get."""
    event = await call.context.database.read(events.get, call.tenant, call.path["id"])
    if event is None:
        raise not_found("event")
    return Answer(body=event.body)
