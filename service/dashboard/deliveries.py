"""Deliveries and dead letters, callbacks, and replays with their progress."""

from typing import Any

from starlette.responses import Response

from service.dashboard.calls import ApiCall
from service.dashboard.visit import PATH, Visit
from service.model.callback import VERDICTS
from service.model.clock import DAY, rfc3339
from service.model.delivery import STATUSES
from service.model.ids import time_of

DEAD_SPAN_MS = 7 * DAY  # The least time in the form of a replay.
CHOICES_MAX = 100  # Subscribers in the form of a replay, besides the chosen one.


async def show_list(visit: Visit) -> Response:
    """GET /dashboard/deliveries."""
    query = visit.filters("status", "subscriber_id", "event_id", "generation_id", "after")
    page = await visit.get("/v1/deliveries", **query)
    return visit.answer_list("deliveries.html", page, fields=query, statuses=STATUSES)


async def show(visit: Visit) -> Response:
    """GET /dashboard/deliveries/{id}: with its attempts; live while it is pending."""
    delivery = await visit.get(f"/v1/deliveries/{visit.id}")
    is_open, state = delivery["status"] == "pending", str(delivery["attempt_count"])
    answer = _answer_live(visit, state, is_open=is_open)
    return answer or visit.render("delivery.html", 200, delivery=delivery, state=state)


def _answer_live(visit: Visit, state: str, *, is_open: bool) -> Response | None:
    """Answer an open page: 204 while its state is the same, a reload once it has ended."""
    if visit.is_live and not is_open:
        return visit.redirect(visit.path.removeprefix(PATH))
    return Response(status_code=204) if visit.has_seen(state) else None


async def show_dead(visit: Visit) -> Response:
    """GET /dashboard/dead-letters: dead deliveries, and a form that replays them."""
    query = visit.filters("subscriber_id", "after")
    page = await visit.get("/v1/deliveries", **{"status": "dead", **query})
    rows = page["data"]
    chosen = query.get("subscriber_id") or (rows[0]["subscriber_id"] if rows else "")
    # An open page asks for the list only, without the form.
    has_form = visit.may("manage") and not visit.is_live
    subscribers = await _read_choices(visit, chosen) if has_form else []
    # A delivery of a replay is younger than its event.
    events_at = (time_of(each["event_id"]) for each in rows)
    since = rfc3339(min(visit.now - DEAD_SPAN_MS, *events_at, visit.now))
    values = {
        "fields": query,
        "subscribers": subscribers,
        "chosen": next((each for each in subscribers if each["id"] == chosen), None),
        "span": {"since": since, "until": rfc3339(visit.now)},
    }
    return visit.answer_list("dead_letters.html", page, **values)


async def _read_choices(visit: Visit, chosen: str) -> list[dict[str, Any]]:
    """Return subscribers for the form, with the chosen one unless it is of a `notify_url`."""
    page = await visit.get("/v1/subscribers", limit=str(CHOICES_MAX))
    choices: list[dict[str, Any]] = page["data"]
    if chosen and page["next"] and all(each["id"] != chosen for each in choices):
        reply = await visit.send(ApiCall(path=f"/v1/subscribers/{chosen}"))
        if reply.is_success and not reply.content["for_notify_url"]:
            choices.append(reply.content)
    return choices


async def show_replays(visit: Visit) -> Response:
    """GET /dashboard/replays."""
    query = visit.filters("after")
    return visit.render("replays.html", 200, page=await visit.get("/v1/replays", **query))


async def show_replay(visit: Visit) -> Response:
    """GET /dashboard/replays/{id}: live while it runs."""
    replay = await visit.get(f"/v1/replays/{visit.id}")
    is_open, state = replay["status"] == "running", str(replay["done"])
    answer = _answer_live(visit, state, is_open=is_open)
    return answer or visit.render("replay.html", 200, replay=replay, state=state)


async def show_callbacks(visit: Visit) -> Response:
    """GET /dashboard/callbacks."""
    query = visit.filters("verdict", "generation_id", "after")
    page = await visit.get("/v1/callbacks", **query)
    return visit.answer_list("callbacks.html", page, fields=query, verdicts=VERDICTS)


async def show_callback(visit: Visit) -> Response:
    """GET /dashboard/callbacks/{id}: as it was received."""
    callback = await visit.get(f"/v1/callbacks/{visit.id}")
    return visit.render("callback.html", 200, callback=callback)
