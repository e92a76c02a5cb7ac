"""Wrong input to the command line: one clear line and a status, and never a traceback."""

import argparse
import copy
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from service.cli import calls, main
from tests.conftest import SECRET_KEY

pytestmark = pytest.mark.usefixtures("bare_environment", "nowhere")
NOT_UTF8 = "abc\udcff"  # As Python hands on bytes that are not UTF-8.
URLS = [
    "http://[::1",
    "http://[",
    "http://[v1.x]/",
    "http://xn--/",
    "http://xn--a.example/",
    "http://é..x/",
    "http://a..b/",
    "http://.",
    "http://%",
    f"http://{'a' * 70}/",
    "http://127.0.0.1:abc",
    "http://127.0.0.1:99999",
    "http://127.0.0.1:-1",
    "http://127.0.0.1:1_0",
    "http://١٢٧.0.0.1:1",
    "http://a\n/",
    "http://\x1b[31m/",
    "http://127.0.0.1:1?a=b#c",
    f"http://{NOT_UTF8}/",
    "ftp://x",
    "//x",
    "x",
    " ",
]
PORTS = ["abc", "-1", "70000", "1_0", "\u0661", " 1\n", "9" * 5_000, "1.0", NOT_UTF8]
KEYS = ["é", NOT_UTF8, "a b", "a\nb", " "]
INPUTS = [
    "[" * 3_000,
    '{"a":' * 3_000,
    '{"a":"\\ud800"}',
    '{"a":1e999}',
    '{"a":NaN}',
    f'{{"a":"{NOT_UTF8}"}}',
]
WORDS = [
    *(["generations", "create", "--model", "m", "--input", text] for text in INPUTS),
    ["generations", "create", "--model", "m", "--prompt", NOT_UTF8],
    ["generations", "create", "--model", NOT_UTF8],
    ["generations", "list", "--after", NOT_UTF8],
    ["generations", "get", NOT_UTF8],
    ["subscribers", "create", NOT_UTF8],
    ["subscribers", "create", "http://x/", "--event-types", f"ping,{NOT_UTF8}"],
    ["subscribers", "list", "--limit", NOT_UTF8],
    ["subscribers", "list", "--url", NOT_UTF8],
    ["listen", "--secret", NOT_UTF8],
    ["listen", "--after", NOT_UTF8],
    *(["listen", "--forward-to", url] for url in URLS if ":" in url and "127.0.0.1" not in url),
    ["keys", "create", "--name", NOT_UTF8, "--scopes", "read"],
    ["keys", "create", "--name", "x", "--scopes", NOT_UTF8],
    ["keys", "create", "--name", "x", "--scopes", "read", "--tenant", NOT_UTF8],
    ["replay", "sub_1", "--since", NOT_UTF8],
    ["replay", "sub_1", "--since", "9" * 5_000 + "d"],
    ["serve", "--host", NOT_UTF8],
    ["sandbox", "--host", "a..b"],
    ["sandbox", "--host", "é..b"],
    ["sandbox", "--host", "é" * 70],
    ["sandbox", "--host", "a" * 70],
    ["sandbox", "--host", NOT_UTF8],
    ["sandbox", "--port", "9" * 5_000],
    [NOT_UTF8],
]


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set a key. Only addresses of this machine are known, so that no test asks a network."""
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        name = host if isinstance(host, bytes) else host.encode("idna")  # It fails as the own does.
        if name == b"127.0.0.1":
            return resolve(host, *arguments, **options)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setenv("GENHOOK_API_KEY", "ghk_own")


def refusal_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line that says what is wrong; the status is 1, or 2 after the usage of the command."""
    capsys.readouterr()
    try:
        status = main.main(words)
    except SystemExit as end:
        status = 0 if end.code == 2 else -1
    err = capsys.readouterr().err
    if status == 0:
        assert err.startswith("usage: genhook")
        return err.partition(": error: ")[2]
    assert status in (1, 2, 3)
    assert err.startswith("genhook: ")
    assert err.count("\n") == 1
    assert err[:-1].isprintable()
    return err


