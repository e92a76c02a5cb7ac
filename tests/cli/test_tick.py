"""`genhook tick`: what it prints, and how it polls."""

import json
from pathlib import Path

import pytest

from service.session import Session
from tests.cli.test_main import run


def test_a_tick_prints_what_was_done(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tick --seconds 60") == 0
    assert capsys.readouterr().out == "nothing was due\n"
    assert run("tick --json") == 0
    assert json.loads(capsys.readouterr().out)["more"] is False
    assert database.exists()


@pytest.mark.usefixtures("database")
def test_a_tick_keeps_to_the_rate_of_polls_as_a_process_without_loops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modes, resume = [], Session.resume

    def note(session: Session, *, is_in_turn: bool) -> None:
        modes.append(is_in_turn)
        resume(session, is_in_turn=is_in_turn)

    monkeypatch.setattr(Session, "resume", note)
    assert run("tick --seconds 60") == 0
    assert modes == [True]
