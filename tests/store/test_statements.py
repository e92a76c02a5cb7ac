"""The loader of statements: parts that several have in common, and tables that a lock looks at."""

import re

from service.store.postgres.statements import statements as postgres_statements
from service.store.sqlite.statements import statements


def test_a_part_stands_in_each_statement_with_its_own_word() -> None:
    for name in ("generations_to_poll", "generation_next_poll"):
        assert "g.next_poll_at IS NOT NULL AND g.tenant > ?" in statements()[name].sql
    for name in ("generations_to_submit", "generation_next_submit"):
        assert "g.submit_at IS NOT NULL AND g.tenant > ?" in statements()[name].sql


def test_an_override_takes_the_parts_of_the_statements_of_all_databases() -> None:
    assert "AS is_shared" in postgres_statements()["generations_to_poll"].sql


def test_no_mark_is_left_and_a_part_is_no_statement() -> None:
    assert "tenants" not in statements()
    assert not [name for name, each in statements().items() if "{" in each.sql.replace("'{}'", "")]


def test_a_statement_looks_again_if_it_reads_tables_whose_rows_it_does_not_lock() -> None:
    """PostgreSQL would evaluate it, after a wait for a lock, with those tables as they were."""
    looking = set()
    for name, (sql, _, lock) in postgres_statements().items():
        read = re.findall(r"(?:FROM|JOIN) (\w+)\b(?!\()(?: ([a-z])\b)?", sql)
        locked = {table for table, alias in read if (alias or table) in lock.tables.split(", ")}
        if lock.tables and {table for table, _ in read} - locked:
            looking.add(name)
    assert "deliveries_old" in looking
    assert looking == {
        name for name, each in postgres_statements().items() if each.lock.looks_again
    }