@pytest.mark.parametrize("url", URLS)
def test_a_url_that_leads_to_no_service_is_one_line(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal_of(["generations", "list", "--url", url], capsys)
    for name in ("GENHOOK_PUBLIC_URL", "GENHOOK_URL"):
        monkeypatch.setenv(name, url)
        assert refusal_of(["generations", "list"], capsys)
        assert refusal_of(["listen", "--once"], capsys)


@pytest.mark.parametrize("port", PORTS)
def test_a_port_that_is_none_is_named(
    port: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PORT", port)
    line = refusal_of(["generations", "list"], capsys)
    assert line == "genhook: PORT must be a whole number from 0 to 65535.\n"


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_is_none_is_one_line(
    key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "key" in refusal_of(["generations", "list", "--key", key], capsys)
    monkeypatch.setenv("GENHOOK_API_KEY", key)
    assert "key" in refusal_of(["generations", "list"], capsys).lower()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTP_PROXY", "ftp://a.example"),
        ("HTTP_PROXY", "http://a:b"),
        ("ALL_PROXY", "socks5://127.0.0.1:1"),  # It needs a package that genhook does not.
        ("SSL_CERT_FILE", "/nowhere/ca.pem"),
    ],
)
def test_an_environment_that_no_request_can_follow_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    elsewhere = ["generations", "list", "--url", "http://a.example"]
    assert name in refusal_of(elsewhere, capsys)
    serve(monkeypatch, httpx.Response(200, json={"data": [EVENT], "next": None}))
    forward = ["listen", "--after", "evt_0", "--once", "--forward-to", "http://a.example"]
    assert name in refusal_of(forward, capsys)


@pytest.mark.parametrize("words", WORDS, ids=lambda words: f"{words[0]}-{words[-1][:20]!a}")
def test_a_value_that_is_none_is_one_line(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENHOOK_URL", "http://127.0.0.1:1")  # A service may run on the usual port.
    assert refusal_of(words, capsys)


@pytest.mark.parametrize("depth", range(100, 1_100, 100))
def test_an_input_of_any_depth_is_sent_or_refused_in_one_line(
    depth: int, capsys: pytest.CaptureFixture[str]
) -> None:
    text = '{"a":' * depth + "1" + "}" * depth
    line = ["generations", "create", "--model", "m", "--url", "http://127.0.0.1:1"]
    assert refusal_of([*line, "--input", text], capsys)


@pytest.mark.parametrize("url", ["https://xn--", "https://a..b", f"https://{'a' * 70}"])
def test_an_upstream_that_has_no_name_is_a_finding(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GENHOOK_SECRET_KEYS", SECRET_KEY)
    monkeypatch.setenv("GENHOOK_UPSTREAM_URL", url)
    assert main.main(["doctor", "--online"]) == 1
    assert "fail" in capsys.readouterr().out


# A server that is not genhook

GENERATION = {
    "id": "gen_1",
    "model": "m",
    "status": "failed",
    "route": "poll",
    "task_id": "t",
    "credits": 1,
    "notify_url": None,
    "output": {"files": [{"url": "https://a.example/"}], "raw": {}},
    "error": {"code": "x", "message": "It failed."},
    "created_at": "2026-11-22T18:20:00.000Z",
    "completed_at": None,
}
SUBSCRIBER = {
    "id": "sub_1",
    "status": "active",
    "url": "https://a.example/",
    "event_types": ["ping"],
    "description": None,
    "secret": "whsec_x",
}
ENTRY = {"at": "2026-11-22T18:20:00.000Z", "type": "poll", "summary": "It was.", "detail": {}}
EVENT = {"id": "evt_1", "type": "ping", "timestamp": "2026-11-22T18:20:00.000Z", "data": {}}
ATTEMPT = {"status_code": 200, "duration_ms": 1, "error": None}
KEY = {"id": "key_1", "name": "n", "tenant": "t", "scopes": ["read"], "revoked_at": None}
PARAMETERS = {
    "required": ["a"],
    "properties": {"a": {"enum": [1]}, "b": {"type": "x", "minimum": 1}},
}
MODEL = {"id": "m", "kind": "image", "credits": 4, "callbacks": True, "parameters": PARAMETERS}
DELIVERY = {"id": "dlv_1", "status": "dead", "attempts": [{**ATTEMPT, "number": 1}]}
CALLBACK = {"id": "cb_1", "verdict": "late", "headers": {"a": "b"}, "body": "{}\n\x1b"}
REPLAY = {"id": "rpl_1", "status": "done", "done": 1, "total": 1}
SINCE = "replay sub_1 --since 1h"
ANSWERS: dict[str, Any] = {
    "generations get gen_1": GENERATION,
    "generations create --model m --wait": GENERATION,
    "generations list": {"data": [GENERATION], "next": None},
    "generations timeline gen_1": {"data": [ENTRY], "next": None},
    "subscribers list": {"data": [SUBSCRIBER], "next": "sub_1"},
    "subscribers create http://a.example/": SUBSCRIBER,
    "subscribers test sub_1": {"attempt": ATTEMPT},
    SINCE: REPLAY,
    "generations cancel gen_1": GENERATION,
    "subscribers get sub_1": SUBSCRIBER,
    "subscribers pause sub_1": SUBSCRIBER,
    "subscribers rotate sub_1": {"secret": "whsec_x", "previous_expires_at": None},
    "models": {"data": [MODEL], "next": None},
    "models m": MODEL,
    "deliveries list": {"data": [DELIVERY], "next": None},
    "deliveries get dlv_1": DELIVERY,
    "deliveries retry dlv_1": DELIVERY,
    "events list": {"data": [EVENT], "next": None},
    "events get evt_1": EVENT,
    "callbacks list": {"data": [CALLBACK], "next": None},
    "callbacks get cb_1": CALLBACK,
    "replays list": {"data": [REPLAY], "next": None},
    "replays get rpl_1": REPLAY,
    "replays cancel rpl_1": REPLAY,
    "usage": {"data": [{"day": "2026-11-22", "model": "m", "credits": 1}], "next": None},
    "keys list": {"data": [KEY], "next": None},
    "keys create --name n --scopes read": {**KEY, "key": "ghk_x"},
    "listen --once --forward-to http://127.0.0.1:1": {"data": [EVENT], "next": "evt_1"},
    "listen --after evt_0 --once": {"data": [EVENT], "next": "evt_1"},
}
OTHERS: list[Any] = [None, True, -1, 1.5, "x", "é\n\x1b", [], [None], {}, {"x": 1}]
BODIES = [b"", b"hello", b"\xff", b"[" * 3_000, b"null", b"[]", b"{}", b'"x"', b"{} {}"]


def mutations(value: Any) -> Iterator[Any]:
    """Yield the value without each of its fields, and with another value in place of each part."""
    yield from OTHERS
    children = value.items() if isinstance(value, dict) else ()
    for name, child in children:
        yield {other: copy.deepcopy(value[other]) for other in value if other != name}
        yield from ({**value, name: mutated} for mutated in mutations(child))
    if isinstance(value, list):
        for at, child in enumerate(value):
            yield from ([*value[:at], mutated, *value[at + 1 :]] for mutated in mutations(child))


def serve(monkeypatch: pytest.MonkeyPatch, reply: httpx.Response) -> None:
    """Have commands talk to a server that answers so once; then it has nothing."""
    replies = [reply]

    def answer(_: httpx.Request) -> httpx.Response:
        return replies.pop() if replies else httpx.Response(200, json={"data": [], "next": None})

    def connect(_: argparse.Namespace) -> httpx.Client:
        return httpx.Client(transport=httpx.MockTransport(answer), base_url="http://a.example")

    monkeypatch.setattr(calls, "connect", connect)


@pytest.mark.parametrize("line", ANSWERS)
def test_an_answer_of_any_shape_is_shown_or_one_line(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replies = [httpx.Response(200, json=each) for each in mutations(ANSWERS[line])]
    replies += [httpx.Response(200, content=body) for body in BODIES]
    replies += [httpx.Response(status, content=b) for b in BODIES for status in (301, 404, 503)]
    problem = {"code": "x", "detail": "It is.", "errors": [{"pointer": "/a", "message": "b"}]}
    replies += [httpx.Response(422, json=each) for each in mutations(problem)]
    for reply in replies:
        serve(monkeypatch, reply)
        status = main.main(line.split())
        out, err = capsys.readouterr()
        assert status in (0, 1, 3, 4), reply.content
        assert (out + err).replace("\n", "").isprintable(), (reply.content, out, err)
        assert err.count("\n") == (1 if err else 0), (reply.content, err)


def test_the_good_answers_of_the_sweep_are_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for line, reply in ANSWERS.items():
        serve(monkeypatch, httpx.Response(200, json=reply))
        main.main(line.split())
        assert capsys.readouterr().err == ("1 of 1\n" if line == SINCE else ""), line


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("events list --limit -1", "must be a whole number, at least 1, of up to 20 digits"),
        ("events list --limit 0", "must be a whole number, at least 1, of up to 20 digits"),
        ("subscribers create http://x/ --max-in-flight 0", "must be a whole number, at least 1"),
        ("subscribers rotate sub_1 --overlap-seconds -1", "must be a whole number, at least 0"),
        (
            "subscribers create http://x/ --retry-schedule-seconds 5,,6",
            "must be whole numbers, at least 0 each, with single commas, such as 0,5,300",
        ),
        (
            "subscribers create http://x/ --rate-per-second 1e-9",
            "must be a positive number in digits, such as 0.5, or none",
        ),
        ("sandbox --speed 1e1", "must be a number from 0.01 to 1000, in digits"),
        ('generations create --model m --input {"seed":1e999}', "and 1e999 is no number that"),
        ('generations create --model m --input {"seed":-1e999}', "and -1e999 is no number that"),
        ('generations create --model m --input {"a":[NaN]}', "and NaN is no number that"),
        (
            f'generations create --model m --input {{"a":{"1" * 41}e999}}',
            f"and {'1' * 40}… is no number that",
        ),
        ('generations create --model m --input {"a":1,}', "must be a JSON object, such as"),
    ],
)
def test_a_wrong_value_is_told_which_one_is_right(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal_of(line.split(), capsys)


def test_a_text_in_utf8_is_taken_in_any_locale_but_a_path_is_not() -> None:
    code = (
        "import sys\nfrom service.cli import main\nname, *words = sys.argv[1:]\n"
        "print(ascii(getattr(main.parser('generations').parse_args(words), name)))"
    )
    environ = {"PATH": os.defpath, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    def parse(name: str, *words: str) -> "subprocess.CompletedProcess[str]":
        line = [sys.executable, "-c", code, name, "generations", *words]
        return subprocess.run(line, capture_output=True, text=True, check=False, env=environ)  # noqa: S603

    create = ("create", "--model", "m", "--prompt")
    assert parse("argument_prompt", *create, "\u6e2f").stdout == "'\\u6e2f'\n"
    assert "must be UTF-8" in parse("argument_prompt", *create, "a\udcff").stderr
    assert "must be UTF-8" in parse("argument_directory", "save", "gen_1", "\u6e2f").stderr
