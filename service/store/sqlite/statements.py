"""The statements as SQLite spells them."""

from collections.abc import Mapping
from functools import cache

from service.store.statements import Dialect, Statement

DIALECT = Dialect(
    {
        "index": "INDEXED BY {}",
        "sorted": "",
        "ordered": "CROSS",  # CROSS JOIN keeps the order of the tables (optoverview.html).
        "unindexed": "+{}",
        "greatest": "max",
        "least": "min",
        "kept": "",  # The file has one writer.
        "each": "",
        "is_tried": "({} > 0)",  # 0 or 1, the expression of the indexes.
        "held": "",  # The one worker holds all shards.
        "held_id": "",
        "rows": "json_each",  # The elements of a JSON list, as `key` and `value`.
        "pairs": "json_each",  # The members of a JSON object, as `key` and `value`.
        "json": "TEXT",  # The type that `pairs` takes.
        "is_json": "json_valid({})",
    },
    numbered=False,
)


@cache
def statements() -> Mapping[str, Statement]:
    """Return every statement by its name."""
    return DIALECT.load()
