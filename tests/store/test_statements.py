"""The loader of statements: parts that several have in common."""

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
