"""`service.serverless.handler` in a process of its own, with events as AWS sends them."""

import base64
import http.server
import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import engine
from tests.cli.test_serve import ADMIN_KEY, END_SECONDS, KEYS, served, start, started, surroundings
from tests.cli.test_stopping import hanging
from tests.wire import lambda_events
from tests.wire.test_asgi import paths

# As Lambda's runtime does: it imports the handler, and calls it for one event after the other.
RUNTIME = """
import json, sys, time
from service.serverless import handler

class Context:
    def __init__(self, seconds):
        self.ends_at = time.monotonic() + seconds
    def get_remaining_time_in_millis(self):
        return int((self.ends_at - time.monotonic()) * 1000)

print("ready", file=sys.stderr, flush=True)
for line in sys.stdin:
    print("answer", json.dumps(handler(json.loads(line), Context(60))), file=sys.stderr, flush=True)
"""
OFF = {**KEYS, "GENHOOK_WORKER": "off"}
on_both = pytest.mark.parametrize("database_engine", engine.ENGINES, indirect=True)
KEY = {"authorization": f"Bearer {ADMIN_KEY}"}
Event = Callable[[str, str, dict[str, str], str | None], dict[str, Any]]
named_stage = partial(lambda_events.http_api_v2, stage="prod")
EVENTS: dict[str, tuple[Event, str]] = {
    "REST API": (lambda_events.rest_api, "/Prod"),
    "HTTP API, payload 1.0": (lambda_events.http_api_v1, ""),
    "HTTP API, payload 2.0": (lambda_events.http_api_v2, ""),
    "HTTP API with a named stage": (named_stage, "/prod"),
    "function URL": (lambda_events.function_url, ""),
    "load balancer": (lambda_events.load_balancer, ""),
}


