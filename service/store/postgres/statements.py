"""The statements as PostgreSQL spells them."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from service.store.statements import Dialect, Statement

DIALECT = Dialect(
    {
        "index": "",
        "ordered": "",
        "unindexed": "{}",
        "greatest": "GREATEST",
        "least": "LEAST",
        "rows": "json_rows",
    },
    lambda number: f"${number}",
    numbered=True,
    overrides=[Path(__file__).with_name("overrides.sql")],
)


@cache
def statements() -> Mapping[str, Statement]:
    """Return every statement by its name."""
    return DIALECT.load()
