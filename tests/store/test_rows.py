"""Rows as the API lists them: what clients and upstream wrote is checked and copied."""

import sqlite3
from typing import Any

import msgspec
import pytest

from service.model.generation import Generation
from service.store.rows import decode_row, view_rows

ROW = {
    "id": "gen_" + "0" * 32,
    "tenant": "t",
    "model": "m",
    "status": "succeeded",
    "route": "poll",
    "input": '{"prompt":"a","numbers":[1,2.50]}',
    "metadata": '{"a":"b"}',
    "output": '{"files":[],"raw":{"a":[[]]}}',
    "deadline_at": 1,
    "nonce": "n",
    "submission": "taken",
}


def listed(**changes: Any) -> list[Any]:
    """Return the views of a row with these changes, as the engine gives it."""
    values = {**ROW, **changes}
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    columns = ", ".join(f":{name} AS {name}" for name in values)
    row = connection.execute(f"SELECT {columns}", values).fetchone()
    connection.close()
    return list(msgspec.json.decode(msgspec.json.encode(view_rows(Generation, [row]))))


@pytest.mark.parametrize("output", [ROW["output"], None])
def test_a_listed_row_is_shown_as_one_that_is_read_alone(output: str | None) -> None:
    [view] = listed(output=output)
    alone = decode_row(Generation, {**ROW, "output": output}).view()
    assert view == alone
    assert list(view) == list(alone)


@pytest.mark.parametrize("column", ["input", "output"])
def test_a_page_decodes_no_values_of_clients_and_upstream(column: str) -> None:
    undecodable = '{"x":1e400}'
    [view] = view_rows(Generation, [{**ROW, column: undecodable}])
    assert msgspec.json.encode(view[column]).decode() == undecodable


@pytest.mark.parametrize("column", ["input", "output", "metadata"])
def test_a_row_whose_json_is_damaged_is_left_out_of_a_page(column: str) -> None:
    for damaged in ("{", '{"a":1}}', '{"a":tru}', ""):
        assert listed(**{column: damaged}) == []
