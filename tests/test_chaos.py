"""The tries of `python -m chaos` can be repeated by the names that the docs and its output give."""

import re
import shlex
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chaos import __main__ as chaos
from chaos import kill, plan
from chaos.outcome import Outcome

ROOT = Path(__file__).resolve().parent.parent
PAGES = (*(ROOT / "docs").glob("*.md"), ROOT / "README.md")
EXAMPLE = re.compile(r"python -m chaos (.*--only '[^']*')")


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the labels of the tries that are chosen; none is run."""
    labels: list[str] = []

    async def choose(_plan: plan.Plan, _number: int, each: plan.Try) -> Outcome:
        labels.append(each.label)
        return Outcome(tries=1)

    def open_none() -> Any:
        return nullcontext(SimpleNamespace(count_deadlocks=lambda: 0))

    monkeypatch.setattr(plan, "_run_try", choose)
    monkeypatch.setattr(kill, "running_server", open_none)
    return labels


def run(line: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["chaos", *shlex.split(line)])
    return chaos.main()


def test_every_single_try_in_the_docs_has_the_name_of_one(
    tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line for page in PAGES for line in EXAMPLE.findall(page.read_text("utf-8"))]
    assert lines
    assert [run(line, monkeypatch) for line in lines] == [0] * len(lines)
    assert tried == [shlex.split(line)[-1] for line in lines]


def test_a_wrong_name_of_a_try_lists_those_of_its_suite(
    tried: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("kill --only nothing", monkeypatch) == 2
    assert run("simulation --only nothing", monkeypatch) == 2
    error = capsys.readouterr().err
    assert "kill has no try 'nothing'. It has:\n  before migrate\n" in error
    assert "A try of simulation is a seed" in error
    assert not tried
