"""Between rows and nouns: JSON columns decoded, booleans made of integers."""

from typing import TypeVar

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
    values = dict(row)
    for name in json:
        value = values.get(name)
        if value is not None:
            values[name] = decode(value)
    return msgspec.convert(values, kind, strict=False)
