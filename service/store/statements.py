"""The named SQL statements of `sql/*.sql`: one text for every database, with marks where they differ.

A mark is `{name}` or `{name argument}`; each database gives a text for each of them. A statement
that really differs stands again, under the same name, among the overrides of a database.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

_MARK = re.compile(r"\{(\w+)(?: ([\w.]+))?\}")
_PARAMETER = re.compile(r"'[^']*'|--[^\n]*|::|:(?P<name>\w+)")
_FOLDER = Path(__file__).parent / "sql"
_COMPOSED_MAX = 500  # Lists compose a statement for each set of their filters.


class Statement(NamedTuple):
    """A statement with the database's parameters, and the function that orders values for them.

    SQLite's driver binds a sequence in less than half of the time that it takes for a mapping.
    """

    sql: str
    bind: Callable[[Mapping[str, Any]], tuple[Any, ...]]


class Dialect:
    """How one database spells what the statements leave open.

    `parameter` returns the text of the n-th parameter, from 1. If they are `numbered`, a value that
    is used twice is one parameter.
    """

    def __init__(
        self,
        marks: Mapping[str, str],
        parameter: Callable[[int], str],
        *,
        numbered: bool,
        overrides: Iterable[Path] = (),
    ) -> None:
        self._marks = marks
        self._parameter = parameter
        self._numbered = numbered
        self._overrides = tuple(overrides)
        self.compose = lru_cache(_COMPOSED_MAX)(self.parse)

    def load(self) -> Mapping[str, Statement]:
        """Return every statement by its name. A line `-- name: NAME` begins a statement."""
        texts: dict[str, str] = {}
        for path in sorted(_FOLDER.glob("*.sql")):
            for name, sql in _split(path):
                assert name not in texts, f"two statements are named {name}"
                texts[name] = sql
        for path in self._overrides:
            for name, sql in _split(path):
                assert name in texts, f"{name} overrides no statement"
                texts[name] = sql
        return {name: self.parse(sql) for name, sql in texts.items()}

    def parse(self, sql: str) -> Statement:
        """Return a statement from its text with marks and `:name`s."""
        names: list[str] = []

        def place(match: re.Match[str]) -> str:
            name = match["name"]
            if name is None:
                return match[0]
            if self._numbered and name in names:
                return self._parameter(names.index(name) + 1)
            names.append(name)
            return self._parameter(len(names))

        filled = _MARK.sub(lambda mark: self._marks[mark[1]].format(mark[2]), sql)
        return Statement(_PARAMETER.sub(place, filled), _binder(names))


def _binder(names: list[str]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    if len(names) > 1:
        return itemgetter(*names)
    return lambda values: tuple(values[name] for name in names)


def _split(path: Path) -> Iterable[tuple[str, str]]:
    for statement in path.read_text().split("-- name: ")[1:]:
        name, _, sql = statement.partition("\n")
        yield name, sql.strip()
