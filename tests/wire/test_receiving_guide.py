"""The receivers that docs/receiving.md shows, each run as it stands there."""

import base64
import hashlib
import hmac
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from service.model.clock import now_ms

TEXT = (Path(__file__).parents[2] / "docs/receiving.md").read_text("utf-8")
KEY = b"k" * 32
SECRET = "whsec_" + base64.b64encode(KEY).decode()
BODY = '{"id":"evt_1","type":"generation.succeeded","data":{"prompt":"Hafen, 港"}}'.encode()
IS_SLOW_WANTED = "SLOW_TESTS" in os.environ  # noqa: TID251  a setting of the tests
RUBY_HARNESS = """
require "stringio"
def remember_once(id, event)
  raise "another id" unless event["id"] == "evt_1"
end
headers = JSON.parse(ARGV[0])
env = headers.to_h { |name, value| ["HTTP_" + name.upcase.tr("-", "_"), value] }
env["rack.input"] = StringIO.new($stdin.binmode.read)
print Receiver.call(env)[0]
"""


def snippet(language: str) -> str:
    """The first block of the page in this language."""
    found = re.search(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    assert found, language
    return found[1]


def signed(body: bytes = BODY, *, age_seconds: int = 0, key: bytes = KEY) -> dict[str, str]:
    timestamp = str(now_ms() // 1_000 - age_seconds)
    digest = hmac.digest(key, f"evt_1.{timestamp}.".encode() + body, hashlib.sha256)
    signature = f"v1,{base64.b64encode(digest).decode()}"
    return {"webhook-id": "evt_1", "webhook-timestamp": timestamp, "webhook-signature": signature}


def rotated() -> dict[str, str]:
    """The headers of a request while the secret is rotated."""
    own, other = signed(), signed(key=b"o" * 32)
    return {**own, "webhook-signature": f"{other['webhook-signature']} {own['webhook-signature']}"}


REQUESTS: dict[str, tuple[Callable[[], dict[str, str]], bytes, int]] = {
    "genuine": (signed, BODY, 204),
    "while a secret is rotated": (rotated, BODY, 204),
    "another body": (signed, BODY.replace(b"evt_1", b"evt_2"), 400),
    "another secret": (lambda: signed(key=b"o" * 32), BODY, 400),
    "an hour old": (lambda: signed(age_seconds=3_600), BODY, 400),
    "no signature": (dict, BODY, 400),
}


def program(name: str) -> str:
    return shutil.which(name) or pytest.skip(f"{name} is not installed")


def prepare(folder: Path, *line: str) -> None:
    """Fetch packages, or skip the test where there is no registry."""
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        pytest.skip(f"{line[0]}: {done.stderr.strip()[-200:]}")


@contextmanager
def running(folder: Path, *line: str) -> Iterator[str]:
    """Run a receiver; its URL. It and what it started are killed at the end."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    environ = {**os.environ, "GENHOOK_SECRET": SECRET, "PORT": str(port)}  # noqa: TID251  PATH
    words = [word.replace("PORT", str(port)) for word in line]
    process = subprocess.Popen(words, cwd=folder, env=environ, process_group=0)  # noqa: S603
    try:
        yield f"http://127.0.0.1:{port}/webhooks/genhook"
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def check(url: str) -> None:
    """Send every request, once the receiver listens."""
    with httpx.Client(transport=httpx.HTTPTransport(retries=8), timeout=10) as client:
        for name, (headers, body, status) in REQUESTS.items():
            kind = {"content-type": "application/json"}
            answer = client.post(url, content=body, headers=headers() | kind)
            assert answer.status_code == status, name


def test_the_receiver_in_python() -> None:
    remembered: list[str] = []
    code = snippet("python").replace("whsec_…", SECRET)
    names = {"remember_once": lambda id_, _event: remembered.append(id_)}
    exec(compile(code, "docs/receiving.md", "exec"), names)  # noqa: S102  our own documentation
    receive: Callable[[bytes, dict[str, str]], int] = names["receive"]  # type: ignore[assignment]
    for name, (headers, body, status) in REQUESTS.items():
        assert receive(body, headers()) == status, name
    assert remembered == ["evt_1", "evt_1"]


@pytest.mark.timeout(300)
def test_the_receiver_in_javascript(tmp_path: Path) -> None:
    node = program("node")
    prepare(tmp_path, program("npm"), "install", "--no-audit", "standardwebhooks", "express")
    code = "const rememberOnce = async () => {};\n" + snippet("js")
    (tmp_path / "receiver.mjs").write_text(code, "utf-8")
    with running(tmp_path, node, "receiver.mjs") as url:
        check(url)


@pytest.mark.timeout(300)
@pytest.mark.skipif(not IS_SLOW_WANTED, reason="a build of a minute: SLOW_TESTS=1")
def test_the_receiver_in_go(tmp_path: Path) -> None:
    go, library = program("go"), "github.com/standard-webhooks/standard-webhooks/libraries"
    prepare(tmp_path, go, "mod", "init", "example")
    prepare(tmp_path, go, "get", f"{library}@v0.0.1")
    code = snippet("go") + "\nfunc rememberOnce(id string, body []byte) {}\n"
    (tmp_path / "main.go").write_text(code, "utf-8")
    prepare(tmp_path, go, "build", "-o", "receiver", ".")
    with running(tmp_path, "./receiver") as url:
        check(url)


def test_the_receiver_in_php(tmp_path: Path) -> None:
    php = program("php")
    code = snippet("php") + "\nfunction remember_once(string $id, array $event): void {}\n"
    (tmp_path / "receiver.php").write_text(code, "utf-8")
    with running(tmp_path, php, "-S", "127.0.0.1:PORT", "receiver.php") as url:
        check(url)


def test_the_receiver_in_ruby(tmp_path: Path) -> None:
    ruby = program("ruby")
    path = tmp_path / "receiver.rb"
    path.write_text(snippet("ruby") + RUBY_HARNESS, "utf-8")
    environ = {**os.environ, "GENHOOK_SECRET": SECRET}  # noqa: TID251  PATH
    for name, (headers, body, status) in REQUESTS.items():
        line = [ruby, str(path), json.dumps(headers())]
        done = subprocess.run(line, input=body, env=environ, capture_output=True, check=True)  # noqa: S603
        assert int(done.stdout) == status, name
