"""The routes that show what callbacks came."""

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


async def list_(call: Call) -> Answer:
    """GET /v1/callbacks; rejected ones that no token names are for admins."""
    tenants = [call.tenant, ""] if call.may("admin") else [call.tenant]
    only = pages.Callbacks(
        verdict=call.query_choice("verdict", VERDICTS),
        generation_id=call.query_id("generation_id", "gen"),
    )
    rows, more = await call.context.database.read(pages.callbacks, call.page("cb"), tenants, only)
    return listed([_view(row) for row in rows], more=more)


async def get(call: Call) -> Answer:
    """GET /v1/callbacks/{id}, with headers and body, secrets cut out."""
    tenants = [call.tenant, ""] if call.may("admin") else [call.tenant]
    for tenant in tenants:
        row = await call.context.database.read(callbacks.get, tenant, call.path["id"])
        if row is not None:
            return Answer(content={**_view(row), **_raw(row)})
    raise not_found("callback")


def _view(row: Row) -> dict[str, Any]:
    return {
        "id": row["id"],
        "generation_id": row["generation_id"],
        "upstream": row["upstream"],
        "received_at": rfc3339(row["received_at"]),
        "verdict": row["verdict"],
        "reason": row["reason"],
        "trust": row["trust"],
    }


_SECRET_HEADERS = ("authorization", "cookie", "proxy-authorization")


def _raw(row: Row) -> dict[str, Any]:
    lines = msgspec.json.decode(row["headers"], type=list[tuple[str, str]])
    headers = joined_headers(
        (name, "[redacted]" if name in _SECRET_HEADERS else log.redact(value))
        for name, value in lines
    )
    try:
        return {
            "headers": headers,
            "body": log.redact(row["body"].decode()),
            "body_encoding": "utf-8",
        }
    except UnicodeDecodeError:
        strange = log.redact(row["body"].decode("latin-1")).encode("latin-1")
        body = base64.b64encode(strange).decode()
        return {"headers": headers, "body": body, "body_encoding": "base64"}
