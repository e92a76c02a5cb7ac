"""Models side by side, and a form to try one: it names the price and asks before it spends."""

from collections.abc import Mapping
from typing import Any, get_args

from starlette.responses import Response

from service.dashboard.acts import Form
from service.dashboard.calls import LIMIT_MAX, ApiCall
from service.dashboard.visit import RefusedError, Visit
from service.model import json_input
from service.upstream import catalogue

LONG_TEXTS = ("prompt", "lyrics", "negative_prompt", "text", "style")
Table = Mapping[str, Any]


async def show_list(visit: Visit) -> Response:
    """GET /dashboard/models: the whole catalogue fits on a page of the API."""
    page = await visit.get_list("/v1/models", limit=str(LIMIT_MAX), **visit.filters)
    return visit.render("models.html", 200, kinds=get_args(catalogue.Kind), models=page["data"])


async def show_try(visit: Visit) -> Response:
    """GET /dashboard/models/try: the form for `?model=`."""
    model = await visit.get(f"/v1/models/{visit.filters.get('model') or 'imagen4-fast'}")
    return _render_form(visit, model, {}, [])


async def run_try(visit: Visit, form: Form) -> Response:
    """POST /dashboard/models/try: name the price and ask; once confirmed, create the generation."""
    model = await visit.get(f"/v1/models/{form.get('model', '')}")
    input_, errors = _read_input(model, form)
    known = visit.site.context.catalogue[model["id"]]
    errors += catalogue.problems(known, input_) if not errors else []
    if errors or form.get("edit"):
        return _render_form(visit, model, form, errors)
    call = ApiCall(
        method="POST", path="/v1/generations", body={"model": model["id"], "input": input_}
    )
    if form.get("confirmed") != "yes":
        price = catalogue.credits(known, input_)
        values = {"model": model, "form": form, "call": call, "credits": price}
        values["is_capped"] = price >= catalogue.CREDITS_MAX
        return visit.render("try_confirm.html", 200, **values)
    # With its Idempotency-Key, a second click or a form that is sent again costs nothing.
    reply = await visit.send_form(call, form)
    if reply.errors:
        errors = [(pointer.removeprefix("/input"), text) for pointer, text in reply.errors]
        return _render_form(visit, model, form, errors)
    if not reply.is_success:
        raise RefusedError(reply)
    return visit.redirect_after("models.try", f"/generations/{reply.content['id']}")


def _render_form(visit: Visit, model: Table, form: Form, errors: list[tuple[str, str]]) -> Response:
    messages = {pointer.strip("/"): text for pointer, text in errors}
    inputs = [_input(name, schema, model) for name, schema in _properties(model)]
    names = {each["name"] for each in inputs}
    values = {
        "model": model,
        "inputs": sorted(inputs, key=lambda each: not each["is_required"]),
        "form": form,
        "errors": messages,
        "other_errors": {n: text for n, text in messages.items() if n not in names},
    }
    return visit.render("try.html", 422 if errors else 200, **values)


def _properties(model: Table) -> list[tuple[str, Table]]:
    return list(model["parameters"].get("properties", {}).items())


def _input(name: str, schema: Table, model: Table) -> dict[str, Any]:
    """Return what a form field needs: its kind, its choices, its limits and its default."""
    kind = _field_kind(name, schema)
    return {
        "name": name,
        "kind": kind,
        "choices": schema.get("enum", ()),
        "is_required": name in model["parameters"].get("required", ()),
        "default": schema.get("default"),
        "min": schema.get("minimum", schema.get("minLength")),
        "max": schema.get("maximum", schema.get("maxLength")),
        "example": next(iter(schema.get("examples", ())), ""),
        "description": schema.get("description", ""),
    }


def _field_kind(name: str, schema: Table) -> str:
    if "enum" in schema:
        return "choice"
    kind = schema.get("type", "json")
    if kind == "string":
        return "long" if name in LONG_TEXTS else "text"
    return kind if kind in ("boolean", "integer", "number") else "json"


def _read_input(model: Table, form: Form) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Return the input in the form's fields `input.*`, and errors as (JSON pointer, message)."""
    input_: dict[str, Any] = {}
    errors: list[tuple[str, str]] = []
    for name, schema in _properties(model):
        text = form.get(f"input.{name}", "").replace("\r\n", "\n").strip()
        if not text:
            continue
        try:
            input_[name] = _parse(text, _field_kind(name, schema), schema)
        except (ValueError, RecursionError):
            errors.append((f"/{name}", "cannot be read"))
    return input_, errors


def _parse(text: str, kind: str, schema: Table) -> Any:
    if kind == "choice":
        return next(each for each in (*schema["enum"], text) if str(each) == text)
    if kind == "boolean":
        return text == "true"
    if kind in ("integer", "number"):
        return int(text) if text.lstrip("-").isdigit() else float(text)
    if kind == "json":
        return json_input.decode(text.encode())
    return text
