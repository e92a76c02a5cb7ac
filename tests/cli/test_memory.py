"""Memory of large bodies goes back to the system."""

import asyncio
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from service.cli import server
from service.cli.memory import return_large_blocks

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


async def test_a_server_has_large_blocks_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    is_told = asyncio.Event()
    monkeypatch.setattr(server, "MEMORY_SECONDS", 0)
    monkeypatch.setattr(server, "return_large_blocks", is_told.set)
    monkeypatch.setattr(server, "on_signals", lambda _stop: None)
    collector = {name: lambda *_: None for name in ("freeze", "set_threshold", "enable")}
    monkeypatch.setattr(server, "gc", SimpleNamespace(**collector))

    async def wait(*_: Any, **__: Any) -> None:
        await is_told.wait()

    async def stop(_ends_at: float) -> None: ...

    app: Any = SimpleNamespace(
        settings=SimpleNamespace(shutdown_seconds=1.0),
        begin_stop=lambda: None,
        worker=SimpleNamespace(when_ended=lambda _do: None),
        stop=stop,
    )
    sock: Any = SimpleNamespace(getsockname=lambda: ("127.0.0.1", 1), family=2)
    serving: Any = SimpleNamespace(serve=wait, end=lambda _at: None)
    async with asyncio.timeout(10):
        await server._run(app, serving, sock)
