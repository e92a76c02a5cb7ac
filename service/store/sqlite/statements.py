"""The statements as SQLite spells them."""

from collections.abc import Mapping
from functools import cache

from service.store.statements import Dialect, Statement

DIALECT = Dialect(
    {
        "index": "INDEXED BY {}",
        "ordered": "CROSS",  # SQLite then joins the tables in the order in which they stand.
        "unindexed": "+{}",
        "greatest": "max",
        "least": "min",
        "each": "",
        "is_tried": "({} > 0)",  # As in the indexes: 0 or 1.
        "held": "",  # Who works holds all shards.
        "held_id": "",
        "rows": "json_each",  # The elements of a JSON list, as `key` and `value`.
        "pairs": "json_each",  # The members of a JSON object, as `key` and `value`.
        "json": "TEXT",  # The type that `pairs` takes.
        "json_list": "json_group_array({})",  # An aggregate.
        "is_json": "json_valid({})",
    },
    lambda _number: "?",
    numbered=False,
)


@cache
def statements() -> Mapping[str, Statement]:
    """Return every statement by its name."""
    return DIALECT.load()
