"""Converts rows to structs and back: some columns hold JSON, and integers become booleans."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import msgspec

from service.model import attempt, delivery, event, generation, key, replay, subscriber
from service.model.ids import time_of
from service.store.database import Row, Transaction
from service.telemetry import log

T = TypeVar("T", bound=msgspec.Struct)
V = TypeVar("V")
_log = log.get()

# The columns of any table that hold JSON.
JSON_COLUMNS = (
    *("input", "metadata", "output", "error", "event_ids", "scopes", "event_types"),
    *("filter", "header_names", "retry_schedule_seconds", "response_headers"),
)
# On one page these may have a million values, of clients and upstream: a second to decode them.
COPIED_COLUMNS = ("input", "output")


class _Names(NamedTuple):
    """The statements that read a noun by its id, insert it and update it."""

    by_id: str
    insert: str = ""  # Empty: another module inserts it, or changes it.
    update: str = ""


_STATEMENTS = {
    delivery.Delivery: _Names("delivery_by_id"),
    event.Event: _Names("event_by_id"),
    generation.Generation: _Names("generation_by_id"),
    key.Key: _Names("key_by_id", "key_insert"),
    replay.Replay: _Names("replay_by_id", "replay_insert", "replay_update"),
    subscriber.Subscriber: _Names("subscriber_by_id", "subscriber_insert", "subscriber_update"),
}
# msgspec prepares a struct at its first use, and crashes if two threads do that at once. So all
# structs that rows become are prepared here.
STRUCTS = {*_STATEMENTS, attempt.Attempt}
for _struct in STRUCTS:
    msgspec.json.Decoder(_struct)
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
    """Return a row as a struct, with `created_at` from the id if the table has no such column.

    ValueError or RecursionError if a value does not fit its field.
    """
    assert struct in STRUCTS, "threads would prepare this struct"
    values = dict(row)
    for name in JSON_COLUMNS:
        if values.get(name) is not None:
            values[name] = msgspec.json.decode(values[name])
    if "created_at" not in values:
        values["created_at"] = time_of(values["id"])
    return msgspec.convert(values, struct, strict=False)


def decode_rows(struct: type[T], rows: Iterable[Row]) -> list[T]:
    """Return the rows as structs, without those that cannot be decoded: one holds up no other."""
    return _each(partial(decode_row, struct), struct, rows)


def view_rows(struct: type[Any], rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return the views of the rows, without those that cannot be decoded.

    Their COPIED_COLUMNS are checked and copied as they are.
    """
    return _each(partial(_view_row, struct), struct, rows)


def _view_row(struct: type[Any], row: Row) -> dict[str, Any]:
    copied = {
        name: msgspec.json.decode(row[name], type=msgspec.Raw)
        for name in COPIED_COLUMNS
        if name in row.keys() and row[name] is not None  # noqa: SIM118  a row is no dict
    }
    view = decode_row(struct, {**dict(row), **dict.fromkeys(copied, "{}")}).view()
    return {**view, **copied}


def _each(decode: Callable[[Row], V], struct: type[Any], rows: Iterable[Row]) -> list[V]:
    decoded: list[V] = []
    for row in rows:
        try:
            decoded.append(decode(row))
        except (ValueError, RecursionError) as error:
            _log.error("row.unreadable", noun=struct.__name__, id=row["id"], error=str(error))
    return decoded


async def read_one(tx: Transaction, struct: type[T], name: str, /, **values: object) -> T | None:
    """Return the first row of the statement as a struct, or None."""
    row = await tx.one(name, **values)
    return None if row is None else decode_row(struct, row)


async def read_by_id(
    tx: Transaction, struct: type[T], id_: str, tenant: str | None = None
) -> T | None:
    """Return the noun with this id; a key, an event or a delivery only if it is the tenant's.

    For a key, None is any tenant. For the other nouns `tenant` is ignored: the caller compares it.
    """
    return await read_one(tx, struct, _STATEMENTS[struct].by_id, id=id_, tenant=tenant)


async def lock_by_id(
    tx: Transaction, struct: type[T], id_: str, tenant: str | None = None
) -> T | None:
    """Like `read_by_id`, and lock the row, as whoever changes it must."""
    matches = await tx.lock(_STATEMENTS[struct].by_id, id=id_, tenant=tenant)
    return decode_row(struct, matches[0]) if matches else None


async def insert(tx: Transaction, new: msgspec.Struct, **columns: object) -> None:
    """Store a new noun, with further columns that its struct does not have."""
    await tx.run(_STATEMENTS[type(new)].insert, **encode_row(new), **columns)


async def update(tx: Transaction, old: T, **changes: Any) -> T:
    """Store `changes` to a noun that is locked; return the changed one."""
    assert old.id in tx.locked, "a row is changed that is not locked"  # type: ignore[attr-defined]
    new = msgspec.structs.replace(old, **changes)
    await tx.run(_STATEMENTS[type(new)].update, **encode_row(new))
    return new


async def read_all(tx: Transaction, struct: type[T], name: str, /, **values: object) -> list[T]:
    """Return every row of the statement that can be decoded as a struct."""
    return decode_rows(struct, await tx.all(name, **values))


async def read_number(tx: Transaction, name: str, /, **values: object) -> int | None:
    """Return the only column of the statement's first row; None without a row."""
    row = await tx.one(name, **values)
    return next(iter(dict(row).values())) if row else None
