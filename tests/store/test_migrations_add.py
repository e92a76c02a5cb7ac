"""Migrations only add: processes of the release before go on beside the new schema.

docs/operations.md promises it under "Upgrades"; tests/journeys/test_rolling_upgrade.py shows that
what is allowed here does no harm.
"""

import re
from pathlib import Path

import pytest

from service.store.postgres import schema as postgres_schema
from service.store.sqlite import schema as sqlite_schema
from tests.journeys.test_rolling_upgrade import MIGRATION

FILES = [path for schema in (sqlite_schema, postgres_schema) for _, path in schema.migrations()]
# What does not end a statement: strings, names in quotes, bodies of functions, and comments.
_PARTS = re.compile(
    r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\"[^\"]*\"|\$(\w*)\$.*?\$\1\$|;|.", re.DOTALL
)
# A default that is no constant is computed for each row: PostgreSQL writes the table anew.
_CONSTANT = r"(?:-?[\d.]+|'(?:[^']|'')*'|TRUE|FALSE)"
_COLUMN = re.compile(
    rf"ALTER TABLE \w+ ADD COLUMN \w+ [A-Z]+( (?:NOT NULL )?DEFAULT {_CONSTANT}| NULL)?",
    re.IGNORECASE,
)
_TABLE = re.compile(r"CREATE TABLE (\w+) ?\(", re.IGNORECASE)
_INDEX = re.compile(r"CREATE (UNIQUE )?INDEX \w+ ON (\w+) ?[(U]", re.IGNORECASE)
_INSERT = re.compile(r"INSERT INTO (\w+) ", re.IGNORECASE)
_FUNCTION = re.compile(r"CREATE FUNCTION \w+ ?\(", re.IGNORECASE)


def statements(sql: str) -> list[str]:
    """Return the statements without comments, each on one line."""
    found = [""]
    for match in _PARTS.finditer(sql):
        part = match[0]
        if part == ";":
            found.append("")
        else:
            found[-1] += " " if part.startswith(("--", "/*")) else part
    return [line for text in found if (line := " ".join(text.split()))]


def faults(sql: str) -> list[str]:
    """Return the statements that do more than add what the release before does not see.

    A rule for the rows of an older table, or rows in it, would meet what older processes do.
    """
    new: set[str] = set()
    wrong = []
    for statement in statements(sql):
        if table := _TABLE.match(statement):
            new.add(table[1])
        elif index := _INDEX.match(statement):
            if index[1] and index[2] not in new:
                wrong.append(statement)
        elif insert := _INSERT.match(statement):
            if insert[1] not in new:
                wrong.append(statement)
        elif not (_COLUMN.fullmatch(statement) or _FUNCTION.match(statement)):
            wrong.append(statement)
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.parent.name}-{path.stem}")
def test_a_migration_only_adds(path: Path) -> None:
    assert faults(path.read_text("utf-8")) == []


def test_both_databases_have_the_same_migrations() -> None:
    names = [
        [path.name for _, path in schema.migrations()]
        for schema in (sqlite_schema, postgres_schema)
    ]
    assert names[0] == names[1] != []


@pytest.mark.parametrize("integer", ["BIGINT", "INTEGER"])
def test_columns_tables_and_indexes_may_be_added(integer: str) -> None:
    own = """
    CREATE TABLE a (b TEXT, c TEXT DEFAULT ';'); -- one; two
    CREATE UNIQUE INDEX d ON a (b);
    INSERT INTO a VALUES ('x', 'y')"""
    assert faults(MIGRATION.format(integer=integer)) == []
    assert faults(own) == []
    assert faults("CREATE FUNCTION f (a TEXT) RETURNS TEXT AS $$ BEGIN; DROP TABLE a; END $$") == []


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE usage",
        "DROP INDEX keys_tenant",
        "ALTER TABLE keys DROP COLUMN name",
        "ALTER TABLE keys RENAME TO api_keys",
        "ALTER TABLE keys RENAME COLUMN name TO title",
        "ALTER TABLE keys ALTER COLUMN name TYPE VARCHAR",
        "ALTER TABLE keys ALTER COLUMN name SET NOT NULL",
        "ALTER TABLE keys ADD CONSTRAINT short CHECK (length(name) < 9)",
        "ALTER TABLE keys ADD COLUMN note TEXT NOT NULL",
        "ALTER TABLE keys ADD COLUMN note TEXT UNIQUE",
        "ALTER TABLE keys ADD COLUMN note TEXT REFERENCES usage (day)",
        "ALTER TABLE keys ADD COLUMN note TEXT CHECK (note <> '')",
        "ALTER TABLE keys ADD COLUMN note TEXT DEFAULT gen_random_uuid()",
        "ALTER TABLE keys ADD COLUMN note TEXT GENERATED ALWAYS AS (name) STORED",
        "ALTER TABLE keys ADD COLUMN note TEXT, DROP COLUMN name",
        "CREATE UNIQUE INDEX keys_name ON keys (name)",
        "CREATE TABLE keys_2 AS SELECT * FROM keys",
        "CREATE OR REPLACE FUNCTION shard_of (id TEXT) RETURNS SMALLINT AS $$ SELECT 1 $$",
        "CREATE TRIGGER t AFTER INSERT ON keys BEGIN DELETE FROM keys; END",
        "INSERT INTO revisions VALUES ('keys', 0)",
        "UPDATE keys SET name = ''",
        "DELETE FROM keys",
        "VACUUM",
    ],
)
def test_what_an_older_process_would_meet_is_refused(statement: str) -> None:
    added = "CREATE TABLE next_things (id TEXT PRIMARY KEY);"
    assert faults(f"{added}\n{statement};\n{added}")
