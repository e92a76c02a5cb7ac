"""serve, work and sandbox as processes of their own: sockets, signals, and clients from outside."""

import http.server
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook

from service.app import App
from service.cli import environment, main, server, stopping
from service.model.errors import CommandError
from service.settings import VARIABLES
from service.telemetry import log
from service.worker import Worker
from tests.harness import create_answer, settings
from tests.ports import free_port

SECRET_KEY = "0123456789abcdef0123456789abcdef"
ADMIN_KEY = "ghk_0123456789abcdef0123456789abcdef"
END_SECONDS = 60  # A whole process starts or ends in it, on a machine that is busy.
MAIN = "from service.cli.start import main; raise SystemExit(main())"
KEYS = {"GENHOOK_SECRET_KEYS": SECRET_KEY, "GENHOOK_ADMIN_KEY": ADMIN_KEY}


class Running:
    """A genhook that was started; its output up to the line that says it is ready."""

    def __init__(self, process: "subprocess.Popen[str]", ready: str) -> None:
        self.process = process
        self.lines: list[str] = []
        assert process.stdout is not None
        for line in process.stdout:
            self.lines.append(line)
            if ready in line:
                return
        assert process.stderr is not None
        pytest.fail("".join(self.lines) + process.stderr.read())

    @property
    def url(self) -> str:
        match = re.search(r'"url":"(http://[^"]+)"|at (http://\S+)/api', self.lines[-1])
        assert match
        return match[1] or match[2]

    def client(self, key: str = ADMIN_KEY) -> httpx.Client:
        headers = {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=20)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Its status after a signal, and all its output."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=END_SECONDS)
        return self.process.returncode, "".join(self.lines) + out, err


def surroundings() -> dict[str, str]:
    """The environment without settings, to hand on to a process."""
    given = os.environ.items()  # noqa: TID251  handed on to a process
    return {name: value for name, value in given if name not in VARIABLES}


