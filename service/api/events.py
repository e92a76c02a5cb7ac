"""Events, read: also the pull interface, in order and from a cursor."""

import msgspec

from service.api.call import Answer, Call
from service.api.problem import not_found
from service.model.event import EVENT_TYPES
from service.store import events, pages


async def list_(call: Call) -> Answer:
    """GET /v1/events.

    With `order=asc`, `next` is there as long as the page is not empty, so that a reader who has
    caught up can come back for what is new.
    """
    only = pages.Events(
        type=call.query_choice("type", EVENT_TYPES),
        generation_id=call.query_id("generation_id", "gen"),
    )
    page = call.page("evt")
    rows, more = await call.context.database.read(pages.events, page, call.tenant, only)
    after = rows[-1]["id"] if rows and (more or page.ascending) else None
    bodies = [msgspec.Raw(row["body"]) for row in rows]
    return Answer(content={"data": bodies, "next": after})


async def get(call: Call) -> Answer:
    """GET /v1/events/{id}: the very bytes that subscribers get."""
    event = await call.context.database.read(events.get, call.tenant, call.path["id"])
    if event is None:
        raise not_found("event")
    return Answer(body=event.body)
