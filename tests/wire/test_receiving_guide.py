"""The receivers that docs/receiving.md shows, each run as it stands there."""

import base64
import hashlib
import hmac
import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.delivery import signing
from service.model.clock import now_ms
from tests import programs
from tests.ports import free_port

TEXT = (Path(__file__).parents[2] / "docs/receiving.md").read_text("utf-8")
KEY = b"k" * 32
SECRET = "whsec_" + base64.b64encode(KEY).decode()
BODY = '{"id":"evt_1","type":"generation.succeeded","data":{"prompt":"Hafen, 港"}}'.encode()
LARGE = BODY[:-2] + b',"url":"' + b"A" * (12 << 20) + b'"}}'  # Decision 12.
TRIES = 3  # Of an installation.
# What npm and Go print if a registry does not answer, or is out of order.
NO_ANSWER = re.compile(
    r"npm error code (E(CONN|AI_|NOTFOUND|TIMEDOUT|HOSTUNREACH|NETUNREACH|5\d\d)|ERR_SOCKET)"
    r"|dial (tcp|udp)|i/o timeout|TLS handshake timeout|connection reset|unexpected EOF"
    r"|\b5\d\d (Internal Server Error|Bad Gateway|Service Unavailable|Gateway Timeout)"
)
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


def snippets(language: str) -> list[str]:
    """The blocks of the page in this language."""
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def snippet(language: str) -> str:
    """The only block of the page in this language."""
    [code] = snippets(language)
    return code


