"""Conversion between rows and structs: JSON columns are decoded, integers become booleans."""

from typing import TypeVar

import msgspec

from service.store.database import Row

T = TypeVar("T", bound=msgspec.Struct)

encode = msgspec.json.Encoder().encode
decode = msgspec.json.decode


def json_text(value: object) -> str:
    """Return `value` as JSON, for a TEXT column."""
    return encode(value).decode()


def convert(struct: type[T], row: Row, *, json: frozenset[str] = frozenset()) -> T:
    """Return a row as a struct. The columns in `json` are decoded, and all types are checked."""
    values = dict(row)
    for name in json:
        value = values.get(name)
        if value is not None:
            values[name] = decode(value)
    return msgspec.convert(values, struct, strict=False)
