import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from service.store.sqlite import schema


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a database with the schema and no rows."""
    with closing(sqlite3.connect(tmp_path / "empty.db", isolation_level=None)) as connected:
        schema.migrate(connected)
        yield connected