class Function:
    """A Lambda function that was started."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.read("ready")

    def read(self, word: str) -> str:
        assert self.process.stderr is not None
        lines = []
        for line in self.process.stderr:
            lines.append(line)
            if line.startswith(word):
                return line.removeprefix(word)
        pytest.fail("".join(lines))

    def __call__(self, event: dict[str, Any]) -> Any:
        self.send(event)
        return json.loads(self.read("answer"))

    def send(self, event: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(event) + "\n")
        self.process.stdin.flush()


@contextmanager
def function(folder: Path, **environ: str) -> Iterator[Function]:
    """Start a function on a database of the engine of this test."""
    if engine.schemas is not None:
        environ = {"GENHOOK_DATABASE_URL": engine.database_of(folder), **environ}
        with start(folder, "migrate", **KEYS, **environ) as migration:
            assert migration.wait(END_SECONDS) == 0
    with subprocess.Popen(  # noqa: S603  our own code
        [sys.executable, "-c", RUNTIME],
        cwd=folder,
        env={**surroundings(), "PYTHONPATH": paths(), **OFF, **environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Function(process)
        finally:
            process.kill()


@on_both
@pytest.mark.parametrize("name", EVENTS)
def test_requests_of_every_kind_are_answered(tmp_path: Path, name: str) -> None:
    event, base = EVENTS[name]
    public_url = f"https://example.execute-api.us-east-2.amazonaws.com{base}"
    headers = {**KEY, "content-type": "application/json"}
    with function(tmp_path, GENHOOK_PUBLIC_URL=public_url) as call:
        ready = call(event("GET", "/readyz", {}, None))
        assert (ready["statusCode"], ready["isBase64Encoded"]) == (200, False)
        assert json.loads(ready["body"])["checks"]["worker"].startswith("No worker runs here")
        body = '{"url": "https://receiver.example/", "description": "ä"}'
        created = call(event("POST", "/v1/subscribers", headers, body))
        assert created["statusCode"] == 201, created
        assert json.loads(created["body"])["description"] == "ä"
        encoded = event("POST", "/v1/subscribers", headers, None)
        encoded |= {"body": base64.b64encode(body.encode("latin-1")).decode()}
        encoded["isBase64Encoded"] = True
        assert call(encoded)["statusCode"] == 400
        page = call(event("GET", "/v1/subscribers?limit=1&order=asc", KEY, None))
        assert len(json.loads(page["body"])["data"]) == 1
        refused = call(event("GET", "/v1/subscribers", {}, None))
        assert (refused["statusCode"], refused["isBase64Encoded"]) == (401, False)
        assert json.loads(refused["body"])["code"] == "unauthorized"
        head = call(event("HEAD", "/healthz", {}, None))
        assert (head["statusCode"], head["body"]) == (200, "")
        forged = call(event("POST", "/callbacks/apiinone/forged", {}, "{}"))
        assert json.loads(forged["body"])["code"] == "token_invalid"


@pytest.mark.parametrize("name", EVENTS)
def test_a_body_that_cannot_be_read_is_answered_400(tmp_path: Path, name: str) -> None:
    event, base = EVENTS[name]
    public_url = f"https://example.execute-api.us-east-2.amazonaws.com{base}"
    unreadable: list[tuple[Any, bool]] = [("\ud800", False), (5, False), ({"a": 1}, True)]
    unreadable += [(body, True) for body in ("{}", "e30", "e3*0=", "ää==", "\ud800")]
    with function(tmp_path, GENHOOK_PUBLIC_URL=public_url) as call:
        for body, is_encoded in unreadable:
            for path, headers in (("/v1/subscribers", KEY), ("/callbacks/apiinone/x", {})):
                sent = event("POST", path, headers, "") | {"body": body}
                answer = call(sent | {"isBase64Encoded": is_encoded})
                assert answer["statusCode"] == 400, (body, answer)
                assert json.loads(answer["body"])["code"] == "invalid_json"
        no_headers = event("GET", "/healthz", {}, None) | {"headers": None}
        assert call(no_headers)["statusCode"] == 200


OTHER_EVENTS = [{}, [], {"Records": [{"eventSource": "aws:sqs"}]}, lambda_events.WEBSOCKET]


@pytest.mark.parametrize("event", OTHER_EVENTS)
def test_an_event_of_another_kind_is_refused_with_a_sentence(tmp_path: Path, event: Any) -> None:
    with function(tmp_path) as call, pytest.raises(pytest.fail.Exception, match="of a schedule"):
        call(event)


Callback = tuple[str, str]  # Its path and its body.


@contextmanager
def upstream(folder: Path) -> Iterator[tuple[dict[str, str], "queue.Queue[Callback]"]]:
    """Run a sandbox; yield the settings for it, and the callbacks that it sent."""
    callbacks = queue.Queue[Callback]()

    class Gateway(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            callbacks.put((self.path, body.decode()))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    line = ("sandbox", "--port", "0", "--speed", "1000")
    with started(folder, *line, ready=" at ") as sandbox, served(Gateway) as url:
        environ = {
            "GENHOOK_PUBLIC_URL": url,
            "GENHOOK_UPSTREAM_URL": f"{sandbox.url}/api/v1",
            "GENHOOK_UPSTREAM_API_KEY": "aio_sandbox",
            "GENHOOK_SAFETY_POLL_SECONDS": "0.05",
            "GENHOOK_DRIVE_SECONDS": "60",
        }
        yield environ, callbacks


def creation(prompt: str = "A small harbour") -> dict[str, Any]:
    body = json.dumps({"model": "imagen4-fast", "input": {"prompt": prompt}})
    headers = {**KEY, "content-type": "application/json"}
    return lambda_events.http_api_v2("POST", "/v1/generations", headers, body)


def create(call: Function, prompt: str = "A small harbour") -> str:
    """Create a generation; return the path at which it is."""
    answer = call(creation(prompt))
    assert answer["statusCode"] == 202, answer
    return f"/v1/generations/{json.loads(answer['body'])['id']}"


def status(call: Function, path: str) -> str:
    answer = call(lambda_events.http_api_v2("GET", path, KEY, None))
    word: str = json.loads(answer["body"])["status"]
    return word


@on_both
def test_a_callback_needs_no_schedule(tmp_path: Path) -> None:
    with upstream(tmp_path) as (environ, callbacks), function(tmp_path, **environ) as call:
        path = create(call)
        place, body = callbacks.get(timeout=END_SECONDS)
        answer = call(lambda_events.function_url("POST", place, {}, body))
        assert answer["statusCode"] == 200, answer
        assert status(call, path) == "succeeded"


@on_both
def test_no_submission_is_under_way_when_the_function_is_frozen(tmp_path: Path) -> None:
    asked, released = threading.Event(), threading.Event()
    with served(hanging(asked, released)) as url:
        environ = {
            "GENHOOK_UPSTREAM_URL": url,
            "GENHOOK_UPSTREAM_API_KEY": "aio_upstream",
            "GENHOOK_SUBMIT_WAIT_SECONDS": "0",
            "GENHOOK_DRIVE_SECONDS": "0",
        }
        with function(tmp_path, **environ) as call:
            call.send(creation())
            assert asked.wait(END_SECONDS)
            released.set()
            answer = json.loads(json.loads(call.read("answer"))["body"])
            assert status(call, f"/v1/generations/{answer['id']}") == "processing"


def tick_until_ended(call: Function, path: str) -> int:
    """Let a schedule run ticks until a generation has ended; return how many polls they made."""
    polled = 0
    while status(call, path) in ("queued", "processing"):
        polled += call(lambda_events.SCHEDULE)["polled"]
    return polled


@on_both
def test_a_schedule_runs_a_tick(tmp_path: Path) -> None:
    own = {"GENHOOK_DRIVE_SECONDS": "0"}  # Else a request may do what is left to the schedule.
    with upstream(tmp_path) as (environ, _), function(tmp_path, **(environ | own)) as call:
        done = call(lambda_events.SCHEDULE)
        counts = ("submitted", "polled", "attempted", "replayed", "deleted")
        assert done == {**dict.fromkeys(counts, 0), "more": False}
        path = create(call, "A night train [sandbox: lose-callback]")
        assert tick_until_ended(call, path) >= 1
        assert status(call, path) == "succeeded"


@on_both
def test_a_function_that_was_frozen_goes_on(tmp_path: Path) -> None:
    """On PostgreSQL every connection is ended meanwhile, as a server or a proxy ends idle ones."""
    with upstream(tmp_path) as (environ, callbacks), function(tmp_path, **environ) as call:
        for _ in range(2):
            path = create(call)
            call.process.send_signal(signal.SIGSTOP)
            place, body = callbacks.get(timeout=END_SECONDS)
            if engine.schemas is not None:
                assert engine.schemas.end_connections() > 0
            call.send(lambda_events.function_url("POST", place, {}, body))
            call.process.send_signal(signal.SIGCONT)
            assert json.loads(call.read("answer"))["statusCode"] == 200
            assert status(call, path) == "succeeded"


def test_a_start_that_fails_is_answered_503_and_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    with function(tmp_path, GENHOOK_DATABASE_URL=f"sqlite:///{folder}/genhook.db") as call:
        ready = lambda_events.function_url("GET", "/readyz", {}, None)
        answer = call(ready)
        assert (answer["statusCode"], json.loads(answer["body"])["status"]) == (503, 503)
        folder.mkdir()
        assert call(ready)["statusCode"] == 200


def test_a_worker_on_lambda_is_refused_at_the_start(tmp_path: Path) -> None:
    done = subprocess.run(  # noqa: S603  our own code
        [sys.executable, "-c", RUNTIME],
        cwd=tmp_path,
        env={**surroundings(), "PYTHONPATH": paths(), **KEYS},
        input="",
        capture_output=True,
        text=True,
        timeout=END_SECONDS,
        check=False,
    )
    assert "GENHOOK_WORKER must be off on Lambda" in done.stderr
