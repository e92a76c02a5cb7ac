"""`service.asgi:app` under ASGI servers, and under a driver that does what servers may do."""

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from service.app import App
from service.model.errors import StorageError
from service.store.sqlite.database import Database
from tests.cli.test_serve import ADMIN_KEY, END_SECONDS, KEYS, surroundings
from tests.harness import settings

if TYPE_CHECKING:
    from service.asgi import Entry

ROOT = Path(__file__).resolve().parent.parent.parent
TOKEN = "gen_01a2153880f070018c4d3d013bba1012.secret.1800000000.signature"
SERVERS = {
    "uvicorn, lifespan on": ("uvicorn", "--port", "0", "--lifespan", "on"),
    "uvicorn, lifespan auto": ("uvicorn", "--port", "0", "--lifespan", "auto"),
    "uvicorn, lifespan off": ("uvicorn", "--port", "0", "--lifespan", "off"),
    "hypercorn": ("hypercorn", "--bind", "127.0.0.1:0"),
}


@contextmanager
def served(
    folder: Path, line: tuple[str, ...], app: str = "service.asgi:app", **environ: str
) -> Iterator["subprocess.Popen[str]"]:
    """Run a server of an application in a process of its own."""
    with subprocess.Popen(  # noqa: S603  our own code
        [sys.executable, "-m", *line, app],
        cwd=folder,
        env={**surroundings(), "PYTHONPATH": paths(), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def paths() -> str:
    return ":".join([str(ROOT), surroundings().get("PYTHONPATH", "")])


def url_of(process: "subprocess.Popen[str]") -> str:
    """Wait until the server listens; return where."""
    assert process.stderr is not None
    seen = []
    for text in process.stderr:
        seen.append(text)
        if match := re.search(r"[Rr]unning on (http://127\.0\.0\.1:\d+)", text):
            return match[1]
    pytest.fail("".join(seen))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", SERVERS)
def test_a_server_serves_it_and_a_signal_ends_it(tmp_path: Path, name: str, number: int) -> None:
    environ = {"GENHOOK_UPSTREAM_URL": "http://127.0.0.1:9/api/v1", "GENHOOK_ALLOW_HTTP": "true"}
    with served(tmp_path, SERVERS[name], **KEYS, **environ) as process:
        client = httpx.Client(base_url=url_of(process), trust_env=False, timeout=60)
        with client:
            ready = client.get("/readyz")
            assert (ready.status_code, ready.json()["checks"]["worker"]) == (200, "ok")
            headers = {"authorization": f"Bearer {ADMIN_KEY}"}
            body = {"model": "imagen4", "input": {"prompt": "a small harbour"}}
            answer = client.post("/v1/generations", json=body, headers=headers)
            assert answer.status_code in (202, 502), answer.text
        process.send_signal(number)
        process.communicate(timeout=END_SECONDS)


@pytest.mark.parametrize("name", SERVERS)
def test_what_is_wrong_with_the_settings_is_said_at_the_start(tmp_path: Path, name: str) -> None:
    environ = {"GENHOOK_SECRET_KEYS": "short", "GENHOOK_DRIVE_SECONDS": "many"}
    with served(tmp_path, SERVERS[name], **environ) as process:
        _, text = process.communicate(timeout=END_SECONDS)
    assert "GENHOOK_SECRET_KEYS must be keys of at least 32 characters" in text
    assert "GENHOOK_DRIVE_SECONDS must be a number from 0 to 60" in text


def test_uvicorn_below_a_path_takes_callbacks_and_logs_no_token(tmp_path: Path) -> None:
    line = (*SERVERS["uvicorn, lifespan on"], "--root-path", "/gh")
    with served(tmp_path, line, **KEYS) as process:
        url = url_of(process)
        path = f"/callbacks/apiinone/{TOKEN}"
        answer = httpx.post(f"{url}{path}", json={}, trust_env=False, timeout=60)
        assert answer.json()["code"] == "token_invalid"
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=END_SECONDS)
    assert "POST /gh/callbacks/apiinone/[redacted] HTTP/1.1" in output  # uvicorn's own log.
    assert TOKEN not in output + errors


def documented(start: str) -> str:
    """Return the code in docs/deploying.md that begins like this."""
    text = (ROOT / "docs/deploying.md").read_text("utf-8")
    codes: list[str] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    [code] = [each for each in codes if start in each]
    return code


@pytest.mark.parametrize("start", ["lifespan=genhook.lifespan", "async with genhook.lifespan"])
def test_an_application_that_mounts_it_as_documented_stops_it_in_order(
    tmp_path: Path, start: str
) -> None:
    """As the server has asked the application to end, before it ends the process by the signal."""
    (tmp_path / "main.py").write_text(documented(start), "utf-8")
    line = (*SERVERS["uvicorn, lifespan auto"], "--app-dir", str(tmp_path))
    with served(tmp_path, line, "main:application", **KEYS) as process:
        url = url_of(process)
        ready = httpx.get(f"{url}/hooks/readyz", trust_env=False, timeout=60)
        assert (ready.status_code, ready.json()["checks"]["worker"]) == (200, "ok")
        assert (tmp_path / "genhook.db-wal").exists()
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=END_SECONDS)
    assert not (tmp_path / "genhook.db-wal").exists(), "the database was not closed"
    assert "start.without_lifespan" not in output


