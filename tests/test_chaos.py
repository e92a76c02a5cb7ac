"""The attacks of `python -m chaos`: names that repeat a try, and what they take as a fault."""

import asyncio
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
from chaos import clock, kill, neighbours, plan, processes, promises, wire
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


def test_a_moved_clock_has_all_times_that_it_has_shown_since_something_was_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(1, 10))
    machine = SimpleNamespace(monotonic=lambda: float(next(seconds)), time=lambda: 1_000.0)
    monkeypatch.setattr(clock, "time", machine)
    (tmp_path / "offset").write_text("0")
    moved = clock.MovedClock(tmp_path / "offset", Outcome())
    moved.jump(5_000)
    moved.jump(-7_000)
    assert moved.times(since=2.5) == [998.0]
    assert moved.times(since=1.5) == [998.0, 1_005.0]
    assert moved.times(since=0.5) == [998.0, 1_000.0, 1_005.0]


async def test_what_a_dead_process_has_sent_is_read_before_a_new_phase_begins() -> None:
    read: list[bytes] = []

    async def receive(request: wire.Request) -> bytes:
        read.append(request.body)
        return wire.build_answer(204)

    async with wire.serve(receive) as server:
        for number in range(5):
            _, writer = await asyncio.open_connection(wire.HOST, server.port)
            writer.write(b"POST / HTTP/1.1\r\ncontent-length: 1\r\n\r\n%d" % number)
            writer.close()
        await server.drain(60)
        assert sorted(read) == [b"0", b"1", b"2", b"3", b"4"]


async def test_work_is_waited_for_as_long_as_it_becomes_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world: Any = SimpleNamespace(provider=SimpleNamespace(is_busy=False))
    now, counts = 0.0, [5, 4, 4, 3, 2, 1, 0]

    async def count_open(_world: Any, _open_work: str) -> int:
        return counts.pop(0)

    async def sleep(_seconds: float) -> None:
        nonlocal now
        now += 30

    monkeypatch.setattr(promises, "count_open", count_open)
    monkeypatch.setattr(promises, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(promises, "asyncio", SimpleNamespace(sleep=sleep))
    assert await promises.wait_until_done(world, 45)
    counts[:] = [5, 4, 5, 4, 4, 4]
    assert not await promises.wait_until_done(world, 45)


def test_a_rate_is_broken_by_who_sends_too_fast_and_not_by_who_reads_late() -> None:
    late = [(0.0, 3.0)] * 12  # Of three seconds, at four in a second.
    assert processes._excess(late, rate=4, burst=2, more=0, deaths=[]) <= 0
    fast = [(n / 8, n / 8 + 0.1) for n in range(24)]
    assert processes._excess(fast, rate=4, burst=2, more=0, deaths=[]) > 0


def test_a_victim_is_delayed_if_it_is_late_in_every_round() -> None:
    def measured(seconds: float) -> neighbours.Measured:
        result = neighbours.Measured()
        for name in neighbours.VICTIMS:
            result.seconds[name] = [seconds] * 20
        return result

    alone, quick, slow = measured(0.1), measured(0.5), measured(2.0)
    assert not neighbours._list_late(alone, [slow, quick])
    assert neighbours._list_late(alone, [slow, slow]) == [*neighbours.VICTIMS]
