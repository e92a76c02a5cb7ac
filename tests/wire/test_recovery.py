"""A PostgreSQL server in recovery, as a standby is: nothing starts on it, and each says why."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import engine
from tests.cli.test_serve import KEYS, start
from tests.conftest import TEMP_ROOT
from tests.wire.pooler import pooled

SENTENCE = (
    "genhook: cannot connect to the database: the server is read-only, or a standby in recovery"
)


@pytest.fixture(scope="module")
def standby(testrun_uid: str, worker_id: str) -> Iterator[str]:
    """The URL of a server that waits for the log of another one, and answers questions."""
    folder = Path(TEMP_ROOT) / f"genhook-standby-{testrun_uid}-{worker_id}"
    server = engine.serve(folder, "stop")
    server.cleanup()
    (folder / "standby.signal").touch()
    server = engine.serve(folder, "delete")
    yield str(server.get_uri())
    server.cleanup()


def said(folder: Path, line: str, url: str) -> str:
    """Return what a command that has to refuse says."""
    with start(folder, *line.split(), **KEYS, GENHOOK_DATABASE_URL=url) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in out + err
    return err


@pytest.mark.parametrize("line", ["work", "serve --port 0", "tick", "tick --every 1", "migrate"])
def test_a_command_ends_with_a_sentence_on_a_server_in_recovery(
    tmp_path: Path, standby: str, line: str
) -> None:
    assert SENTENCE in said(tmp_path, line, standby)


def test_a_server_in_recovery_is_seen_behind_a_pooler_too(tmp_path: Path, standby: str) -> None:
    with pooled(tmp_path, standby) as pooler:
        assert SENTENCE in said(tmp_path, "migrate", pooler)
