"""`genhook listen`: events as they come, from a service that may be away."""

import http.server
import json
from typing import Any

import httpx
import pytest

from service.cli import listen, main
from service.model.clock import parse_rfc3339, rfc3339
from tests.cli.test_main import run, served
from tests.cli.test_serve import served as receiving

NOW = parse_rfc3339("2026-11-22T18:20:00Z")


Reply = httpx.Response | Exception


def event(number: int) -> bytes:
    value = {"id": f"evt_{number}", "type": "ping", "timestamp": rfc3339(NOW), "data": {}}
    return json.dumps(value, indent=number).encode()  # So that encoding it anew would show.


def page(*events: bytes) -> httpx.Response:
    ids = [json.loads(each)["id"] for each in events]
    after = json.dumps(ids[-1] if ids else None).encode()
    return httpx.Response(
        200, content=b'{"data":[' + b",".join(events) + b'],"next":' + after + b"}"
    )


def listen_to(script: list[Reply], monkeypatch: pytest.MonkeyPatch, line: str = "") -> list[str]:
    """Listen to a service with these answers, then interrupt; the `after` of each request."""
    cursors: list[str] = []

    def reply(request: httpx.Request) -> httpx.Response:
        cursors.append(request.url.params.get("after", ""))
        if not script:
            raise KeyboardInterrupt
        answer = script.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    served(monkeypatch, reply)
    options = main.parser("listen").parse_args(["listen", *line.split()])
    with pytest.raises(KeyboardInterrupt):
        listen.listen(options, lambda _: None)
    return cursors


def test_listening_starts_at_what_is_new_and_goes_on_from_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script: list[Reply] = [page(event(1)), page(event(2), event(3)), page()]
    assert listen_to(script, monkeypatch) == ["", "evt_1", "evt_3", "evt_3"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["18:20:00", "ping", "evt_2"],
        ["18:20:00", "ping", "evt_3"],
    ]


def test_listening_waits_for_a_service_that_is_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    away = httpx.ConnectError("refused")
    busy = httpx.Response(503, json={"detail": "Not now.", "code": "storage_unavailable"})
    script: list[Reply] = [away, busy, page(event(2))]
    assert listen_to([*script], monkeypatch, "--after evt_1 --json") == ["evt_1"] * 3 + ["evt_2"]
    shown = capsys.readouterr()
    assert shown.err.count("Trying again.") == 1
    assert shown.out == event(2).decode() + "\n"
    listen_to(script, monkeypatch, "--after evt_1")
    shown = capsys.readouterr()
    assert shown.err == "genhook: no answer from http://genhook: refused. Trying again.\n"
    assert len(shown.out.splitlines()) == 1


def test_with_json_the_output_of_listening_is_only_events(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replies = [page(), page(event(0), event(0))]
    served(monkeypatch, lambda _: replies.pop())
    assert run("listen --once --json --forward-to http://127.0.0.1:1") == 1
    shown = capsys.readouterr()
    assert shown.out == f"{event(0).decode()}\n" * 2
    assert "signed with whsec_" in shown.err
    assert shown.err.count("refused") == 2


def test_listening_with_a_secret_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served(monkeypatch, lambda _: page())
    assert run("listen --once --forward-to http://127.0.0.1:1 --secret whsec_short") == 2
    assert "--secret must be base64" in capsys.readouterr().err


def test_events_go_to_this_machine_without_the_proxy_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")  # Nothing listens there.
    paths: list[str] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            paths.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    replies = [page(), page(event(1))]
    served(monkeypatch, lambda _: replies.pop())
    with receiving(Receiver) as url:
        assert run(f"listen --once --forward-to {url}/hooks") == 0
    assert paths == ["/hooks"]
    assert "204" in capsys.readouterr().out
