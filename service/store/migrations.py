"""Numbered migrations of a folder, and what is wrong with the version of a schema."""

from pathlib import Path


def list_migrations(folder: Path) -> list[tuple[int, Path]]:
    """Return the migrations of this genhook as (number, file), in order."""
    return sorted((int(path.name[:4]), path) for path in folder.glob("*.sql"))


class Newer(str):
    """The problem that a newer genhook made the schema. Running processes go on with it."""

    __slots__ = ()


class Older(str):
    """The problem that the schema is older or missing, which `genhook migrate` or a start mends."""

    __slots__ = ()


def describe_problem(current: int, needed: int) -> str | None:
    """Return what is wrong with a database of schema `current`, or None.

    `genhook copy` makes the version negative until the copy has ended: nothing else then uses it.
    """
    if current < 0:
        return "a copy to the database has not ended: run genhook copy again, or delete it"
    if current == needed:
        return None
    if current > needed:
        return Newer(
            f"the database has schema {current}, made by a newer genhook; this one knows {needed}"
        )
    return Older(
        f"the database has schema {current}, this genhook needs {needed}: run genhook migrate"
    )
