"""Generations: a wall of pictures with filters, and one generation with its timeline."""

from typing import Any

from starlette.responses import Response

from service.dashboard import media
from service.dashboard.acts import read_time
from service.dashboard.plots import draw_axis
from service.dashboard.visit import Visit, name_state
from service.model.generation import OPEN, RETRYABLE, TERMINAL

PER_PAGE = "24"
TIMES = {"from": "created_after", "to": "created_before"}  # Fields, and the API's parameters.


async def show_list(visit: Visit) -> Response:
    """GET /dashboard/generations: live, with pictures of the origins in its policy.

    The Content-Security-Policy of an open page cannot change: for another origin it reloads.
    """
    fields = visit.filters
    query: dict[str, str] = {"limit": PER_PAGE}
    query |= {name: fields[name] for name in ("status", "model", "after") if name in fields}
    if "name" in fields:
        query[f"metadata.{fields['name']}"] = fields.get("value", "")
    elif "value" in fields:
        visit.wrong["name"] = "is missing: a value has one"
    query |= {TIMES[name]: read_time(fields[name]) for name in TIMES if name in fields}
    named = {parameter: name for name, parameter in TIMES.items()}
    named |= {"metadata": "name", f"metadata.{fields.get('name', '')}"[:64]: "value"}
    page = await visit.get_list("/v1/generations", named, **query)
    cards = [(each, media.read_files(each, visit.now)) for each in page["data"]]
    for _, files in cards:
        visit.show_media(files[:1])
    state = name_state((page, [file.is_expired for _, files in cards for file in files[:1]]))
    if visit.has_seen(state):
        return Response(status_code=204)
    hosts = (
        visit.request.query_params.get("hosts", "") if visit.is_live else " ".join(visit.origins)
    )
    if not set(visit.origins) <= set(hosts.split()):
        return visit.redirect()
    values = {"cards": cards, "next": page["next"], "state": state, "hosts": hosts}
    return visit.render("generations.html", 200, statuses=(*OPEN, *TERMINAL), **values)


async def show(visit: Visit) -> Response:
    """GET /dashboard/generations/{id}: live until the generation has ended.

    The policy of an open page does not have the origins of the result, so the page reloads.
    """
    path = f"/v1/generations/{visit.id}"
    generation = await visit.get(path)
    is_open = generation["status"] in OPEN
    if visit.is_live and not is_open:
        return visit.redirect()
    timeline = await visit.get(f"{path}/timeline")
    state = f"{generation['status']}.{len(timeline['data'])}"
    if visit.has_seen(state):
        return Response(status_code=204)
    files = media.read_files(generation, visit.now)
    visit.show_media(files)
    values: dict[str, Any] = {
        "generation": generation,
        "is_open": is_open,
        "state": state,
        "retryable": RETRYABLE,
        "files": files,
        "entries": timeline["data"],
        "axis": draw_axis(timeline["data"]),
    }
    return visit.render("generation.html", 200, **values)
