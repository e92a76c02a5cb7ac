"""The attacks of `python -m chaos`: names that repeat a try, and what they take as a fault."""

import random  # noqa: TID251  upstream is its seed
import re
import shlex
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from chaos import __main__ as chaos
from chaos import kill, plan
from chaos.outcome import Outcome
from chaos.provider import Provider, Task
from service.upstream.callback_url import CallbackTokens

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


@pytest.mark.parametrize("clock_seconds", [1_000.0, 3_000.0])
async def test_the_refusal_of_a_callback_is_a_fault_unless_its_token_expired_by_a_moved_clock(
    clock_seconds: float,
) -> None:
    provider = Provider(random.Random(0))
    await provider.outside.aclose()
    provider.outside = httpx.AsyncClient(
        transport=httpx.MockTransport(lambda _: httpx.Response(404))
    )
    provider.clocks = lambda _since: [0.0, clock_seconds]
    token = CallbackTokens(["k" * 32], "apiinone").mint("gen_1", "nonce", 2_000_000)
    task = Task("task-1", "prompt", f"http://genhook.example/callbacks/apiinone/{token}", "failed")
    await provider.send_callback(task, task.data())
    is_refused_rightly = clock_seconds >= 2_000
    assert len(provider.wrong_answers) == (0 if is_refused_rightly else 1)
    assert provider.faults["callback expired"] == (1 if is_refused_rightly else 0)
    await provider.close()
