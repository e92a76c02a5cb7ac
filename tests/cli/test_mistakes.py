"""Mistakes of people at the command line: none does another thing than was meant, unnoticed."""

import argparse
import http.server
import json
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.cli import calls, generations, main
from service.cli.arguments import parse_json_object
from service.cli.calls import UnreachableError
from tests.cli import test_serve
from tests.cli.test_main import COMMANDS, run, served

pytestmark = pytest.mark.usefixtures("bare_environment")
CREATE = "generations create --model m --prompt hello"
GENERATION = {
    "id": "gen_1",
    "model": "m",
    "status": "processing",
    "route": "poll",
    "task_id": None,
    "retry_of": None,
    "output": None,
    "error": None,
    "credits": None,
    "notify_url": None,
    "created_at": "2026-11-22T18:20:00Z",
    "completed_at": None,
}


PREFIXES = {
    "callbacks": "cb",
    "deliveries": "dlv",
    "events": "evt",
    "generations": "gen",
    "keys": "key",
    "replays": "rpl",
    "subscribers": "sub",
}


def takes_id(command: argparse.ArgumentParser) -> bool:
    """Whether it is about one thing, whose id is given."""
    return any((each.dest, each.metavar) == ("argument_id", "ID") for each in command._actions)


def refused(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command line that is wrong is told; its status is 2."""
    try:
        status: Any = main.main(shlex.split(line))
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    return capsys.readouterr().err.splitlines()[-1]


# The command line


@pytest.mark.parametrize(
    "line",
    [
        "generations list --url ''",
        "generations list --key ''",
        "generations list --after ''",
        "generations create --model m --save ''",
        "generations save gen_1 ''",
        "usage --tenant ''",
        "backup ''",
        "demo --output ''",
        "copy --from '' --to sqlite:///a.db",
        "copy --from sqlite:///a.db --to ''",
        "deliveries get ''",
        "models ''",
        "replay sub_1 --since ''",
        "subscribers create URL --event-types ''",
        "listen --forward-to ''",
        "serve --host ''",
        "sandbox --api-key ''",
    ],
)
def test_an_empty_value_is_refused_as_that_of_a_variable_that_is_not_set(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENHOOK_API_KEY", "ghk_own")
    assert refused(line, capsys).endswith("must not be empty")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        ("subscribers create URL --event-types ping --event-types all", "event-types"),
        ("subscribers create URL --payload thin --pay=full", "payload"),
        ("subscribers update sub_1 --ordered --ordered false", "ordered"),
        ("keys create --name a --scopes submit --scopes read", "scopes"),
        (f"{CREATE} --model m", "model"),
        ("replay sub_1 --since 1h --since 2h", "since"),
        ("replay sub_1 --since 1h --only all --only dead", "only"),
        ("generations list --url http://a --url http://b", "url"),
        ("sandbox --port 1 --port 2", "port"),
        ("tick --every 5 --every 6", "every"),
        ("generations list --json --json", "json"),
        (f"{CREATE} --wait --wait", "wait"),
        ("serve --dev --dev", "dev"),
    ],
)
def test_a_value_that_is_given_twice_is_refused(
    line: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(line, capsys).endswith(f"argument --{flag}: is given twice: give it once")


@pytest.mark.parametrize("option", ["--wait", "--save folder"])
@pytest.mark.parametrize("line", [CREATE, "generations retry gen_1"])
def test_to_wait_and_not_to_wait_is_refused(
    line: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--no-wait" in refused(f"{line} --no-wait {option}", capsys)


@pytest.mark.parametrize("line", ["generations list", "events get evt_1", "listen", CREATE])
def test_with_a_closed_output_nothing_is_sent(line: str) -> None:
    words = [*shlex.split(line), "--url", "http://127.0.0.1:1", "--key", "k"]
    code = f"from service.cli import main; raise SystemExit(main.main({words!r}))"
    shell = ["/bin/sh", "-c", '"$0" -c "$1" >&-', sys.executable, code]
    ended = subprocess.run(shell, check=False, stderr=subprocess.PIPE, text=True)  # noqa: S603  our own code
    assert ended.returncode == 1
    assert ended.stderr == "genhook: standard output is closed: nobody would see the answer.\n"


@pytest.mark.parametrize("line", ["backup", "demo --output", "generations save gen_1"])
def test_a_path_that_is_not_utf8_is_refused(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(f"{line} a\udcff", capsys).endswith("must be UTF-8")


def test_help_names_the_values_of_options_as_people_do() -> None:
    texts = {name: parser.format_help() for name, parser in COMMANDS.items()}
    assert [name for name, text in texts.items() if "ARGUMENT_" in text] == []
    assert "--model MODEL" in texts["genhook generations create"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"{CREATE} --metadata a=b --metadata a=c", "--metadata gives a twice"),
        ("generations list --metadata a=b --metadata a=c", "--metadata gives a twice"),
        ("subscribers create http://x/ --header A=b --header A=c", "--header gives A twice"),
        ("""generations create --model m --input '{"a": 1, "a": 2}'""", "every name once"),
        ("""generations create --model m --input '{"a": [{"b": 1, "b": 1}]}'""", "every name once"),
        ("models a b", "name one model"),
        ("models get", "name the model to show"),
        ("subscribers create http://x/ --models all,a", "must be names with commas, or all"),
        ("subscribers create http://x/ --models a,,b", "must be names with commas, or all"),
        ("subscribers update sub_1 --header none --header A=b", "--header none takes all away"),
        (f"listen --secret whsec_{'a' * 44}", "--secret signs what --forward-to sends"),
        ("generations get gen_1 --max-bytes 5", "--max-bytes limits what --save saves"),
        ("generations retry gen_1 --max-bytes 5", "--max-bytes limits what --save saves"),
        (f"{CREATE} --max-bytes 5", "--max-bytes limits what --save saves"),
        ("replay sub_1 --since -1h", "--since: -1h is neither an age"),
        (
            "generations create --model m --prompt -x",
            "--prompt: must have a value",
        ),
        ("deliveries list --subscriber-id gen_1", "must be the id of a subscriber"),
        ("deliveries list --event-id gen_1", "--event-id: must be the id of an event"),
        ("callbacks list --generation-id sub_1", "--generation-id: must be the id of a generation"),
        ("listen --after gen_1", "--after: must be the id of an event, such as evt_0"),
        ("replay gen_1 --since 1h", "must be the id of a subscriber, such as sub_0"),
        ("models a --kind video", "not both"),
        ("subscribers update sub_1", "name a field to change"),
        ("copy --from mysql://x --to sqlite:///a.db", "--from: must look like sqlite:///"),
        ("copy --from sqlite:///a.db --to sqlite:///:memory:", "--to: must be a file"),
        ("generations list --url http://127.0.0.1:1?a=b", "must be the URL of a service"),
        ("generations list --url http://127.0.0.1:1/#a", "must be the URL of a service"),
        ("generations list --url 'http://a b/'", "must be the URL of a service"),
        (r"generations list --url 'http://127.0.0.1\:1'", "must be the URL of a service"),
        ("generations list --url http://127.0.0.1:1/v1", "--url must be given without /v1"),
        ("models --url https://host/genhook/v1/", "--url must be given without /v1"),
    ],
)
def test_what_is_ambiguous_or_wrong_is_refused_before_anything_is_sent(
    line: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GENHOOK_API_KEY", "ghk_own")
    monkeypatch.setattr(httpx.Client, "send", lambda *_, **__: pytest.fail("it was sent"))
    assert said in refused(line, capsys)


@pytest.mark.parametrize("name", sorted(name for name in COMMANDS if takes_id(COMMANDS[name])))
def test_an_id_of_another_kind_is_refused_with_one_of_its_own(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = PREFIXES[name.split()[1]]
    for other in {*PREFIXES.values()} - {own}:
        said = refused(f"{name.removeprefix('genhook ')} {other}_1", capsys)
        assert re.search(f"ID: must be the id of an? [a-z]+, such as {own}_0", said)


@pytest.mark.parametrize("line", ["generations list --nope", "generations list more"])
def test_what_a_command_does_not_take_is_refused_with_the_usage_of_that_command(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main.main(line.split())
    said = capsys.readouterr().err
    assert said.startswith("usage: genhook generations list ")
    assert said.endswith(f"genhook generations list: error: unrecognized arguments: {line[17:]}\n")


def test_an_id_of_a_model_is_no_part_of_a_template(monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path)
        return httpx.Response(200, json={"id": "a", "parameters": {}})

    served(monkeypatch, answer)
    options = main.parser("models").parse_args(["models", "a"])
    options.argument_id = ["a{b}"]  # Which the check of ids would refuse.
    assert options.run(options) == 0
    assert paths == ["/v1/models/a{b}"]


def test_json_of_any_depth_is_read_or_refused() -> None:
    refusals = set()
    for depth in range(900, 1_001):  # Where names are looked for, the stack ends a little earlier.
        text = '{"\\u0061": ' + "[" * depth + "]" * depth + "}"
        try:
            assert list(parse_json_object(text)) == ["a"]
        except argparse.ArgumentTypeError as error:
            refusals.add(str(error))
    assert [text[:21] for text in refusals] == ["must be a JSON object"]


# Answers


@pytest.mark.parametrize(("status", "ended"), [(401, 1), (403, 1), (404, 1), (502, 3), (503, 3)])
def test_an_answer_of_another_server_says_nothing_about_an_id_or_a_key(
    status: int, ended: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served(monkeypatch, lambda _: httpx.Response(status, text="<html>"))
    assert run("generations get gen_1") == ended
    assert "not with a problem of genhook" in capsys.readouterr().err


def test_a_redirect_is_named_and_not_followed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = {"location": "https://genhook.example/v1/generations"}
    served(monkeypatch, lambda _: httpx.Response(301, headers=there))
    assert run("generations list") == 1
    assert capsys.readouterr().err.endswith(f"it redirects to {there['location']}.\n")


def broken_off(_: httpx.Request) -> httpx.Response:
    raise httpx.RemoteProtocolError("Server disconnected")


@pytest.mark.parametrize("line", [CREATE, f"{CREATE} --wait", "generations retry gen_1"])
@pytest.mark.parametrize("answer", [broken_off, lambda _: httpx.Response(504, text="<html>")])
def test_a_request_whose_answer_is_lost_can_be_repeated_without_paying_twice(
    line: str,
    answer: Callable[[httpx.Request], httpx.Response],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sent: list[httpx.Request] = []

    def lose(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return answer(request)

    served(monkeypatch, lose)
    assert run(line) == 3
    said = capsys.readouterr().err
    [named] = re.findall(r"repeat it with --idempotency-key ([0-9a-f]{32}), to pay once", said)
    assert sent[0].headers["idempotency-key"] == named
    run(f"{line} --idempotency-key {named}")
    assert sent[1].headers["idempotency-key"] == named


def test_each_request_has_a_key_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str] = []

    def note(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["idempotency-key"])
        return httpx.Response(201, json=GENERATION)

    served(monkeypatch, note)
    assert [run(CREATE), run(CREATE)] == [0, 0]
    assert len({*keys}) == 2


def test_a_service_that_was_not_reached_has_stored_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("Connection refused")

    served(monkeypatch, refuse)
    assert run(CREATE) == 3
    assert "idempotency" not in capsys.readouterr().err


def test_ctrl_c_before_the_id_is_known_names_the_key_of_the_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    served(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(CREATE)
    assert re.search("repeat it with --idempotency-key [0-9a-f]{32}", capsys.readouterr().err)


# Waiting


@pytest.mark.parametrize("line", [f"{CREATE} --wait", CREATE, "generations get gen_1 --wait"])
@pytest.mark.parametrize("answer", [broken_off, lambda _: httpx.Response(503, text="<html>")])
def test_a_connection_that_breaks_once_does_not_end_the_waiting(
    line: str,
    answer: Callable[[httpx.Request], httpx.Response],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    states = ["queued", "", "queued", "", "", "succeeded"]  # One for each answer, "" for none.

    def reply(request: httpx.Request) -> httpx.Response:
        status = states.pop(0)
        return (
            httpx.Response(200, json={**GENERATION, "status": status})
            if status
            else answer(request)
        )

    served(monkeypatch, reply)
    monkeypatch.setattr(calls, "RETRY_PAUSE_SECONDS", 0.0)
    assert run(line) == 0
    shown = capsys.readouterr()
    assert re.search(r"(?m)^status +succeeded$", shown.out)
    assert shown.err.count("Trying again for 60 s.\n") == 2


def test_a_wait_for_a_service_that_stays_away_ends_and_says_how_to_look_at_the_generation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock: list[float] = [0.0]
    monkeypatch.setattr(calls, "monotonic", lambda: sum(clock))
    transport = httpx.MockTransport(broken_off)
    with (
        httpx.Client(transport=transport, base_url="http://genhook") as client,
        pytest.raises(UnreachableError, match=r"goes on: .* genhook generations get gen_1 --wait"),
    ):
        generations._look(client, GENERATION, clock.append)
    assert sum(clock) == calls.RETRY_SECONDS


# Subscribers


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ("--models c", {"filter": {"models": ["c"], "metadata": {"k": "v"}}}),
        ("--metadata z=1", {"filter": {"models": ["a"], "metadata": {"z": "1"}}}),
        ("--models all", {"filter": {"models": [], "metadata": {"k": "v"}}}),
        ("--metadata none", {"filter": {"models": ["a"], "metadata": {}}}),
        ("--models c --metadata z=1", {"filter": {"models": ["c"], "metadata": {"z": "1"}}}),
        ("--event-types all --header none", {"event_types": [], "headers": {}}),
    ],
)
def test_a_change_of_one_half_of_a_filter_keeps_the_other(
    options: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    patches: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "PATCH":
            patches.append(json.loads(request.content))
        now = {"id": "sub_1", "filter": {"models": ["a"], "metadata": {"k": "v"}}}
        return httpx.Response(200, json=now)

    served(monkeypatch, answer)
    assert run(f"subscribers update sub_1 {options}") == 0
    assert patches == [fields]


def answer_with_one_model(request: httpx.Request) -> httpx.Response:
    """A service whose catalogue has only the model `known`."""
    if request.url.path.startswith("/v1/models/"):
        is_known = request.url.path == "/v1/models/known"
        problem = {"code": "not_found", "detail": "There is no such model."}
        return httpx.Response(200, json={}) if is_known else httpx.Response(404, json=problem)
    shown = {"id": "sub_1", "url": "http://x/", "filter": {"models": [], "metadata": {}}}
    return httpx.Response(200, json=shown)


@pytest.mark.parametrize("line", ["create http://x/", "update sub_1", "create http://x/ --json"])
def test_a_model_that_the_catalogue_lacks_is_taken_and_said_to_be_unknown(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served(monkeypatch, answer_with_one_model)
    assert run(f"subscribers {line} --models known,knwon") == 0
    shown = capsys.readouterr()
    assert shown.err == "genhook: the catalogue has no model knwon: see genhook models.\n"
    assert "sub_1" in shown.out
    assert not line.endswith("--json") or json.loads(shown.out)["id"] == "sub_1"


def test_a_key_that_may_not_read_models_creates_subscribers_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        is_of_models = request.url.path.startswith("/v1/models/")
        problem = {"code": "forbidden", "detail": "The key lacks a scope."}
        refusal = httpx.Response(403, json=problem)
        return refusal if is_of_models else answer_with_one_model(request)

    served(monkeypatch, answer)
    assert run("subscribers create http://x/ --models a,b") == 0
    assert capsys.readouterr().err == ""


# Databases


@pytest.mark.parametrize("number", [0, 7])
def test_a_database_of_another_program_is_named_and_not_copied(
    database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE theirs (a)")
        connection.execute(f"PRAGMA user_version={number}")
    copy, other = tmp_path / "copy.db", tmp_path / "other.db"
    lines = [f"backup {copy}", f"copy --from sqlite:///{database} --to sqlite:///{other}", "doctor"]
    for line in lines:
        assert run(line) == 1
        shown = capsys.readouterr()
        assert "tables of another program" in shown.out + shown.err
        assert "genhook migrate" not in shown.out + shown.err
    assert not copy.exists()


def test_a_file_without_tables_is_no_database_to_back_up(
    database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database.touch()
    assert run(f"backup {tmp_path / 'copy.db'}") == 1
    assert "run genhook migrate" in capsys.readouterr().err
    assert not (tmp_path / "copy.db").exists()


# Signals


def storing(asked: threading.Event, released: threading.Event) -> type[Any]:
    """A service with one generation, and the storage of its file, which never sends all of it."""

    class Service(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_file = self.path == "/file.png"
            url = f"http://{self.headers['host']}/file.png"
            output = {"files": [{"url": url, "media_type": "image/png"}], "raw": {}}
            shown = {**GENERATION, "status": "succeeded", "output": output}
            body = b"half" if is_file else json.dumps(shown).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body) + is_file))
            self.end_headers()
            self.wfile.write(body)
            if is_file:
                asked.set()
                released.wait(test_serve.END_SECONDS)

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    return Service


@contextmanager
def not_ignored(number: int) -> Iterator[None]:
    """Let processes that start in the block heed a signal, though these tests run under `nohup`."""
    before = signal.getsignal(number)
    if before is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_while_a_file_is_saved_leaves_no_part_of_it(number: int, tmp_path: Path) -> None:
    asked, released = threading.Event(), threading.Event()
    with test_serve.served(storing(asked, released)) as url, not_ignored(number):
        line = ("generations", "save", "gen_1", "pictures", "--url", url, "--key", "ghk_x")
        with test_serve.start(tmp_path, *line) as process:
            try:
                assert asked.wait(test_serve.END_SECONDS)
                [part] = (tmp_path / "pictures").iterdir()
                process.send_signal(number)
                _, err = process.communicate(timeout=test_serve.END_SECONDS)
            finally:
                released.set()
                process.kill()
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert (part.exists(), err) == (False, "")


def test_a_signal_ends_a_demo_that_leaves_no_folder_behind(tmp_path: Path) -> None:
    environ = {"TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    with test_serve.start(tmp_path, "demo", **environ) as process:
        assert process.stdout is not None
        assert any("The request was stored" in line for line in process.stdout)
        process.terminate()
        process.communicate(timeout=test_serve.END_SECONDS)
    assert process.returncode == -signal.SIGTERM
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_variable_whose_name_is_no_text_is_a_warning_and_ends_no_start(tmp_path: Path) -> None:
    environ = {**test_serve.KEYS, "GENHOOK_\udcff": "1"}
    with test_serve.started(tmp_path, "serve", "--port", "0", **environ) as running:
        status, out, err = running.end()
    assert (status, err) == (0, "")
    assert r"GENHOOK_\\udcff" in out
