"""Rows as structs and structs as rows: some columns hold JSON, and integers become booleans."""

from typing import Any, TypeVar

import msgspec

from service.model.ids import time_of
from service.store.database import Row, Transaction

T = TypeVar("T", bound=msgspec.Struct)

# The columns of any table that hold JSON.
JSON_COLUMNS = (
    *("input", "metadata", "output", "error", "event_ids", "scopes", "event_types"),
    *("filter", "header_names", "retry_schedule_seconds", "response_headers"),
)
encode = msgspec.json.Encoder().encode


def json_text(value: object) -> str:
    """Return `value` as JSON, for a TEXT column."""
    return encode(value).decode()


def encode_row(struct: msgspec.Struct) -> dict[str, Any]:
    """Return the fields of a struct as the values of its columns."""
    return encode_json(msgspec.structs.asdict(struct))


def encode_json(values: dict[str, Any]) -> dict[str, Any]:
    """Encode the columns that hold JSON in place; return all columns."""
    for name in JSON_COLUMNS:
        if values.get(name) is not None:
            values[name] = json_text(values[name])
    return values


def decode_row(struct: type[T], row: Row) -> T:
    """Return a row as a struct, all types checked. `created_at` may be in the id alone."""
    values = dict(row)
    for name in JSON_COLUMNS:
        if values.get(name) is not None:
            values[name] = msgspec.json.decode(values[name])
    if "created_at" not in values:
        values["created_at"] = time_of(values["id"])
    return msgspec.convert(values, struct, strict=False)


async def read_one(tx: Transaction, struct: type[T], name: str, /, **values: object) -> T | None:
    """Return the first row of the statement as a struct, or None."""
    row = await tx.one(name, **values)
    return None if row is None else decode_row(struct, row)


async def read_all(tx: Transaction, struct: type[T], name: str, /, **values: object) -> list[T]:
    """Return every row of the statement as a struct."""
    return [decode_row(struct, row) for row in await tx.all(name, **values)]


async def read_number(tx: Transaction, name: str, /, **values: object) -> int | None:
    """Return the only column of the statement's first row; None without a row."""
    row = await tx.one(name, **values)
    number: int | None = next(iter(dict(row).values())) if row else None
    return number
