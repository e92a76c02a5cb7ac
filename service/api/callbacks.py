"""Callbacks: list them, and get one as it was received."""

import base64
from typing import Any

import msgspec

from service.api.call import Answer, Call, listed
from service.api.problem import not_found
from service.model.clock import rfc3339
from service.model.headers import joined_headers
from service.store import callbacks, pages
from service.store.database import Row
from service.telemetry import log

VERDICTS = ("accepted", "duplicate", "late", "unreadable", "rejected")
_FIELDS = ("id", "generation_id", "upstream", "received_at", "verdict", "reason", "trust")
_SECRET_HEADERS = ("authorization", "cookie", "proxy-authorization")


async def list_(call: Call) -> Answer:
    """GET /v1/callbacks."""
    only = pages.Callbacks(
        verdict=call.query_choice("verdict", VERDICTS),
        generation_id=call.query_id("generation_id", "gen"),
    )
    page, tenants = call.page("cb"), _tenants(call)
    rows, more = await call.database.read(pages.callbacks, page, tenants, only)
    return listed([_view(row) for row in rows], more=more)


async def get(call: Call) -> Answer:
    """GET /v1/callbacks/{id}: with headers and body, secrets redacted."""
    for tenant in _tenants(call):
        row = await call.database.read(callbacks.get, tenant, call.path["id"])
        if row is not None:
            return Answer(content={**_view(row), **_raw_view(row)})
    raise not_found("callback")


def _tenants(call: Call) -> list[str]:
    """Return whose callbacks the key may see. Those with an invalid token have no tenant."""
    return [call.tenant, ""] if call.key.has("admin") else [call.tenant]


def _view(row: Row) -> dict[str, Any]:
    view = {name: row[name] for name in _FIELDS}
    return {**view, "received_at": rfc3339(row["received_at"])}


def _raw_view(row: Row) -> dict[str, Any]:
    lines = msgspec.json.decode(row["headers"], type=list[tuple[str, str]])
    headers = joined_headers(
        (name, "[redacted]" if name in _SECRET_HEADERS else log.redact(value))
        for name, value in lines
    )
    try:
        body, encoding = log.redact(row["body"].decode()), "utf-8"
    except UnicodeDecodeError:
        redacted = log.redact(row["body"].decode("latin-1")).encode("latin-1")
        body, encoding = base64.b64encode(redacted).decode(), "base64"
    return {"headers": headers, "body": body, "body_encoding": encoding}
