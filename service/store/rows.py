"""Between rows and nouns: JSON columns decoded, booleans made of integers."""

from typing import Any, TypeVar

import msgspec

from service.store.database import Row

T = TypeVar("T", bound=msgspec.Struct)

encode = msgspec.json.Encoder().encode
decode = msgspec.json.decode


def text(value: object) -> str:
    """`value` as JSON text, for a TEXT column."""
    return encode(value).decode()


def noun(kind: type[T], row: Row, *, json: frozenset[str] = frozenset()) -> T:
    """The struct `kind` from a row, its `json` columns decoded and its types checked."""
    names = set(row.keys())
    values: dict[str, Any] = {}
    for field in kind.__struct_fields__:
        if field in names:
            value = row[field]
            values[field] = decode(value) if field in json and value is not None else value
    return msgspec.convert(values, kind, strict=False)
