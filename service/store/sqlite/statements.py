"""The named SQL statements of `sql/*.sql`."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path


@cache
def statements() -> Mapping[str, str]:
    """Return every statement by its name. A line `-- name: NAME` begins a statement."""
    by_name: dict[str, str] = {}
    for file in sorted((Path(__file__).parent.parent / "sql").glob("*.sql")):
        for statement in file.read_text().split("-- name: ")[1:]:
            name, _, sql = statement.partition("\n")
            assert name not in by_name, f"two statements are named {name}"
            by_name[name] = sql.strip()
    return by_name