def test_a_server_without_a_lifespan_is_warned_of(tmp_path: Path) -> None:
    with served(tmp_path, SERVERS["uvicorn, lifespan off"], **KEYS) as process:
        url = url_of(process)
        for _ in range(2):
            assert httpx.get(f"{url}/readyz", trust_env=False, timeout=60).status_code == 200
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=END_SECONDS)
    assert output.count("start.without_lifespan") == 1


# A driver of our own, within the process.


@asynccontextmanager
async def lifespan(app: "Entry") -> AsyncIterator[dict[str, Any]]:
    """Run a lifespan of the application; yield its answer to the start."""
    received, sent = asyncio.Queue[Any](), asyncio.Queue[Any]()
    task = asyncio.create_task(app({"type": "lifespan"}, received.get, sent.put))
    await received.put({"type": "lifespan.startup"})
    yield (answer := await sent.get())
    if answer["type"] == "lifespan.startup.complete":
        await received.put({"type": "lifespan.shutdown"})
        assert await sent.get() == {"type": "lifespan.shutdown.complete"}
    await task


async def status(app: "Entry", path: str = "/readyz") -> int:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
        return (await client.get(f"http://genhook{path}")).status_code


async def started(app: "Entry") -> App:
    return await app._runs[asyncio.get_running_loop()].start


@pytest.fixture
def app(tmp_path: Path, bare_environment: None, monkeypatch: pytest.MonkeyPatch) -> "Entry":
    monkeypatch.setenv("GENHOOK_SECRET_KEYS", KEYS["GENHOOK_SECRET_KEYS"])
    from service import asgi  # noqa: PLC0415  it reads the settings

    return asgi.Entry(settings(tmp_path))


async def test_it_starts_and_stops_more_than_once(app: "Entry") -> None:
    for _ in range(3):
        async with lifespan(app) as answer:
            assert answer == {"type": "lifespan.startup.complete"}
            assert await status(app) == 200
    assert not app._runs


async def test_two_lifespans_share_it_until_the_last_one_ends(app: "Entry") -> None:
    async with lifespan(app):
        first = await started(app)
        async with lifespan(app):
            assert await started(app) is first
        assert await status(app) == 200
        assert first.worker.problem is None


async def test_lifespans_overlap_from_the_start(app: "Entry") -> None:
    async def use() -> None:
        async with app.lifespan():
            pass

    await asyncio.gather(use(), use())
    assert not app._runs