def signed(body: bytes = BODY, *, age_seconds: int = 0, key: bytes = KEY) -> dict[str, str]:
    timestamp = str(now_ms() // 1_000 - age_seconds)
    digest = hmac.digest(key, f"evt_1.{timestamp}.".encode() + body, hashlib.sha256)
    signature = f"v1,{base64.b64encode(digest).decode()}"
    return {"webhook-id": "evt_1", "webhook-timestamp": timestamp, "webhook-signature": signature}


def rotated() -> dict[str, str]:
    """The headers of a request while the secret is rotated."""
    own, other = signed(), signed(key=b"o" * 32)
    return {**own, "webhook-signature": f"{other['webhook-signature']} {own['webhook-signature']}"}


def signed_twice() -> dict[str, str]:
    """The headers of a request to a subscriber with `v1a`."""
    own = signed()
    asymmetric = "v1a," + base64.b64encode(b"s" * 64).decode()
    return {**own, "webhook-signature": f"{asymmetric} {own['webhook-signature']}"}


REQUESTS: dict[str, tuple[Callable[[], dict[str, str]], bytes, int]] = {
    "genuine": (signed, BODY, 204),
    "while a secret is rotated": (rotated, BODY, 204),
    "with v1a beside v1": (signed_twice, BODY, 204),
    "a large event": (lambda: signed(LARGE), LARGE, 204),
    "another body": (signed, BODY.replace(b"evt_1", b"evt_2"), 400),
    "another secret": (lambda: signed(key=b"o" * 32), BODY, 400),
    "an hour old": (lambda: signed(age_seconds=3_600), BODY, 400),
    "no signature": (dict, BODY, 400),
}


def run(folder: Path, *line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603


def install(folder: Path, command: str, program: str) -> None:
    """Run the line of the page that installs packages; skip the test if no registry answers."""
    found = re.search(rf"`({command} [^`]+)`", TEXT)
    assert found, command
    for _ in range(TRIES):
        done = run(folder, program, *shlex.split(found[1])[1:])
        if done.returncode == 0:
            return
    reason = f"{found[1]}: {done.stderr.strip()[-500:]}"
    if NO_ANSWER.search(done.stderr):
        pytest.skip(reason)
    programs.do_without(reason)


@contextmanager
def running(folder: Path, *line: str) -> Iterator[str]:
    """Run a receiver; its URL. It and what it started are killed at the end."""
    port = str(free_port())
    environ = {**os.environ, "GENHOOK_SECRET": SECRET, "PORT": port}  # noqa: TID251  PATH
    words = [word.replace("PORT", port) for word in line]
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
    code, _ = snippets("python")
    names = {"remember_once": lambda id_, _event: remembered.append(id_)}
    exec(compile(code.replace("whsec_…", SECRET), "docs/receiving.md", "exec"), names)  # noqa: S102  our own documentation
    receive: Callable[[bytes, dict[str, str]], int] = names["receive"]  # type: ignore[assignment]
    for name, (headers, body, status) in REQUESTS.items():
        assert receive(body, headers()) == status, name
    assert remembered == ["evt_1"] * 4


def test_the_receiver_with_a_public_key() -> None:
    secrets, other = (signing.new_secrets(os.urandom, asymmetric=True) for _ in range(2))
    assert secrets.private_key
    _, code = snippets("python")
    names: dict[str, Any] = {}
    code = code.replace("whpk_…", signing.public_key_of(secrets.private_key))
    exec(compile(code, "docs/receiving.md", "exec"), names)  # noqa: S102  our own documentation

    def headers(secrets: signing.Secrets) -> dict[str, str]:
        now = now_ms()
        signature = signing.Signer(secrets).header("evt_1", now, BODY)
        times = {"webhook-timestamp": str(now // 1_000), "webhook-id": "evt_1"}
        return {**times, "webhook-signature": signature}

    verify: Callable[[bytes, dict[str, str]], None] = names["verify"]
    verify(BODY, headers(secrets))
    for body, forged in (
        (BODY + b" ", headers(secrets)),
        (BODY, headers(other)),
        (BODY, headers(secrets) | {"webhook-id": "evt_2"}),
    ):
        with pytest.raises(ValueError, match="no v1a signature is genuine"):
            verify(body, forged)
    rotated = secrets.rotated(other, 600, now_ms())
    verify(BODY, headers(rotated))
    for malformed in (
        {},
        signed(),
        signed() | {"webhook-signature": "v1a,A"},
        signed() | {"webhook-signature": "v1a,é"},
        signed() | {"webhook-signature": "v1a,AAAA"},
        headers(secrets) | {"webhook-id": "\udcff"},
    ):
        with pytest.raises(ValueError):
            verify(BODY, malformed)


REGISTRY = """#!/bin/sh
echo >> tries
[ $(wc -l < tries) -le $(cat failures) ] || exit 0
cat error >&2
exit 1
"""


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        ("npm error code ECONNREFUSED", pytest.skip.Exception),
        ("npm error code EAI_AGAIN", pytest.skip.Exception),
        ("npm error code E503", pytest.skip.Exception),
        ("go: x: module x: Get: dial tcp: lookup x: no such host", pytest.skip.Exception),
        ("go: x: reading x: 502 Bad Gateway", pytest.skip.Exception),
        ("npm error code E404", pytest.fail.Exception),
        ("go: x: reading x: 404 Not Found", pytest.fail.Exception),
    ],
)
def test_an_installation_is_tried_again_and_only_without_an_answer_the_test_is_skipped_in_ci(
    tmp_path: Path, error: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "ENVIRONMENT", {"CI": "1"})
    program = tmp_path / "npm"
    program.write_text(REGISTRY, "utf-8")
    program.chmod(0o700)
    (tmp_path / "error").write_text(error, "utf-8")
    (tmp_path / "failures").write_text("2", "utf-8")
    install(tmp_path, "npm install", str(program))
    (tmp_path / "failures").write_text("9", "utf-8")
    with pytest.raises(outcome, match=re.escape(error)):
        install(tmp_path, "npm install", str(program))


@pytest.mark.timeout(900)
def test_the_receiver_in_javascript(tmp_path: Path) -> None:
    node = programs.find("node", "nodejs", package="nodejs")
    install(tmp_path, "npm install", programs.find("npm"))
    code = "const rememberOnce = async () => {};\n" + snippet("js")
    (tmp_path / "receiver.mjs").write_text(code, "utf-8")
    with running(tmp_path, node, "receiver.mjs") as url:
        check(url)


def build(folder: Path, go: str, code: str) -> None:
    """Build the program `receiver` in the module of this folder."""
    (folder / "main.go").write_text(code, "utf-8")
    done = run(folder, go, "build", "-o", "receiver", ".")
    assert done.returncode == 0, done.stderr


def new_module(folder: Path) -> str:
    """Make a module; the path of Go."""
    go = programs.find("go", package="golang-go")
    done = run(folder, go, "mod", "init", "example")
    assert done.returncode == 0, done.stderr
    return go


@pytest.mark.timeout(900)  # The first build on a machine compiles net/http: a minute.
def test_the_receiver_in_go(tmp_path: Path) -> None:
    go = new_module(tmp_path)
    install(tmp_path, "go get", go)
    build(tmp_path, go, snippet("go") + "\nfunc rememberOnce(id string, body []byte) {}\n")
    with running(tmp_path, "./receiver") as url:
        check(url)


@pytest.mark.timeout(900)
def test_go_code_that_does_not_compile_fails(tmp_path: Path) -> None:
    go = new_module(tmp_path)
    with pytest.raises(AssertionError, match="undefined: rememberOnce"):
        build(tmp_path, go, "package main\n\nfunc main() { rememberOnce() }\n")


def test_the_receiver_in_php(tmp_path: Path) -> None:
    php = programs.find("php", package="php-cli")
    code = snippet("php") + "\nfunction remember_once(string $id, array $event): void {}\n"
    (tmp_path / "receiver.php").write_text(code, "utf-8")
    limit = "post_max_size=16M"  # As the page says.
    with running(tmp_path, php, "-d", limit, "-S", "127.0.0.1:PORT", "receiver.php") as url:
        check(url)


def test_the_receiver_in_ruby(tmp_path: Path) -> None:
    ruby = programs.find("ruby")
    path = tmp_path / "receiver.rb"
    path.write_text(snippet("ruby") + RUBY_HARNESS, "utf-8")
    environ = {**os.environ, "GENHOOK_SECRET": SECRET}  # noqa: TID251  PATH
    for name, (headers, body, status) in REQUESTS.items():
        line = [ruby, str(path), json.dumps(headers())]
        done = subprocess.run(line, input=body, env=environ, capture_output=True, check=True)  # noqa: S603
        assert int(done.stdout) == status, name
