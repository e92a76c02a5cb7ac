"""Deliveries and dead letters, callbacks, and replays with their progress."""

from starlette.responses import Response

from service.dashboard import replay_form
from service.dashboard.visit import Visit
from service.model.callback import VERDICTS
from service.model.delivery import STATUSES
from service.model.ids import time_of


async def show_list(visit: Visit) -> Response:
    """GET /dashboard/deliveries."""
    page = await visit.get_list("/v1/deliveries", **visit.filters)
    return visit.answer_list("deliveries.html", page, statuses=STATUSES)


async def show(visit: Visit) -> Response:
    """GET /dashboard/deliveries/{id}: with its attempts; live while it is pending."""
    delivery = await visit.get(f"/v1/deliveries/{visit.id}")
    is_open, state = delivery["status"] == "pending", str(delivery["attempt_count"])
    answer = _answer_live(visit, state, is_open=is_open)
    return answer or visit.render("delivery.html", 200, delivery=delivery, state=state)


def _answer_live(visit: Visit, state: str, *, is_open: bool) -> Response | None:
    """Answer an open page: 204 while its state is the same, a reload once it has ended."""
    if visit.is_live and not is_open:
        return visit.redirect()
    return Response(status_code=204) if visit.has_seen(state) else None


async def show_dead(visit: Visit) -> Response:
    """GET /dashboard/dead-letters: dead deliveries, and a form that replays them."""
    query = visit.filters
    page = await visit.get("/v1/deliveries", **{"status": "dead", **query})
    rows = page["data"]
    chosen = query.get("subscriber_id") or (rows[0]["subscriber_id"] if rows else "")
    # A delivery of a replay is younger than its event.
    first_at = min((time_of(each["event_id"]) for each in rows), default=visit.now)
    # An open page asks for the list only, without the form.
    has_form = visit.may("manage") and not visit.is_live
    offer = await replay_form.read_offer(visit, chosen, first_at) if has_form else None
    return visit.answer_list("dead_letters.html", page, offer=offer)


async def show_replays(visit: Visit) -> Response:
    """GET /dashboard/replays."""
    page = await visit.get("/v1/replays", **visit.filters)
    return visit.render("replays.html", 200, page=page)


async def show_replay(visit: Visit) -> Response:
    """GET /dashboard/replays/{id}: live while it runs."""
    replay = await visit.get(f"/v1/replays/{visit.id}")
    is_open, state = replay["status"] == "running", str(replay["done"])
    answer = _answer_live(visit, state, is_open=is_open)
    return answer or visit.render("replay.html", 200, replay=replay, state=state)


async def show_callbacks(visit: Visit) -> Response:
    """GET /dashboard/callbacks."""
    page = await visit.get_list("/v1/callbacks", **visit.filters)
    return visit.answer_list("callbacks.html", page, verdicts=VERDICTS)


async def show_callback(visit: Visit) -> Response:
    """GET /dashboard/callbacks/{id}: as it was received."""
    callback = await visit.get(f"/v1/callbacks/{visit.id}")
    return visit.render("callback.html", 200, callback=callback)
