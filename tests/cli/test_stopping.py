"""Signals to serve and work as processes of their own, and the health of a worker alone."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

import httpx
import pytest

from service.model.clock import now_ms
from tests.cli.test_serve import (
    ADMIN_KEY,
    END_SECONDS,
    KEYS,
    MAIN,
    Running,
    SlowUpstream,
    served,
    start,
    started,
    surroundings,
)
from tests.faults import rows
from tests.harness import opened

BODY = {"model": "imagen4-fast", "input": {"prompt": "A slow lighthouse"}}
UPSTREAM_KEY = {"GENHOOK_UPSTREAM_API_KEY": "aio_slow"}
# The thread that ends a process by force comes too late to play a part.
WITHOUT_FORCE = "from service.cli import stopping; stopping.END_SECONDS_MIN = 600\n"
SAYS_THAT_IT_WAITS = """
import os
from service.api import generations
wait_for_end = generations.wait_for_end
generations.wait_for_end = lambda *of: (os.write(1, b"A request waits.\\n"), wait_for_end(*of))[1]
"""


def hanging(asked: threading.Event, released: threading.Event) -> type[SlowUpstream]:
    return type("Hanging", (SlowUpstream,), {"asked": asked, "released": released})


def test_an_upstream_that_hangs_holds_a_stop_no_longer_than_the_setting(tmp_path: Path) -> None:
    asked, released = threading.Event(), threading.Event()
    with served(hanging(asked, released)) as upstream:
        environ = {**KEYS, **UPSTREAM_KEY, "GENHOOK_UPSTREAM_URL": upstream}
        line = ("serve", "--port", "0")
        with (
            started(
                tmp_path, *line, before=WITHOUT_FORCE, **environ, GENHOOK_SHUTDOWN_SECONDS="1"
            ) as running,
            running.client() as client,
            ThreadPoolExecutor() as pool,
        ):
            answer = pool.submit(client.post, "/v1/generations", json=BODY)
            assert asked.wait(END_SECONDS)
            began = monotonic()
            status, out, err = running.end()
            assert monotonic() - began < 15  # The default is 20.
            assert answer.result().status_code == 202
            assert answer.result().json()["status"] == "queued"
        released.set()
    assert (status, err) == (0, "")
    assert "Traceback" not in out
    events = [json.loads(line)["event"] for line in out.splitlines()]
    assert events.index("stopping") < events.index("worker.stopped") < events.index("stopped")
    assert "never retrieved" not in out


def test_a_long_poll_is_answered_at_once_on_a_signal(tmp_path: Path) -> None:
    line = ("serve", "--dev", "--sandbox", "--port", "0")
    with (
        started(tmp_path, *line, before=SAYS_THAT_IT_WAITS, **KEYS) as running,
        running.client() as client,
        ThreadPoolExecutor() as pool,
    ):
        body = {"model": "imagen4-fast", "input": {"prompt": "[sandbox: delay=600] A lighthouse"}}
        id_ = client.post("/v1/generations", json=body).json()["id"]
        answer = pool.submit(client.get, f"/v1/generations/{id_}?wait=50")
        assert running.process.stdout is not None
        assert any("A request waits." in line for line in running.process.stdout)
        status, out, _ = running.end()
        assert answer.result().status_code == 200
        assert answer.result().json()["status"] == "processing"
    assert status == 0
    assert "Traceback" not in out


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    asked, released = threading.Event(), threading.Event()
    with served(hanging(asked, released)) as upstream:
        environ = {**KEYS, **UPSTREAM_KEY, "GENHOOK_UPSTREAM_URL": upstream}
        with (
            started(tmp_path, "serve", "--port", "0", **environ) as running,
            running.client() as client,
            ThreadPoolExecutor() as pool,
        ):
            pool.submit(client.post, "/v1/generations", json=BODY)
            assert asked.wait(END_SECONDS)
            began = monotonic()
            while running.process.poll() is None:  # Those of the first half second count as one.
                running.process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):  # Nobody presses Ctrl-C faster.
                    running.process.wait(0.2)
            assert monotonic() - began < 18  # The default is 20.
            assert running.process.returncode == -signal.SIGINT
            assert running.process.stderr is not None
            assert running.process.stderr.read() == ""
        released.set()


UNSHARE = ("unshare", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc")


@contextmanager
def process_one(
    folder: Path, *line: str, ready: str = "begun", **environ: str
) -> Iterator[tuple[Running, int]]:
    """Start Python as process 1, as in a container; yield it with its id out here.

    The status of the process is that of its parent, `unshare`.
    """
    if shutil.which("unshare") is None:
        pytest.skip("no namespace of processes can be made: there is no unshare")
    tried = subprocess.run(  # noqa: S603  it does nothing
        [*UNSHARE, "true"], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        pytest.skip(f"no namespace of processes can be made: {tried.stderr!r}")
    with subprocess.Popen(  # noqa: S603  our own code
        [*UNSHARE, sys.executable, "-c", *line],
        cwd=folder,
        env={**surroundings(), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            running = Running(process, ready)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            yield running, int(children)
        finally:
            process.kill()


HANDLED = """
import threading
from service.cli import interrupts
with interrupts.handled():
    {block}
