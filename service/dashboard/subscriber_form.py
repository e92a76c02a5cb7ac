"""The form that changes a subscriber: it sends only the fields that its reader changed."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from service.dashboard.acts import Form
from service.dashboard.calls import ApiCall
from service.dashboard.formats import write_json
from service.dashboard.visit import RefusedError, Visit
from service.model import json_input
from service.model.event import EVENT_TYPES

# The fields that the form changes with a PATCH. The status has buttons.
API_FIELDS = (
    *("url", "description", "event_types", "filter", "headers", "max_in_flight"),
    *("rate_per_second", "retry_schedule_seconds", "ordered", "payload"),
)
Texts = Mapping[str, str]
Errors = list[tuple[str, str]]  # Pairs of a JSON pointer and a message.


async def show(visit: Visit) -> Response:
    """GET /dashboard/subscribers/{id}/edit."""
    subscriber = await visit.get(f"/v1/subscribers/{visit.id}")
    if subscriber["for_notify_url"]:  # Only its status can change, which has buttons there.
        return visit.redirect(f"/subscribers/{visit.id}")
    visit.show_call(_change(visit, {name: subscriber[name] for name in API_FIELDS}))
    texts = _write(subscriber)
    return _render(visit, subscriber, texts, texts, [])


async def run(visit: Visit, form: Form) -> Response:
    """POST /dashboard/subscribers/{id}/edit: fields that another reader changed stay."""
    subscriber = await visit.get(f"/v1/subscribers/{visit.id}")
    texts = {name: _unify_line_ends(form.get(name, "")) for name in READERS}
    was = _read_was(form.get("was", ""))
    changes, errors = _read({n: text for n, text in texts.items() if text != was.get(n)}, texts)
    if changes and not errors:
        reply = await visit.send(_change(visit, changes))
        errors = reply.errors
        if not errors and not reply.is_success:
            raise RefusedError(reply)
    if errors:
        return _render(visit, subscriber, texts, was, errors)
    done = "subscribers.edit" if changes else "subscribers.same"
    return visit.redirect_after(done, f"/subscribers/{visit.id}")


def _change(visit: Visit, changes: Mapping[str, Any]) -> ApiCall:
    return ApiCall(method="PATCH", path=f"/v1/subscribers/{visit.id}", body=changes)


def _render(
    visit: Visit, subscriber: Mapping[str, Any], texts: Texts, was: Texts, errors: Errors
) -> Response:
    values = {
        "subscriber": subscriber,
        "texts": texts,
        "was": msgspec.json.encode(was).decode(),
        "errors": [(_name_of(pointer), pointer, message) for pointer, message in errors],
        "event_types": EVENT_TYPES,
    }
    return visit.render("subscriber_edit.html", 422 if errors else 200, **values)


def _name_of(pointer: str) -> str:
    """Return the field of the form to which a JSON pointer into the body belongs."""
    name = pointer.removeprefix("/filter").split("/")[1] if "/" in pointer else ""
    return name if name in READERS else ""


def _write(subscriber: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields of the form as a subscriber has them."""
    metadata, rate = subscriber["filter"]["metadata"], subscriber["rate_per_second"]
    texts = {
        "url": subscriber["url"],
        "description": subscriber["description"],
        "event_types": " ".join(t for t in EVENT_TYPES if t in subscriber["event_types"]),
        "models": "\n".join(subscriber["filter"]["models"]),
        "metadata": write_json(metadata) if metadata else "",
        "headers": "\n".join(f"{name}: {text}" for name, text in subscriber["headers"].items()),
        "max_in_flight": str(subscriber["max_in_flight"]),
        "rate_per_second": "" if rate is None else str(rate).removesuffix(".0"),
        "retry_schedule_seconds": ", ".join(map(str, subscriber["retry_schedule_seconds"])),
        "ordered": "true" if subscriber["ordered"] else "false",
        "payload": subscriber["payload"],
    }
    return {name: _unify_line_ends(text) for name, text in texts.items()}


def _unify_line_ends(text: str) -> str:
    """Return a text with newlines as line ends, as before a browser sent it."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_was(text: str) -> dict[str, str]:
    """Return the fields as they were when the form was shown."""
    try:
        return msgspec.json.decode(text, type=dict[str, str])
    except (msgspec.DecodeError, RecursionError):
        raise HTTPException(400, "The form cannot be read. Load the page again.") from None


def _read(changed: Texts, texts: Texts) -> tuple[dict[str, Any], Errors]:
    """Return the body of the PATCH, and the errors; a filter is replaced as a whole."""
    names = set(changed)
    if names & set(_FILTER):
        names |= set(_FILTER)
    values: dict[str, Any] = {}
    errors: Errors = []
    for name in (each for each in READERS if each in names):
        try:
            values[name] = READERS[name](texts[name])
        except ValueError as error:  # msgspec's are, too.
            errors.append((f"/{'filter/' * (name in _FILTER)}{name}", str(error)))
    if not errors and names & set(_FILTER):
        values["filter"] = {name: values.pop(name) for name in _FILTER}
    return values, errors


def _read_metadata(text: str) -> dict[str, str]:
    try:
        document = json_input.decode(text.encode()) if text.strip() else {}
        return msgspec.convert(document, dict[str, str])
    except json_input.RepeatedNameError:
        raise ValueError("contains a name twice") from None
    except (ValueError, RecursionError):
        raise ValueError('must be a JSON object of texts, such as {"team": "pictures"}') from None


def _read_headers(text: str) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in filter(str.strip, text.split("\n")):
        name, colon, value = (part.strip() for part in line.partition(":"))
        if not colon or not name:
            raise ValueError("must have a name, a colon and a value in each line")
        if name in headers:
            raise ValueError("contains a header twice")
        headers[name] = value
    return headers


def _read_whole(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError("must be a whole number")
    return int(text)


def _read_rate(text: str) -> float | None:
    text = text.strip()
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):  # `nan` would become no limit.
        raise ValueError("must be a number such as 0.5, or empty")
    return float(text)


def _read_schedule(text: str) -> Sequence[int]:
    parts = [part for part in re.split(r"[,\s]+", text) if part]
    if not all(re.fullmatch(r"[0-9]{1,9}", part) for part in parts):
        raise ValueError("must be whole seconds, separated by commas")
    return [int(part) for part in parts]


_FILTER = ("models", "metadata")
# The function that turns the text of each field into its value; ValueError with the rule.
READERS: Mapping[str, Callable[[str], Any]] = {
    "url": str.strip,
    "description": str,
    "event_types": str.split,
    "models": str.split,
    "metadata": _read_metadata,
    "headers": _read_headers,
    "max_in_flight": lambda text: _read_whole(text.strip()),
    "rate_per_second": _read_rate,
    "retry_schedule_seconds": _read_schedule,
    "ordered": lambda text: text == "true",
    "payload": str,
}