async def test_a_lifespan_that_is_cancelled_during_the_start_stops_it(
    app: "Entry", monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()

    async def hang(_app: App) -> None:
        begun.set()
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(App, "start", hang)
    opening = asyncio.create_task(app.lifespan().__aenter__())
    await begun.wait()
    [run] = app._runs.values()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert (run.keeper.done(), app._runs) == (True, {})


async def test_requests_that_come_first_start_it_once(app: "Entry") -> None:
    assert await asyncio.gather(*(status(app) for _ in range(5))) == [200] * 5
    assert len(app._runs) == 1
    async with lifespan(app):
        assert await status(app) == 200
    assert not app._runs


def test_a_loop_that_ends_without_a_shutdown_stops_it(app: "Entry") -> None:
    """The next loop opens the same database, and its worker gets the right to work."""

    async def serve() -> bool:
        assert await status(app) == 200
        worker = (await started(app)).worker
        async with asyncio.timeout(20):
            while not worker.ownership.is_held:
                await status(app)
        return True

    assert asyncio.run(serve())
    assert asyncio.run(serve())


async def write(app: App) -> None:
    await app.database.write(None)


@pytest.mark.parametrize("edge", ["during the start", "after it"])
def test_a_loop_that_ends_stops_what_a_request_began_that_was_cancelled(
    app: "Entry", edge: str
) -> None:
    async def serve() -> Any:
        request = asyncio.create_task(status(app))
        while not app._runs:  # noqa: ASYNC110  a test
            await asyncio.sleep(0)  # noqa: TID251  it waits for no time
        [run] = app._runs.values()
        request.cancel()
        await asyncio.wait([request])
        if edge == "after it":
            await run.start
        return run.start

    start = asyncio.run(serve())
    if edge == "after it":
        with pytest.raises(StorageError, match="closed"):
            asyncio.run(write(start.result()))
    else:
        assert start.cancelled()


def mounted_by_a_server(app: "Entry", path: str) -> httpx.ASGITransport:
    return httpx.ASGITransport(app, root_path=path)


def mounted_in_another_application(app: "Entry", path: str) -> httpx.ASGITransport:
    return httpx.ASGITransport(Starlette(routes=[Mount(path, app)]))


@pytest.mark.parametrize("path", ["/hooks", "/v1"])
@pytest.mark.parametrize("mount", [mounted_by_a_server, mounted_in_another_application])
async def test_below_a_path_all_of_it_answers(app: "Entry", mount: Any, path: str) -> None:
    async with httpx.AsyncClient(transport=mount(app, path)) as client:
        base = f"http://genhook{path}"
        callback = await client.post(f"{base}/callbacks/apiinone/{TOKEN}", json={})
        assert callback.json()["code"] == "token_invalid"
        pages = ("/healthz", "/readyz", "/docs", "/openapi.yaml", "/v1/models")
        codes = [(await client.get(f"{base}{page}")).status_code for page in pages]
        assert codes == [200, 200, 200, 200, 401]
        away = await client.get(f"{base}/dashboard")
        page = await client.get(f"{base}/dashboard/sign-in")
    assert (away.status_code, away.headers["location"]) == (303, "dashboard/sign-in")
    assert (page.status_code, 'href="../dashboard/static/' in page.text) == (200, True)
    await app.stop()


# As granian ends without a lifespan: it cancels nothing that runs.
ENDS_WITHOUT_A_WORD = """
import asyncio, httpx
from service.asgi import app

async def ask():
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
        while (await client.get("http://genhook/readyz")).json()["checks"]["worker"] != "ok":
            pass

loop = asyncio.new_event_loop()
loop.run_until_complete(ask())
loop.close()
"""


def test_a_process_ends_though_its_server_cancels_no_tasks(tmp_path: Path) -> None:
    environ = {**surroundings(), "PYTHONPATH": paths(), **KEYS}
    line = [sys.executable, "-c", ENDS_WITHOUT_A_WORD]
    process = subprocess.run(line, cwd=tmp_path, env=environ, timeout=END_SECONDS, check=False)  # noqa: S603
    assert process.returncode == 0


async def test_a_start_that_fails_is_said_and_tried_again(
    app: "Entry", monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_database: Database) -> None:
        raise StorageError("cannot open genhook.db: disk I/O error")

    with monkeypatch.context() as patched:
        patched.setattr(Database, "open", fail)
        async with lifespan(app) as answer:
            assert answer["type"] == "lifespan.startup.failed"
            assert "disk I/O error" in answer["message"]
        assert await status(app) == 503
    async with lifespan(app):
        assert await status(app) == 200


async def test_a_server_without_a_lifespan_is_warned_of_after_a_start_that_failed(
    app: "Entry", monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_database: Database) -> None:
        raise StorageError("cannot open genhook.db: disk I/O error")

    log = Mock()
    monkeypatch.setattr("service.asgi._log", log)
    with monkeypatch.context() as patched:
        patched.setattr(Database, "open", fail)
        assert await status(app) == 503
    log.warning.assert_not_called()
    for _ in range(2):
        assert await status(app) == 200
    log.warning.assert_called_once_with("start.without_lifespan", see="docs/deploying.md")
    await app.stop()
