"""Callbacks: list them, and get one as it was received."""

import base64
from functools import partial
from typing import Any

import msgspec

from service.api.call import Answer, Call, answer, answer_list
from service.api.problem import require
from service.model.attempt import joined_headers
from service.model.callback import VERDICTS
from service.model.clock import rfc3339
from service.model.ids import time_of
from service.store import callbacks
from service.store.database import Row, Unit
from service.store.pages import Rows
from service.telemetry.redact import Redactor
from service.upstream import reading

# The tenant of callbacks without a valid token: they may be anybody's, so only operators see them.
UNOWNED = ""
# Redacting so much takes up to 6 ms: the worst are texts under secret names, and escapes.
SHOWN_ON_LOOP_BYTES = 16_384


async def list_(call: Call) -> Answer:
    """GET /v1/callbacks."""
    verdict = call.query_choice("verdict", VERDICTS)
    filters = verdict, call.query_id("generation_id", "gen")
    tenant = call.tenant if call.key.has("read") else UNOWNED
    sees_unowned = call.key.has("operator") and tenant != UNOWNED
    read: Unit[Rows] = callbacks.list_page_with_unowned if sees_unowned else callbacks.list_page
    rows, after = await call.database.search(call.tenant, read, call.page("cb"), tenant, *filters)
    return answer_list([_view(row) for row in rows], after)


async def get(call: Call) -> Answer:
    """GET /v1/callbacks/{id}: with headers and body, secrets redacted."""
    row = None
    if call.key.has("read"):
        row = await call.database.read(callbacks.get, call.tenant, call.path["id"])
    if row is None and call.key.has("operator"):
        row = await call.database.read(callbacks.get, UNOWNED, call.path["id"])
    row = require("callback", row)
    view_raw, size = partial(_raw_view, row, call.context.redactor), len(row["body"])
    if size <= SHOWN_ON_LOOP_BYTES:
        return answer({**_view(row), **view_raw()})
    async with call.context.redactions.turn(call.tenant, size):
        return answer({**_view(row), **await reading.read_for_client(view_raw)})


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


def _raw_view(row: Row, redactor: Redactor) -> dict[str, Any]:
    lines = msgspec.json.decode(row["headers"], type=list[tuple[str, str]])
    # They were redacted when they were stored, but with the secrets of that time.
    headers = joined_headers((name, redactor.header(name, value)) for name, value in lines)
    body, encoding = redactor.body(row["body"]), "utf-8"
    if isinstance(body, bytes):
        body, encoding = base64.b64encode(body).decode(), "base64"
    return {"headers": headers, "body": body, "body_encoding": encoding}
