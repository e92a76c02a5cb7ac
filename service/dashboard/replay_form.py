"""The form of a replay: it counts the events and asks before it sends them."""

from typing import Any

from msgspec import structs
from starlette.responses import Response

from service.dashboard.acts import ACTS, Form
from service.dashboard.calls import ApiCall, Reply
from service.dashboard.formats import write_field_time, write_next_minute
from service.dashboard.subscribers import read_all
from service.dashboard.visit import RefusedError, Visit, name_state
from service.model.clock import DAY, MINUTE, parse_rfc3339, rfc3339

SPAN_MS = 7 * DAY  # The least time that the form offers.
ONLY = {"dead": "dead letters", "all": "all events"}
BACK = "/dead-letters"
[_ACT] = [act for act in ACTS if act.path == "/replays/create"]


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
    if form.get("confirmed") == "yes":
        return await _begin(visit, form)
    return await _ask(visit, form)


async def _ask(visit: Visit, form: Form) -> Response:
    call = _ACT.call("", form)
    reply = await visit.send_form(
        structs.replace(call, body={**call.body, "dry_run": True}),
        form,
        _once_of_count(visit, form, call),
    )
    if not reply.is_success:
        return await _explain(visit, form, reply)
    subscriber = await visit.get(f"/v1/subscribers/{reply.content['subscriber_id']}")
    body = {**call.body, "until": _counted_until(call.body["until"], reply.content["created_at"])}
    visit.show_call(structs.replace(call, body=body))
    values = {"replay": reply.content, "subscriber": subscriber, "body": body, "only": ONLY}
    return visit.render("replay_confirm.html", 200, form=form, **values)


def _once_of_count(visit: Visit, form: Form, call: ApiCall) -> str:
    """Return the `once` of a count, so that two clicks count once.

    The same page counts again if its form was changed, or in another minute.
    """
    once = form.get("once", "")
    return once and once + name_state((call.body, visit.now // MINUTE))


def _counted_until(until: str, counted_at: str) -> str:
    """Return the end of the time that was counted: what comes later was not there to count."""
    end = parse_rfc3339(counted_at) + 1
    return until if parse_rfc3339(until, round_up=True) <= end else rfc3339(end)


async def _begin(visit: Visit, form: Form) -> Response:
    counted = {**form, "until": form.get("counted_until") or form.get("until", "")}
    reply = await visit.send_form(_ACT.call("", counted), form)
    if not reply.is_success:
        return await _explain(visit, form, reply)
    return visit.redirect_after(_ACT.name, f"/replays/{reply.content['id']}")


async def _explain(visit: Visit, form: Form, reply: Reply) -> Response:
    """Show the form again, and what was refused; RefusedError if the form cannot mend it."""
    if reply.errors:
        visit.wrong = {pointer.strip("/"): message for pointer, message in reply.errors}
    elif reply.needs_repeat or reply.status not in (404, 409):
        raise RefusedError(reply, BACK)
    return await _render_form(visit, form, reply)


async def _render_form(visit: Visit, form: Form, refused: Reply | None = None) -> Response:
    subscribers = await read_all(visit)
    if all(each["id"] != form.get("subscriber_id") for each in subscribers):
        form = {**form, "subscriber_id": ""}  # Else a browser would choose the first one.
    detail = refused.content["detail"] if refused and not visit.wrong else ""
    values = {"subscribers": subscribers, "form": form, "only": ONLY, "detail": detail}
    return visit.render("replay_form.html", refused.status if refused else 200, **values)
