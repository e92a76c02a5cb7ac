"""The statements as PostgreSQL spells them."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from service.store.statements import Dialect, Statement

_TENANTS = """
WITH RECURSIVE tenants (tenant) AS (
    SELECT min(g.tenant) FROM generations g WHERE g.{} IS NOT NULL
    UNION ALL
    SELECT (SELECT min(g.tenant) FROM generations g
        WHERE g.{} IS NOT NULL AND g.tenant > tenants.tenant)
    FROM tenants WHERE tenants.tenant IS NOT NULL)"""

DIALECT = Dialect(
    {
        "index": "",
        "ordered": "",
        "sorted": "ORDER BY {}",  # So rows are locked in this order.
        "unindexed": "{}",
        "greatest": "GREATEST",
        "least": "LEAST",
        "kept": "FOR KEY SHARE",  # Whoever deletes the row has locked it.
        "each": "OFFSET 0",  # An EXISTS of each row; else it may read a whole table at once.
        "is_tried": "LEAST({}, 1)",
        "rows": "json_rows",
        "pairs": "jsonb_each_text",
        "json": "JSONB",
        "is_json": "is_json({})",
        "held": "AND {}.shard = ANY(:shards)",
        "held_id": "AND shard_of({}) = ANY(:shards)",
        "tenants": _TENANTS,
    },
    numbered=True,
    overrides=Path(__file__).with_name("overrides.sql"),
)


@cache
def statements() -> Mapping[str, Statement]:
    """Return every statement by its name."""
    return DIALECT.load()
