"""The form of a replay: it counts the events and asks before it sends them."""

from collections.abc import Mapping
from typing import Any

from msgspec import structs
from starlette.responses import Response

from service.dashboard.acts import ACTS, Form
from service.dashboard.formats import write_field_time, write_next_minute
from service.dashboard.subscribers import read_all
from service.dashboard.visit import RefusedError, Visit
from service.model.clock import DAY, rfc3339

SPAN_MS = 7 * DAY  # The least time that the form offers.
ONLY = {"dead": "dead letters", "all": "all events"}
BACK = "/dead-letters"
[_ACT] = [act for act in ACTS if act.path == "/replays/create"]
View = Mapping[str, Any]


async def read_offer(visit: Visit, chosen: str, first_at: int) -> dict[str, Any]:
    """Return what the form needs: for a chosen subscriber, and since `first_at` or SPAN_MS ago."""
    since = rfc3339(min(visit.now - SPAN_MS, first_at))
    until = rfc3339(visit.now)
    subscribers = await read_all(visit)
    is_known = any(each["id"] == chosen for each in subscribers)
    if subscribers:
        example = {"subscriber_id": chosen if is_known else subscribers[0]["id"]}
        visit.offer(_ACT, "", {**example, "since": since, "until": until})
    form = {"since": write_field_time(since), "until": write_next_minute(until)}
    form["subscriber_id"] = chosen if is_known else ""
    return {"subscribers": subscribers, "form": form, "only": ONLY}


async def run(visit: Visit, form: Form) -> Response:
    """POST /dashboard/replays/create: count and ask; once confirmed, begin the replay."""
    if form.get("edit"):
        return await _render_form(visit, form)
    call = _ACT.call("", form)
    is_confirmed = form.get("confirmed") == "yes"
    if is_confirmed:
        reply = await visit.send_form(call, form)
    else:
        reply = await visit.send(structs.replace(call, body={**call.body, "dry_run": True}))
    if reply.status == 422 and reply.content.get("errors"):
        errors = reply.content["errors"]
        visit.wrong = {each["pointer"].strip("/"): each["message"] for each in errors}
        return await _render_form(visit, form)
    if not reply.is_success:
        raise RefusedError(reply, BACK)
    if is_confirmed:
        return visit.redirect_after(_ACT.name, f"/replays/{reply.content['id']}")
    subscriber = await visit.get(f"/v1/subscribers/{reply.content['subscriber_id']}")
    visit.show_call(call)
    values = {"replay": reply.content, "subscriber": subscriber, "body": call.body, "only": ONLY}
    return visit.render("replay_confirm.html", 200, form=form, **values)


async def _render_form(visit: Visit, form: Form) -> Response:
    values = {"subscribers": await read_all(visit), "form": form, "only": ONLY}
    return visit.render("replay_form.html", 422 if visit.wrong else 200, **values)
