"""What a server that lies can take from a client: so many bytes, and so much time."""

import contextlib
import http.server
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.cli import calls, doctor, listen, main, saving
from service.cli.deadline import LateError, deadline
from service.settings import Settings
from tests.cli.test_serve import served
from tests.cli.test_wrong_input import GENERATION, serve

pytestmark = pytest.mark.usefixtures("bare_environment")
SECONDS = 0.2  # In place of a minute. The servers below do not end before their client does.
NEVER = threading.Event()
GET = ["generations", "get", "gen_1"]


class Endless(http.server.BaseHTTPRequestHandler):
    """A server whose answers do not end: heads, bodies that drip, bodies that pour."""

    def do_GET(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            if "/dripping-head" in self.path:
                self._send(b"HTTP/1.1 200 OK\r\nX-Long: ", b"a")
            elif "/dripping" in self.path:
                self._send(b"HTTP/1.1 200 OK\r\n\r\n", b" ")
            elif "/no-http" in self.path:
                self.wfile.write(b"garbage\r\n\r\n")
            elif self.path.startswith("/v1/generations"):
                files = [{"url": f"http://{self.headers['host']}/pouring.png"}]
                self._result(files)
            else:
                self._send(b"HTTP/1.1 200 OK\r\n\r\n", b" " * 65_536)

    def do_POST(self) -> None:
        self.do_GET()

    def _result(self, files: list[Any]) -> None:
        names = ("model", "route", "task_id", "credits", "notify_url", "error", "completed_at")
        generation = {**dict.fromkeys(names), "id": "gen_1", "status": "succeeded"}
        generation |= {"model": "m", "route": "poll", "created_at": "2026-11-22T18:20:00.000Z"}
        generation["output"] = {"files": files, "raw": {}}
        body = json.dumps(generation).encode()
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    def _send(self, head: bytes, part: bytes) -> None:
        self.wfile.write(head)
        while True:
            self.wfile.write(part)
            if len(part) == 1:
                NEVER.wait(0.01)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("GENHOOK_API_KEY", "ghk_own")
    with served(Endless) as url:
        yield url


@pytest.mark.parametrize("path", ["/dripping-head", "/dripping"])
def test_a_service_that_drips_bytes_ends_in_one_sentence(
    path: str, endless: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calls, "REQUEST_SECONDS", SECONDS)
    assert main.main([*GET, "--url", endless + path]) == 3
    said = f"genhook: no answer from {endless}{path}/: it takes more than {SECONDS} s.\n"
    assert capsys.readouterr() == ("", said)


def test_a_server_that_does_not_speak_http_ends_in_one_sentence(
    endless: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main([*GET, "--url", f"{endless}/no-http"]) == 3
    said = f"genhook: no answer from {endless}/no-http/: what it sends is not HTTP.\n"
    assert capsys.readouterr() == ("", said)


def test_an_answer_is_read_up_to_a_limit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = b'{"data":[],"next":null}'
    monkeypatch.setattr(calls, "ANSWER_BYTES_MAX", 1 << 20)
    serve(monkeypatch, httpx.Response(200, content=page.ljust(1 << 20)))
    assert main.main(["generations", "list"]) == 0
    capsys.readouterr()
    serve(monkeypatch, httpx.Response(200, content=page.ljust((1 << 20) + 1)))
    assert main.main(["generations", "list"]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "answered with more than 1 MiB" in err


@pytest.mark.parametrize("words", [["generations", "save", "gen_1"], [*GET, "--save"]])
def test_a_file_that_does_not_end_is_cut_and_removed_at_the_limit_of_the_option(
    words: list[str], endless: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [*words, str(tmp_path), "--max-bytes", "100000", "--url", endless]
    assert main.main(line) == 1
    assert "is not saved: it has more than 97.7 KiB: see --max-bytes." in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "level", "said"),
    [
        ("/dripping-head", "fail", "does not answer: "),
        ("/dripping", "ok", "Upstream answers and accepts the key."),
        ("/pouring", "ok", "Upstream answers and accepts the key."),
    ],
)
def test_an_upstream_whose_answer_does_not_end_is_a_finding(
    path: str, level: str, said: str, endless: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if level == "fail":
        monkeypatch.setattr(doctor, "ONLINE_SECONDS", SECONDS)
    settings = Settings(upstream_url=endless + path)
    [finding] = doctor._online(settings, 0)
    assert finding.level == level
    assert said in finding.message


@pytest.mark.parametrize("path", ["/dripping-head.png", "/dripping.png"])
def test_a_file_that_drips_ends_in_one_sentence(
    path: str, endless: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "FILE_SECONDS", SECONDS)
    notes: list[str] = []
    generation = {"id": "gen_1", "output": {"files": [{"url": endless + path}]}}
    assert not saving.save(generation, str(tmp_path), notes.append)
    assert notes[0].endswith(f" is not saved: it takes more than {SECONDS} s.")
    assert list(tmp_path.iterdir()) == []


def test_a_receiver_that_drips_bytes_is_left(endless: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "FORWARD_SECONDS", SECONDS)
    is_accepted, said = listen._forward(f"{endless}/dripping", b"key", "evt_1", b"{}")
    assert (is_accepted, said) == (False, f"-> it takes more than {SECONDS} s")


def test_no_look_at_a_generation_is_longer_than_a_router_waits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    views = [
        {**GENERATION, "status": status} for status in ("succeeded", "processing", "processing")
    ]

    def answer(request: httpx.Request) -> httpx.Response:
        """Answer as API Gateway in front of genhook, whose limit is the shortest: 29 s."""
        if float(request.url.params.get("wait", 0)) >= 29:
            return httpx.Response(504)
        return httpx.Response(200, json=views.pop())

    def connect(_: object) -> httpx.Client:
        return httpx.Client(transport=httpx.MockTransport(answer), base_url="http://a.example")

    monkeypatch.setattr(calls, "connect", connect)
    monkeypatch.setattr(calls, "RETRY_SECONDS", 0)
    assert main.main([*GET, "--wait"]) == 0, capsys.readouterr().err
    assert views == []


def test_a_signal_that_ends_no_system_call_is_heard_all_the_same() -> None:
    """One that comes to another thread is like one that comes just before the call."""
    main_thread = Path(f"/proc/self/task/{threading.get_native_id()}/stat")

    def send() -> None:
        while main_thread.read_text().rpartition(")")[2].split()[0] != "S":  # It sleeps.
            NEVER.wait(0.01)
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    def receive() -> None:
        sender.start()
        one.recv(1)

    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    sender = threading.Thread(target=send)
    one, other = socket.socketpair()
    try:
        with one, other, pytest.raises(KeyboardInterrupt), deadline(60):
            receive()
    finally:
        signal.signal(signal.SIGUSR1, before)
        sender.join()


@pytest.mark.parametrize("seconds", [0.005, 0.025])
def test_a_deadline_ends_a_call_that_waits_at_its_time(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.cli.deadline.TICK_SECONDS", 0.01)
    one, other = socket.socketpair()
    began = time.monotonic()
    with one, other, pytest.raises(LateError), deadline(seconds):
        one.recv(1)
    assert time.monotonic() - began >= seconds


def test_what_a_deadline_ends_may_take_longer_to_clean_up() -> None:
    def work() -> None:
        try:
            NEVER.wait(5)
        finally:
            NEVER.wait(0.05)

    with pytest.raises(LateError) as raised, deadline(0.01):
        work()
    assert raised.value.__context__ is None


@pytest.mark.parametrize("size", ["0", "-1", "x", "1.5"])
def test_a_limit_of_no_bytes_is_wrong(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main.main(["generations", "save", "gen_1", "--max-bytes", size])
    assert "--max-bytes: must be a whole number of bytes, at least 1" in capsys.readouterr().err
