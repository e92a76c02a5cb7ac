"""A wrong option or variable: status 2, a sentence that names it, and no request."""

import http.server
from collections.abc import Iterator
from typing import Any

import pytest

from service.cli import main
from service.settings import ENVIRONMENT
from tests.cli.test_serve import served

pytestmark = pytest.mark.usefixtures("bare_environment")
LIST = ["generations", "list"]
REPLAY = ["replay", "sub_1", "--since", "2026-11-22T00:00:00Z"]
CREATE = ["generations", "create", "--model", "m"]


class Service(http.server.BaseHTTPRequestHandler):
    """A server that notes its requests; it is not genhook."""

    seen: list[bytes]

    def do_GET(self) -> None:
        self._note()

    def do_POST(self) -> None:
        self._note()

    def _note(self) -> None:
        self.seen.append(self.rfile.read(int(self.headers.get("content-length", 0))))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """The bodies of the requests to the service that the environment names."""
    bodies: list[bytes] = []
    with served(type("Handler", (Service,), {"seen": bodies})) as url:
        monkeypatch.setenv("GENHOOK_URL", url)
        monkeypatch.setenv("GENHOOK_API_KEY", "ghk_own")
        yield bodies


@pytest.fixture
def port(seen: list[bytes]) -> str:
    return ENVIRONMENT["GENHOOK_URL"].rpartition(":")[2]


def refusal_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says that ends with the status 2."""
    try:
        status: Any = main.main(words)
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    return err


@pytest.mark.parametrize("name", ["--url", "GENHOOK_URL", "GENHOOK_PUBLIC_URL"])
@pytest.mark.parametrize(
    "url",
    [
        "ftp://x",
        "nonsense",
        "http://",
        "http://[::1",
        "http://127.0.0.1:{above}",
        "http://user:hush@127.0.0.1:{port}",
        "http://hush@127.0.0.1:{port}",
        "http://user:hush@[",
    ],
)
def test_a_url_of_no_service_is_named_and_not_shown(
    name: str,
    url: str,
    seen: list[bytes],
    port: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = url.format(port=port, above=int(port) + 65_536)
    option = ["--url", url] if name == "--url" else []
    if not option:
        monkeypatch.delenv("GENHOOK_URL")
        monkeypatch.setenv(name, url)
    for line in (LIST, ["listen", "--once"], ["keys", "list"]):
        said = refusal_of([*line, *option], capsys)
        assert said.startswith(f"genhook: {name} must ")
        assert "hush" not in said
    assert seen == []


@pytest.mark.parametrize("name", ["--key", "GENHOOK_API_KEY", "GENHOOK_ADMIN_KEY"])
def test_a_key_that_cannot_be_sent_is_named(
    name: str,
    seen: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    option = ["--key", "bad hush"] if name == "--key" else []
    if not option:
        monkeypatch.delenv("GENHOOK_API_KEY")
        monkeypatch.setenv(name, "bad hush")
    said = refusal_of([*LIST, *option], capsys)
    assert said.startswith(f"genhook: {name} must be visible ASCII")
    assert "hush" not in said
    assert seen == []


@pytest.mark.parametrize(
    "period",
    [
        "--since 2h",
        "--since 2026-11-22T00:00:00Z",
        "--since 2h --until 2026-11-22T00:00:00Z",
        "--since 2026-11-22T00:00:00Z --until 1h",
    ],
)
def test_an_idempotency_key_is_refused_for_a_period_that_a_repeat_would_not_have(
    period: str, seen: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["replay", "sub_1", *period.split(), "--idempotency-key", "a"]
    assert "--since and --until must be times" in refusal_of(words, capsys)
    assert seen == []


def test_an_idempotency_key_is_refused_where_no_service_would_store_it(
    seen: list[bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["keys", "create", "--name", "a", "--scopes", "read", "--idempotency-key", "a"]
    said = "--idempotency-key needs a service: "
    assert f"{said}leave out --offline." in refusal_of([*words, "--offline"], capsys)
    for name in ("GENHOOK_API_KEY", "GENHOOK_URL"):
        monkeypatch.delenv(name)
    assert f"{said}give --key." in refusal_of(words, capsys)
    assert seen == []


@pytest.mark.parametrize("key", ["\u00e9", "a b", "a\n", "", "x" * 256])
@pytest.mark.parametrize("line", [CREATE, ["generations", "retry", "gen_1"], REPLAY])
def test_an_idempotency_key_that_cannot_be_sent_is_named(
    line: list[str], key: str, seen: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal_of([*line, "--idempotency-key", key], capsys)
    assert f"--idempotency-key: must {'be 1 to 255 visible' if key else 'not be empty'}" in said
    assert seen == []


def test_two_prompts_that_differ_are_refused(
    seen: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    line = [*CREATE, "--prompt", "A flag", "--input"]
    for other in ('"An object"', "null", "1"):
        said = refusal_of([*line, f'{{"prompt":{other}}}'], capsys)
        assert said.startswith("genhook: --prompt and --input ")
    assert seen == []
    main.main([*line, '{"prompt":"A flag","seed":1}'])
    assert seen == [b'{"model":"m","input":{"prompt":"A flag","seed":1}}']
