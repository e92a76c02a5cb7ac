"""Callbacks: list them, and get one as it was received."""

import base64
from typing import Any

import msgspec

from service.api.call import Answer, Call, answer, answer_list
from service.api.problem import require
from service.model.attempt import joined_headers
from service.model.clock import rfc3339
from service.model.ids import time_of
from service.store import callbacks
from service.store.database import Row
from service.telemetry.redact import redact

VERDICTS = ("accepted", "duplicate", "late", "unreadable", "rejected")
_SECRET_HEADERS = ("authorization", "cookie", "proxy-authorization")


async def list_(call: Call) -> Answer:
    """GET /v1/callbacks."""
    verdict = call.query_choice("verdict", VERDICTS)
    only = verdict, call.query_id("generation_id", "gen")
    # Those with an invalid token have no tenant.
    read = callbacks.list_page_with_unowned if call.key.has("admin") else callbacks.list_page
    rows, after = await call.database.search(call.tenant, read, call.page("cb"), call.tenant, *only)
    return answer_list([_view(row) for row in rows], after)


async def get(call: Call) -> Answer:
    """GET /v1/callbacks/{id}: with headers and body, secrets redacted."""
    row = await call.database.read(callbacks.get, call.tenant, call.path["id"])
    if row is None and call.key.has("admin"):
        row = await call.database.read(callbacks.get, "", call.path["id"])
    row = require("callback", row)
    return answer({**_view(row), **_raw_view(row)})


def _view(row: Row) -> dict[str, Any]:
    return {
        "id": row["id"],
        "generation_id": row["generation_id"] or None,
        "upstream": row["upstream"],
        "received_at": rfc3339(time_of(row["id"])),
        "verdict": row["verdict"],
        "reason": row["reason"],
        "trust": row["trust"],
    }


def _raw_view(row: Row) -> dict[str, Any]:
    lines = msgspec.json.decode(row["headers"], type=list[tuple[str, str]])
    headers = joined_headers(
        (name, "[redacted]" if name in _SECRET_HEADERS else redact(value)) for name, value in lines
    )
    try:
        body, encoding = redact(row["body"].decode()), "utf-8"
    except UnicodeDecodeError:
        redacted = redact(row["body"].decode("latin-1")).encode("latin-1")
        body, encoding = base64.b64encode(redacted).decode(), "base64"
    return {"headers": headers, "body": body, "body_encoding": encoding}
