"""Memory of large bodies goes back to the system."""

import asyncio
import gc
import subprocess
import sys
import weakref
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from service.cli import memory, server
from service.cli.memory import GROWN_BYTES, Growth, return_large_blocks

SCRIPT = """
import sys
from service.cli.memory import return_large_blocks
if sys.argv[1] == "yes":
    return_large_blocks()
bytearray(1 << 20)  # The C library learns from the first large block that is freed.
blocks = [(bytearray(1 << 20), bytearray(2_000)) for _ in range(64)]
small = [pair[1] for pair in blocks]
del blocks
with open("/proc/self/statm") as file:
    print(int(file.read().split()[1]) * 4096 >> 20)
"""


def resident_mebibytes(is_told: str) -> int:
    command = [sys.executable, "-c", SCRIPT, is_told]
    return int(subprocess.run(command, check=True, capture_output=True).stdout)  # noqa: S603


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries return large blocks")
def test_large_blocks_go_back_to_the_system_once_they_are_freed() -> None:
    assert resident_mebibytes("yes") < resident_mebibytes("no") - 32


def test_a_library_that_cannot_be_loaded_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctypes", None)
    return_large_blocks()


class Held:
    """Something large that a cycle keeps until a collection."""

    def __init__(self, number: int = 0) -> None:
        self.itself = self
        self.body = bytearray(number)


def test_garbage_is_collected_once_the_process_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = [100 << 20]
    monkeypatch.setattr(memory, "resident_bytes", lambda: resident[-1])
    pauses: list[float] = []
    monkeypatch.setattr(Growth, "look_later", lambda _growth, seconds: pauses.append(seconds))
    growth = Growth()
    gc.disable()
    try:
        held = weakref.ref(Held())
        resident.append(resident[0] + GROWN_BYTES)
        growth.look()
        assert held() is not None
        resident.append(90 << 20)
        growth.look()
        resident.append(resident[-1] + GROWN_BYTES + 1)  # More than at the lowest.
        growth.look()
        assert held() is None
        held = weakref.ref(Held())
        growth.look()  # What is left after a collection is no growth.
        resident.append(0)  # Nobody can tell.
        growth.look()
        resident.append(resident[-2])
        growth.look()
        assert held() is not None
        assert len(pauses) == 6
    finally:
        gc.enable()


def test_a_long_collection_is_followed_by_a_long_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    times, resident, pauses = iter([5.0, 5.5]), iter([0, GROWN_BYTES + 1, 0]), list[float]()
    monkeypatch.setattr(memory, "resident_bytes", lambda: next(resident))
    monkeypatch.setattr(memory, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    monkeypatch.setattr(Growth, "look_later", lambda _growth, seconds: pauses.append(seconds))
    Growth().look()
    assert pauses == [50.0]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc/self/statm")
def test_a_process_that_holds_more_has_grown() -> None:
    before = memory.resident_bytes()
    held = bytearray(b"x" * (64 << 20))
    assert memory.resident_bytes() > before + len(held) // 2


async def test_a_server_has_large_blocks_and_garbage_returned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_told, has_looked, looks = asyncio.Event(), asyncio.Event(), count(1)

    def resident_bytes() -> int:
        if next(looks) == 3:
            has_looked.set()
        return 0

    monkeypatch.setattr(memory, "FIRST_SECONDS", 0)
    monkeypatch.setattr(memory, "LOOK_SECONDS", 0)
    monkeypatch.setattr(memory, "return_large_blocks", is_told.set)
    monkeypatch.setattr(memory, "resident_bytes", resident_bytes)
    monkeypatch.setattr(server, "on_signals", lambda _stop: None)
    collector = {name: lambda *_: None for name in ("freeze", "set_threshold", "enable")}
    monkeypatch.setattr(memory, "gc", SimpleNamespace(**collector))

    async def wait(*_: Any, **__: Any) -> None:
        await is_told.wait()
        await has_looked.wait()

    async def stop(_ends_at: float) -> None: ...

    app: Any = SimpleNamespace(
        settings=SimpleNamespace(shutdown_seconds=1.0),
        begin_stop=lambda: None,
        worker=SimpleNamespace(when_ended=lambda _do: None, has_failed=False),
        stop=stop,
    )
    sock: Any = SimpleNamespace(getsockname=lambda: ("127.0.0.1", 1), family=2)
    serving: Any = SimpleNamespace(serve=wait, end=lambda _at: None)
    monkeypatch.setattr(server, "new_server", lambda *_, **__: serving)
    async with asyncio.timeout(10):
        await server._run(app, app, sock)
