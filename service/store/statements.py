"""The named SQL statements of `sql/*.sql`: one text for both databases, with marks for the rest.

A mark is `{name}` or `{name word}`. Each database has a text for each mark, in which the word takes
the place of each `{}`. `{held g}` and `{held_id column}` keep only rows whose shard this process
holds. A text that several statements share begins with a line `-- part: NAME`, and the mark
`{NAME}` inserts it; a mark of a database replaces a part of the same name. A statement that differs
as a whole stands again, under the same name, in the overrides of a database.

A line `-- lock: g, b` names the tables whose rows `Transaction.lock` locks, in the order in which
the statement returns them: it has `{sorted g.id}`, unless it has an ORDER BY. A statement that also
looks at tables whose rows it does not lock has `-- lock, then look again: g` instead: other
transactions may change them while PostgreSQL waits for a lock, and it shows them as they were
before.
"""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

_SECTION = re.compile(r"(?ms)^-- (name|part): (\w+)\n(.*?)(?=^-- (?:name|part): |\Z)")
_MARK = re.compile(r"\{(\w+)(?: ([\w.]+))?\}")
_PARAMETER = re.compile(r"'[^']*'|--[^\n]*|::|:(?P<name>\w+)")
_LOCK = re.compile(r"(?m)^-- lock(, then look again)?: (\w+(?:, \w+)*)$")
_FOLDER = Path(__file__).parent / "sql"
_COMPOSED_MAX = 500  # Statements that are cached: a list has one for each set of filters.


class Lock(NamedTuple):
    """What `Transaction.lock` locks of a statement's rows."""

    tables: str = ""  # As `FOR UPDATE OF` names them; empty if it may not lock.
    looks_again: bool = False


class Statement(NamedTuple):
    """A statement with the database's parameters, and the function that orders values for them.

    SQLite's driver binds a sequence in less than half of the time that it takes for a mapping.
    """

    sql: str
    bind: Callable[[Mapping[str, Any]], tuple[Any, ...]]
    lock: Lock = Lock()


class Dialect:
    """The marks and the overrides of one database.

    Parameters are `?`, or `$1` and so on if they are `numbered`: a value that is used twice is one
    parameter then.
    """

    def __init__(
        self, marks: Mapping[str, str], *, numbered: bool, overrides: Path | None = None
    ) -> None:
        self._marks = marks
        self._numbered = numbered
        self._overrides = overrides
        self.compose = lru_cache(_COMPOSED_MAX)(self.parse)

    def load(self) -> Mapping[str, Statement]:
        """Return every statement by its name. A line `-- name: NAME` begins a statement."""
        by_name: dict[str, Statement] = {}
        parts: dict[str, str] = {}
        for path in sorted(_FOLDER.glob("*.sql")):
            read = self._read(path, parts)
            assert by_name.keys().isdisjoint(read), f"{path.name} has a name of another file"
            by_name |= read
        if self._overrides:
            read = self._read(self._overrides, parts)
            assert by_name.keys() >= read.keys(), "an override overrides no statement"
            by_name |= read
        return by_name

    def _read(self, path: Path, parts: dict[str, str]) -> dict[str, Statement]:
        """Return the statements of a file by name; add its parts to `parts`."""
        sections = _SECTION.findall(path.read_text())
        texts = {name: sql.strip() for kind, name, sql in sections if kind == "name"}
        own = {name: sql.strip() for kind, name, sql in sections if kind == "part"}
        assert len(texts) + len(own) == len(sections), f"{path.name} has a name twice"
        assert parts.keys().isdisjoint(own), f"{path.name} has a part of another file"
        parts |= own
        return {name: self.parse(sql, parts) for name, sql in texts.items()}

    def parse(self, sql: str, parts: Mapping[str, str] | None = None) -> Statement:
        """Return a statement from its text with marks and `:name`s."""
        marks = {**(parts or {}), **self._marks}
        names: list[str] = []

        def place(match: re.Match[str]) -> str:
            name = match["name"]
            if name is None:
                return match[0]
            if not (self._numbered and name in names):
                names.append(name)
            return f"${names.index(name) + 1}" if self._numbered else "?"

        def fill(mark: re.Match[str]) -> str:
            return marks[mark[1]].replace("{}", mark[2] or "")

        match = _LOCK.search(sql)
        lock = Lock(match[2], looks_again=match[1] is not None) if match else Lock()
        sql = _LOCK.sub("", sql).strip().removesuffix(";")
        filled = _MARK.sub(fill, _MARK.sub(fill, sql))  # A part may have marks, too.
        text = _PARAMETER.sub(place, filled)
        return Statement(text, _binder(names), lock)


def _binder(names: list[str]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    if len(names) > 1:
        return itemgetter(*names)
    return lambda values: tuple(values[name] for name in names)
