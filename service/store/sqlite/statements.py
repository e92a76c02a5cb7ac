"""The SQL of `sql/*.sql`, by name."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path


@cache
def statements() -> Mapping[str, str]:
    """Every statement of `sql/*.sql` by its name: `-- name: NAME`, then its text up to the next."""
    by_name: dict[str, str] = {}
    for file in sorted((Path(__file__).parent.parent / "sql").glob("*.sql")):
        for statement in file.read_text().split("-- name: ")[1:]:
            name, _, text = statement.partition("\n")
            assert name not in by_name, f"two statements are named {name}"
            by_name[name] = text.strip()
    return by_name