"""
WAIT = "print('begun', flush=True); threading.Event().wait()"
CLEANED_UP = f"""
    with interrupts.cleaned_up():
        try: {WAIT}
        finally: print('cleaned up', flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(("block", "printed"), [(WAIT, ""), (CLEANED_UP, "cleaned up\n")])
def test_a_signal_ends_process_one(tmp_path: Path, block: str, printed: str, number: int) -> None:
    """The kernel lets no signal end it that it does not handle."""
    with process_one(tmp_path, HANDLED.format(block=block)) as (running, pid):
        os.kill(pid, number)
        out, err = running.process.communicate(timeout=60)
    assert (running.process.returncode, out, err) == (128 + number, printed, "")


def test_a_second_signal_ends_process_one(tmp_path: Path) -> None:
    environ = {**KEYS, "GENHOOK_SHUTDOWN_SECONDS": "600", "GENHOOK_BODY_SECONDS": "600"}
    line, ready = (MAIN, "serve", "--port", "0"), '"event":"serving"'
    head = f"POST /v1/keys HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN_KEY}\r\n"
    with (
        process_one(tmp_path, *line, ready=ready, **environ) as (running, pid),
        socket.create_connection(("127.0.0.1", urlsplit(running.url).port)) as client,
    ):
        # A stop waits for the body.
        client.sendall(f"{head}Expect: 100-continue\r\nContent-Length: 9\r\n\r\n".encode())
        assert client.recv(20).startswith(b"HTTP/1.1 100")
        while running.process.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                running.process.wait(0.2)
    assert running.process.returncode == 128 + signal.SIGTERM


def test_a_process_goes_on_after_a_hangup_that_it_ignores(tmp_path: Path) -> None:
    under_nohup = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    line = ("serve", "--port", "0")
    with started(tmp_path, *line, before=under_nohup, **KEYS) as running:
        running.process.send_signal(signal.SIGHUP)
        with running.client() as client:
            assert client.get("/readyz").status_code == 200
        status, out, _ = running.end()
    stops = [line for line in map(json.loads, out.splitlines()) if line["event"] == "stopping"]
    assert (status, [stop["signal"] for stop in stops]) == (0, ["SIGTERM"])


def test_process_one_ignores_a_hangup_where_it_is_told_to(tmp_path: Path) -> None:
    ignore = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    with process_one(tmp_path, ignore + HANDLED.format(block=WAIT)) as (running, pid):
        os.kill(pid, signal.SIGHUP)
        os.kill(pid, signal.SIGTERM)
        running.process.communicate(timeout=60)
    assert running.process.returncode == 128 + signal.SIGTERM


def test_a_stop_that_no_signal_began_ends_by_force_where_no_thread_can_be_started() -> None:
    code = (
        "import asyncio, threading\n"
        "from service.cli.stopping import Stop\n"
        "def fail(_): raise RuntimeError('cannot start new thread')\n"
        "async def main():\n"
        "    stop = Stop(0.0)\n"
        "    threading.Thread.start = fail\n"
        "    stop.begin()\n"  # As a worker that failed does.
        "    threading.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(  # noqa: S603  our own code
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=END_SECONDS,
    )
    assert done.returncode == 1
    assert "stop.forced" in done.stderr


def test_a_worker_alone_serves_its_health_and_its_metrics_and_nothing_else(tmp_path: Path) -> None:
    port = {"GENHOOK_WORK_PORT": "0"}
    with started(tmp_path, "work", **KEYS, **port) as running, running.client() as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["worker"]) == (200, "ok")
        assert 'genhook_write_queue{role="worker"} ' in client.get("/metrics").text
        for path in ("/v1/generations", "/docs", "/callbacks/apiinone/x"):
            assert client.get(path).status_code == 404
            assert client.post(path).status_code == 404
        status, _, err = running.end()
    assert (status, err) == (0, "")


def test_a_process_without_a_worker_says_so_and_is_ready(tmp_path: Path) -> None:
    environ = {**KEYS, "GENHOOK_WORKER": "off"}
    with started(tmp_path, "serve", "--port", "0", **environ) as running:
        with running.client() as client:
            ready = client.get("/readyz")
        running.end()
    assert ready.status_code == 200
    assert ready.json()["checks"]["worker"].startswith("No worker runs here")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ticks_are_repeated_until_a_signal(tmp_path: Path, number: int) -> None:
    line = ("tick", "--seconds", "60", "--every", "0.05", "--json")
    with start(tmp_path, *line, **KEYS) as process:
        assert process.stdout is not None
        done = [json.loads(process.stdout.readline()) for _ in range(3)]
        assert [tick["more"] for tick in done] == [False, False, False]
        process.send_signal(number)
        process.communicate(timeout=END_SECONDS)
        assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_tick_records_what_is_under_way_before_a_signal_ends_it(
    tmp_path: Path, number: int
) -> None:
    async with opened(tmp_path) as world:
        world.clock.now = now_ms() - 10_000
        world.upstream.create_replies.append(httpx.Response(503))
        await world.generate()
    asked, released = threading.Event(), threading.Event()
    with served(hanging(asked, released)) as upstream:
        environ = {**KEYS, **UPSTREAM_KEY, "GENHOOK_UPSTREAM_URL": upstream}
        environ["GENHOOK_DATABASE_URL"] = f"sqlite:///{tmp_path}/genhook.db"
        with start(tmp_path, "tick", "--seconds", "60", "--json", **environ) as process:
            assert process.stderr is not None
            assert asked.wait(END_SECONDS)
            process.send_signal(number)
            for line in process.stderr:
                if '"stopping"' in line:
                    break
            released.set()
            out, _ = process.communicate(timeout=END_SECONDS)
            assert (process.returncode, json.loads(out)["more"]) == (0, True)
    async with opened(tmp_path) as world:
        [row] = await rows(world, "SELECT submission, task_id FROM generations")
        assert (row["submission"], row["task_id"]) == ("taken", "task1")