def start(folder: Path, *line: str, before: str = "", **environ: str) -> "subprocess.Popen[str]":
    """Start genhook; `before` is code that runs in its process first."""
    return subprocess.Popen(  # noqa: S603  our own code
        [sys.executable, "-c", before + MAIN, *line],
        cwd=folder,
        env={**surroundings(), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def started(
    folder: Path, *line: str, ready: str = '"event":"serving"', before: str = "", **environ: str
) -> Iterator[Running]:
    """A genhook in its own process, killed if a test leaves it running."""
    with start(folder, *line, before=before, **environ) as process:
        try:
            yield Running(process, ready)
        finally:
            process.kill()


def ended(folder: Path, *line: str, **environ: str) -> tuple[int, str]:
    """The status of a genhook that ends by itself, and its standard error."""
    with start(folder, *line, **environ) as process:
        _, err = process.communicate(timeout=END_SECONDS)
        return process.returncode, err


@contextmanager
def served(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """The URL of a server on this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as receiver:
        thread = threading.Thread(target=receiver.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{receiver.server_port}"
        finally:
            receiver.shutdown()
            thread.join()


# serve


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_serve_answers_and_ends_with_zero_on_a_signal(tmp_path: Path, number: int) -> None:
    with started(tmp_path, "serve", "--port", "0", **KEYS) as running:
        with running.client() as client:
            assert client.get("/healthz").json() == {"status": "ok"}
            assert client.get("/readyz").status_code == 200
        status, _, err = running.end(number)
    assert (status, err) == (0, "")


@pytest.mark.parametrize("command", ["serve --port 0", "work"])
def test_a_process_without_streams_ends_with_zero_on_a_signal(tmp_path: Path, command: str) -> None:
    reader, writer = os.pipe()
    code = (
        "import os\nfrom service.cli import main, server\non_signals = server.on_signals\n"
        f"server.on_signals = lambda stop: (on_signals(stop), os.write({writer}, b'.'))\n"
        f"raise SystemExit(main.main({command.split()!r}))"
    )
    shell = ["/bin/sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code]
    with subprocess.Popen(  # noqa: S603  our own code
        shell, cwd=tmp_path, env={**surroundings(), **KEYS}, pass_fds=[writer]
    ) as process:
        os.close(writer)
        is_listening = os.read(reader, 1) == b"."  # Nothing if the process has ended.
        os.close(reader)
        process.send_signal(signal.SIGTERM)
        assert (is_listening, process.wait(END_SECONDS)) == (True, 0)


class SlowUpstream(http.server.BaseHTTPRequestHandler):
    """Takes a submission, and answers when the test lets it."""

    asked: threading.Event
    released: threading.Event

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.asked.set()
        self.released.wait(END_SECONDS)
        body = json.dumps(create_answer("task1")).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def accepts(url: str) -> bool:
    port = int(url.rpartition(":")[2])
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionError:  # Refused, or reset while the listening socket is closed.
        return False
    return True


def test_a_request_under_way_is_answered_before_the_end(tmp_path: Path) -> None:
    events = {"asked": threading.Event(), "released": threading.Event()}
    with served(type("Own", (SlowUpstream,), events)) as upstream:
        keys = {"GENHOOK_UPSTREAM_URL": upstream, "GENHOOK_UPSTREAM_API_KEY": "aio_slow"}
        with (
            started(tmp_path, "serve", "--port", "0", **KEYS, **keys) as running,
            running.client() as client,
            ThreadPoolExecutor() as pool,
        ):
            body = {"model": "imagen4-fast", "input": {"prompt": "A slow lighthouse"}}
            answer = pool.submit(client.post, "/v1/generations", json=body)
            assert events["asked"].wait(END_SECONDS)
            running.process.send_signal(signal.SIGTERM)
            while accepts(running.url):
                pass  # Its answer may come meanwhile: a stop ends the wait for upstream.
            events["released"].set()
            out, err = running.process.communicate(timeout=END_SECONDS)
            assert answer.result().status_code == 202
    assert (running.process.returncode, err) == (0, ""), out


def test_a_reader_of_the_log_that_stalls_delays_no_answer_and_no_end(tmp_path: Path) -> None:
    with started(tmp_path, "serve", "--port", "0", **KEYS) as running:
        port = int(running.url.rpartition(":")[2])
        for _ in range(600):  # Each is logged: more than a pipe holds, which is 64 KiB.
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(b"nonsense\r\n\r\n")
                assert connection.recv(100).startswith(b"HTTP/1.1 400")
        with running.client() as client:
            assert 'genhook_log_lines_dropped_total{role="both"} 0.0' in client.get("/metrics").text
        running.process.terminate()
        assert running.process.wait(END_SECONDS) == 0


@pytest.mark.parametrize("command", ["serve", "work"])
def test_without_a_secret_key_nothing_starts(tmp_path: Path, command: str) -> None:
    status, err = ended(tmp_path, command)
    assert status == 2
    assert err.startswith("genhook: GENHOOK_SECRET_KEYS is not set")
    assert err.count("\n") == 1


def test_a_port_in_use_is_one_sentence_and_harms_nobody(tmp_path: Path) -> None:
    with started(tmp_path, "serve", "--port", "0", **KEYS) as running:
        port = running.url.rpartition(":")[2]
        status, err = ended(tmp_path, "serve", "--port", port, **KEYS)
        assert (status, err) == (
            1,
            f"genhook: cannot listen on 127.0.0.1 port {port}: address already in use.\n",
        )
        with running.client() as client:
            assert client.get("/healthz").status_code == 200


def test_a_database_that_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    url = "sqlite:////nowhere/genhook.db"
    status, err = ended(tmp_path, "serve", "--port", "0", **KEYS, GENHOOK_DATABASE_URL=url)
    assert status == 1
    assert err == "genhook: cannot open /nowhere/genhook.db: No such file or directory.\n"


def test_the_worker_alone_ends_with_zero_on_a_signal(tmp_path: Path) -> None:
    with started(tmp_path, "work", ready="worker.started", **KEYS) as running:
        status, _, err = running.end()
    assert (status, err) == (0, "")


async def test_a_worker_that_fails_ends_the_service_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: Worker) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(Worker, "run", fail)
    monkeypatch.setattr(server, "on_signals", lambda *_: None)
    monkeypatch.setattr(stopping, "_end_after", lambda *_: None)  # It ends the process.
    sock = server.bind("127.0.0.1", 0)
    assert await server.serve(App(settings(tmp_path)), sock, None) == 1
    assert await server.work(App(settings(tmp_path)), None) == 1


# --dev


def test_a_second_development_run_opens_what_the_first_sealed(tmp_path: Path) -> None:
    line = ("serve", "--dev", "--port", "0")
    with started(tmp_path, *line) as running:
        key = environment.throwaway_keys(tmp_path / "genhook-dev.db-keys")["GENHOOK_ADMIN_KEY"]
        with running.client(key) as client:
            target = {"url": "http://127.0.0.1:9/"}
            subscriber = client.post("/v1/subscribers", json=target).json()
        assert running.end()[0] == 0
    mode = (tmp_path / "genhook-dev.db-keys").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    with started(tmp_path, *line) as running, running.client(key) as client:
        answer = client.get(f"/v1/subscribers/{subscriber['id']}/secret").json()
        assert answer["secret"] == subscriber["secret"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="the commands are curl's")
def test_the_commands_of_the_banner_can_be_pasted(tmp_path: Path) -> None:
    with started(tmp_path, "serve", "--dev", "--sandbox", "--port", "0") as running:
        shown = "".join(running.lines)
        banner = "".join(line for line in running.lines if not line.startswith("{"))  # No log.
        pasted = banner.partition("terminal:\n")[2]
        done = subprocess.run(  # noqa: S603  our own words
            ["/bin/sh", "-c", pasted], capture_output=True, check=True, text=True
        )
    generation = json.loads(done.stdout)
    assert (generation["status"], generation["route"]) == ("succeeded", "callback")
    assert "settings.missing" not in shown  # The sandbox supplies what is missing.


def test_the_banner_names_what_commands_beside_the_service_need(tmp_path: Path) -> None:
    with started(tmp_path, "serve", "--dev", "--sandbox", "--port", "0") as running:
        text = "".join(running.lines)
        assert "keys     throwaway GENHOOK_SECRET_KEYS and GENHOOK_ADMIN_KEY, in " in text
        lines = "\n".join(line for line in text.splitlines() if line.startswith("  export "))
        script = f'{lines}\n"$0" -c "$1" generations list\n"$0" -c "$1" keys list\n'
        done = subprocess.run(  # noqa: S603  our own words
            ["/bin/sh", "-ec", script, sys.executable, MAIN],
            capture_output=True,
            check=False,
            text=True,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("There are none.")


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:{}"), ("127.0.0.3", "http://127.0.0.3:{}")],
)
def test_a_socket_has_a_url(host: str, url: str) -> None:
    with server.bind(host, 0) as sock:
        assert server.url_of(sock) == url.format(sock.getsockname()[1])


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    with pytest.raises(CommandError, match=r"cannot listen on 192\.0\.2\.1 port 0: "):
        server.bind("192.0.2.1", 0)


def test_a_name_that_leads_nowhere_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_server(address: tuple[str, int], **_: object) -> socket.socket:
        text = f"Name or service not known (while attempting to bind on address {address})"
        raise socket.gaierror(socket.EAI_NONAME, text)

    monkeypatch.setattr(socket, "create_server", create_server)
    with pytest.raises(CommandError, match=r"^cannot listen on a port 1: name or service not kno"):
        server.bind("a", 1)
    with pytest.raises(CommandError, match=r"known\.$"):
        server.bind("a", 1)


# sandbox


def test_the_sandbox_keeps_quiet_about_what_it_is_asked_to_lose(tmp_path: Path) -> None:
    with started(tmp_path, "sandbox", "--port", "0", ready="sandbox of API in One") as running:
        with running.client("aio_x") as client:
            assert "genhook sandbox" in client.get("/").text
            body = {
                "model": "imagen4-fast",
                "prompt": "A lighthouse [sandbox: lose-answer, delay=0]",
            }
            body["callback_url"] = f"{running.url}/secret-token"
            with pytest.raises(httpx.RemoteProtocolError):
                client.post("/api/v1/images/generations", json=body)
        status, out, err = running.end()
    assert (status, err) == (0, "")
    assert "POST /api/v1/images/generations 200" in out
    assert "Traceback" not in out
    assert "lost" not in out
    assert "HTTP Request" not in out


# Clients of a running service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("service")
    with started(folder, "serve", "--dev", "--sandbox", "--port", "0", **KEYS) as running:
        yield running


@pytest.fixture
def genhook(
    service: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, Any]]:
    """A command against the running service; its status, and its JSON or its words."""
    monkeypatch.delenv("GENHOOK_PUBLIC_URL", raising=False)
    monkeypatch.setenv("PORT", service.url.rpartition(":")[2])
    monkeypatch.setenv("GENHOOK_ADMIN_KEY", ADMIN_KEY)
    monkeypatch.setattr(log, "configure", lambda *_, **__: None)

    def run(*line: str) -> tuple[int, Any]:
        status = main.main(line)
        out = capsys.readouterr().out
        return status, json.loads(out) if "--json" in line else out

    return run


Command = Callable[..., tuple[int, Any]]


class Inbox(http.server.BaseHTTPRequestHandler):
    """A receiver on this machine: keeps what comes."""

    got: list[tuple[dict[str, str], bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.got.append((dict(self.headers.items()), body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def inbox() -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    got: list[tuple[dict[str, str], bytes]] = []
    with served(type("Own", (Inbox,), {"got": got})) as url:
        yield f"{url}/inbox", got


def test_a_generation_is_created_awaited_and_shown(genhook: Command) -> None:
    prompt = "A lighthouse [sandbox: delay=0]"
    line = ("generations", "create", "--model", "imagen4-fast", "--prompt", prompt, "--wait")
    status, text = genhook(*line, "--input", '{"seed": 7}')
    assert status == 0
    assert re.search(r"status +succeeded\n", text)
    assert "/files/" in text
    _, page = genhook("generations", "list", "--limit", "1", "--json")
    generation = page["data"][0]
    assert generation["input"] == {"prompt": prompt, "seed": 7}
    assert generation["id"] in genhook("generations", "get", generation["id"])[1]
    status, text = genhook("generations", "timeline", generation["id"])
    kinds = [line.split()[2] for line in text.splitlines()]
    assert status == 0
    assert kinds[0] == "stored"
    assert {"submission", "callback", "poll", "event"} <= set(kinds)


def test_a_generation_that_fails_is_the_status_of_waiting(genhook: Command) -> None:
    prompt = "Nothing [sandbox: fail, delay=0]"
    line = ("generations", "create", "--model", "imagen4-fast", "--prompt", prompt, "--wait")
    status, generation = genhook(*line, "--json")
    assert (status, generation["status"]) == (1, "failed")


def test_a_subscriber_is_created_tested_and_deleted(
    genhook: Command, inbox: tuple[str, list[tuple[dict[str, str], bytes]]]
) -> None:
    url, got = inbox
    line = ("subscribers", "create", url, "--event-types", "ping,generation.failed")
    status, subscriber = genhook(*line, "--json")
    assert (status, subscriber["event_types"]) == (0, ["ping", "generation.failed"])
    assert subscriber["id"] in genhook("subscribers", "list")[1]
    status, text = genhook("subscribers", "test", subscriber["id"])
    assert (status, text[:15]) == (0, "It answered 204")
    headers, body = got[0]
    Webhook(subscriber["secret"]).verify(body, headers)
    assert genhook("subscribers", "delete", subscriber["id"]) == (
        0,
        f"{subscriber['id']} is deleted.\n",
    )
    assert subscriber["id"] not in genhook("subscribers", "list")[1]
    assert genhook("subscribers", "test", subscriber["id"])[0] == 4


def test_a_ping_that_fails_is_the_status(genhook: Command) -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    _, subscriber = genhook("subscribers", "create", url, "--json")
    assert genhook("subscribers", "test", subscriber["id"])[0] == 1
    genhook("subscribers", "delete", subscriber["id"])


def test_listening_sends_events_to_a_local_url_signed(
    genhook: Command, inbox: tuple[str, list[tuple[dict[str, str], bytes]]]
) -> None:
    url, got = inbox
    prompt = "A harbour [sandbox: delay=0]"
    genhook("generations", "create", "--model", "imagen4-fast", "--prompt", prompt, "--wait")
    status, text = genhook("listen", "--once", "--forward-to", url)
    assert status == 0
    secret = re.search(r"signed with (whsec_\S+)", text)
    assert secret
    events = [Webhook(secret[1]).verify(body, headers) for headers, body in got]
    assert {"generation.submitted", "generation.succeeded"} <= {e["type"] for e in events}
    assert text.count("-> 204 in ") == len(events)
    ids = [event["id"] for event in events]
    assert len(set(ids)) == len(ids)
    _, rest = genhook("listen", "--once", "--after", ids[-2])
    assert ids[-1] in rest
    assert ids[-2] not in rest


def test_a_local_url_that_refuses_ends_nothing_but_is_the_status(genhook: Command) -> None:
    prompt = "A harbour [sandbox: delay=0]"
    genhook("generations", "create", "--model", "imagen4-fast", "--prompt", prompt, "--wait")
    status, text = genhook("listen", "--once", "--forward-to", "http://127.0.0.1:1/")
    assert status == 1
    assert text.count("-> ") >= 2


def test_a_key_that_opens_nothing_is_one_sentence(
    genhook: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENHOOK_ADMIN_KEY", "ghk_wrong")
        assert main.main(["generations", "list"]) == 5
    err = capsys.readouterr().err
    assert re.search(r"\(unauthorized\), says http://127.0.0.1:[0-9]+\.\n$", err)
    assert err.count("\n") == 1
    assert genhook("generations", "list")[0] == 0
