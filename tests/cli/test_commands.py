"""The commands against a service that runs: each does what its help says."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.cli import calls, generations, main, output
from tests.cli import test_serve
from tests.cli.test_serve import Command

pytestmark = pytest.mark.usefixtures("service")
service, genhook, inbox = test_serve.service, test_serve.genhook, test_serve.inbox
PROMPT = "A harbour [sandbox: delay=0]"
SLOW = "A harbour [sandbox: delay=600]"


def create(genhook: Command, prompt: str = PROMPT, *more: str) -> Any:
    line = ("generations", "create", "--model", "imagen4-fast", "--prompt", prompt)
    status, generation = genhook(*line, *more, "--json")
    assert status == 0
    return generation


def test_models_are_filtered_sorted_and_shown_one_by_one(genhook: Command) -> None:
    line = ("models", "--kind", "image", "--callbacks", "--sort", "credits", "--json")
    status, page = genhook(*line)
    assert status == 0
    prices = [model["credits"] for model in page["data"]]
    assert prices == sorted(prices)
    assert {(model["kind"], model["callbacks"]) for model in page["data"]} == {("image", True)}
    assert genhook("models", "list")[1] == genhook("models")[1]
    status, text = genhook("models", "get", "imagen4-fast")
    assert (status, text) == genhook("models", "imagen4-fast")
    assert re.search(r"prompt +required +string 3 to 5000 characters", text)
    assert genhook("models", "no-such-model")[0] == 4


def test_the_id_of_a_generation_is_printed_before_anybody_waits(
    genhook: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask, printed = calls.ask, []

    def note_what_is_printed(client: Any, method: str, *more: Any, **options: Any) -> Any:
        if method == "GET":
            printed.append(capsys.readouterr())
        return ask(client, method, *more, **options)

    monkeypatch.setattr(calls, "ask", note_what_is_printed)
    line = ["generations", "create", "--model", "imagen4-fast", "--prompt", PROMPT, "--wait"]
    assert main.main(line) == 0
    assert re.fullmatch(r"id +gen_[0-9a-f]{32}\n", printed[0].out)
    rest = capsys.readouterr().out
    assert rest.startswith("model ")
    assert "succeeded" in rest
    printed.clear()
    assert main.main([*line, "--json"]) == 0
    assert (printed[0].out, printed[0].err[:2]) == ("", "id")
    assert json.loads(capsys.readouterr().out)["status"] == "succeeded"
    printed.clear()
    assert main.main([*line[:-2], SLOW]) == 0  # Without --wait, for upstream to take it.
    assert re.fullmatch(r"id +gen_[0-9a-f]{32}\n", printed[0].out)
    assert re.search(r"(?m)^status +processing\n(.*\n)*task_id +\S", capsys.readouterr().out)
    printed.clear()
    assert main.main([*line[:-1], "--no-wait"]) == 0
    assert (printed, capsys.readouterr().out[:2]) == ([], "id")
    assert genhook("usage")[0] == 0


def test_what_upstream_refuses_is_shown_with_its_id(genhook: Command) -> None:
    line = ("generations", "create", "--model", "imagen4-fast", "--prompt")
    status, text = genhook(*line, "A harbour [sandbox: error=422]")
    assert status == 1
    assert re.match(r"id +gen_[0-9a-f]{32}\n", text)
    assert re.search(r"(?m)^status +failed$", text)
    assert re.search(r"(?m)^error +\S.*\(\w+\)$", text)


def test_a_generation_that_upstream_does_not_take_is_looked_at_for_ten_seconds() -> None:
    queued, waits = {"id": "gen_1", "status": "queued"}, list[float]()
    fields = dict.fromkeys(("task_id", "credits", "notify_url", "output", "error", "completed_at"))
    view = {**queued, **fields, "model": "m", "route": "poll", "created_at": "t"}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=view))
    with httpx.Client(transport=transport, base_url="http://genhook") as client:
        seconds = generations.SUBMIT_SECONDS
        seen = generations._wait_for_upstream(client, queued, seconds, waits.append)
    assert seen == view
    assert sum(waits) == pytest.approx(10)


def test_all_fields_of_a_generation_can_be_given(
    genhook: Command, inbox: tuple[str, list[Any]]
) -> None:
    url, _ = inbox
    more = ("--input", '{"num_images": 2}', "--metadata", "a=1", "--metadata", "b=x=y")
    key = ("--idempotency-key", "given-once")
    generation = create(genhook, PROMPT, *more, "--notify-url", url, *key)
    assert generation["input"] == {"prompt": PROMPT, "num_images": 2}
    assert (generation["metadata"], generation["notify_url"]) == ({"a": "1", "b": "x=y"}, url)
    assert create(genhook, PROMPT, *more, "--notify-url", url, *key)["id"] == generation["id"]
    _, page = genhook("generations", "list", "--metadata", "a=1", "--metadata", "b=x=y", "--json")
    assert [each["id"] for each in page["data"]] == [generation["id"]]


def test_a_result_is_saved_where_it_is_wanted(genhook: Command, tmp_path: Path) -> None:
    generation = create(genhook, PROMPT, "--save", str(tmp_path / "new"))
    [path] = (tmp_path / "new").iterdir()
    assert path.name == f"{generation['id']}-1.png"
    assert path.read_bytes()[:4] == b"\x89PNG"
    status, text = genhook("generations", "save", generation["id"], str(tmp_path))
    assert (status, text.count("1 of 1")) == (0, 1)
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_an_owner_cancels_retries_and_deletes(genhook: Command, tmp_path: Path) -> None:
    generation = create(genhook, SLOW)
    id_ = generation["id"]
    assert genhook("generations", "save", id_, str(tmp_path))[0] == 1
    assert genhook("generations", "delete", id_)[0] == 1
    status, canceled = genhook("generations", "cancel", id_, "--json")
    assert (status, canceled["status"]) == (0, "canceled")
    status, retried = genhook("generations", "retry", id_, "--json")
    assert (status, retried["retry_of"]) == (0, id_)
    assert genhook("generations", "refresh", retried["id"])[0] == 0
    assert genhook("generations", "cancel", retried["id"])[0] == 0
    assert genhook("generations", "get", retried["id"], "--wait")[0] == 1
    assert genhook("generations", "delete", id_) == (0, f"{id_} is deleted.\n")
    assert genhook("generations", "get", id_)[0] == 4


def test_a_subscriber_is_changed_paused_and_looked_at(
    genhook: Command, inbox: tuple[str, list[Any]]
) -> None:
    url, _ = inbox
    fields = ("--models", "imagen4,flux-2", "--metadata", "team=a", "--header", "X-Team=b")
    limits = ("--max-in-flight", "3", "--rate-per-second", "2.5", "--ordered", "--payload", "thin")
    line = ("subscribers", "create", url, *fields, *limits, "--retry-schedule-seconds", "0,5")
    status, new = genhook(*line, "--description", "港", "--signature", "v1a", "--json")
    assert status == 0
    assert new["filter"] == {"models": ["imagen4", "flux-2"], "metadata": {"team": "a"}}
    assert (new["max_in_flight"], new["rate_per_second"], new["ordered"]) == (3, 2.5, True)
    assert (new["headers"], new["retry_schedule_seconds"]) == ({"X-Team": "[redacted]"}, [0, 5])
    id_ = new["id"]
    change = ("subscribers", "update", id_, "--rate-per-second", "none", "--ordered", "false")
    _, changed = genhook(*change, "--json")
    assert (changed["rate_per_second"], changed["ordered"]) == (None, False)
    assert genhook("subscribers", "pause", id_) == (0, f"{id_} is paused.\n")
    assert "paused" in genhook("subscribers", "get", id_)[1]
    assert genhook("subscribers", "resume", id_) == (0, f"{id_} is active.\n")
    _, rotated = genhook("subscribers", "rotate", id_, "--overlap-seconds", "60", "--json")
    assert rotated["secret"] != new["secret"]
    assert genhook("subscribers", "test", id_)[0] == 0
    assert genhook("subscribers", "stats", id_, "--json")[1]["counts"]["delivered"] == 1
    assert genhook("subscribers", "delete", id_)[0] == 0


def test_deliveries_and_events_are_listed_shown_and_retried(
    genhook: Command, inbox: tuple[str, list[Any]]
) -> None:
    # Generations of other tests may still end.
    _, new = genhook("subscribers", "create", inbox[0], "--event-types", "ping", "--json")
    genhook("subscribers", "test", new["id"])
    _, page = genhook("deliveries", "list", "--subscriber-id", new["id"], "--json")
    [delivery] = page["data"]
    status, text = genhook("deliveries", "get", delivery["id"])
    assert status == 0
    assert re.search(r"\n +1  test +.*  204", text)
    assert genhook("deliveries", "retry", delivery["id"])[0] == 1  # It is delivered.
    status, event = genhook("events", "get", delivery["event_id"], "--json")
    assert (status, event["type"]) == (0, "ping")
    _, events = genhook("events", "list", "--type", "ping", "--limit", "1", "--json")
    assert [each["type"] for each in events["data"]] == ["ping"]
    genhook("subscribers", "delete", new["id"])


def test_callbacks_are_listed_and_shown_as_they_came(
    genhook: Command, service: test_serve.Running
) -> None:
    create(genhook, PROMPT, "--wait")
    _, text = genhook("generations", "list", "--limit", "1", "--status", "succeeded", "--json")
    id_ = text["data"][0]["id"]
    status, page = genhook("callbacks", "list", "--generation-id", id_, "--json")
    assert status == 0
    [callback] = page["data"]
    assert (callback["verdict"], callback["generation_id"]) == ("accepted", id_)
    status, text = genhook("callbacks", "get", callback["id"])
    fields, headers, body = text.split("\n\n")
    assert status == 0
    assert re.search(r"(?m)^verdict +accepted$", fields)
    assert re.search(r"(?m)^content-type +application/json$", headers)
    assert json.loads(body)["data"]["status"] == "completed"
    assert genhook("callbacks", "list", "--verdict", "late") == (0, "There are none.\n")
    assert genhook("callbacks", "get", "cb_" + "0" * 32)[0] == 4


def test_a_rejected_callback_is_shown_to_operators(
    genhook: Command, service: test_serve.Running
) -> None:
    url = f"{service.url}/callbacks/apiinone/forged"
    refused = httpx.post(url, content=b"a\nb\x1b[2J", trust_env=False, timeout=60)
    assert refused.status_code == 404
    _, page = genhook("callbacks", "list", "--verdict", "rejected", "--limit", "1", "--json")
    status, text = genhook("callbacks", "get", page["data"][0]["id"])
    assert (status, "generation_id" in text) == (0, False)
    assert re.search(r"(?m)^reason +token_", text)
    assert "\x1b" not in text


def test_replays_are_listed_shown_and_canceled(
    genhook: Command, inbox: tuple[str, list[Any]]
) -> None:
    create(genhook, PROMPT, "--wait")  # It has two events.
    _, new = genhook("subscribers", "create", inbox[0], "--json")
    period = {"since": "2026-01-01T00:00:00Z", "until": "2100-01-01T00:00:00Z"}
    body = {"subscriber_id": new["id"], **period, "only": "all", "rate_per_second": 0.01}
    with calls.connect(argparse.Namespace(url=None, key=None)) as client:
        begun = calls.ask(client, "POST", "/v1/replays", dict[str, Any], json=body)
    status, page = genhook("replays", "list", "--limit", "1", "--json")
    assert (status, page["data"][0]["id"]) == (0, begun["id"])
    status, text = genhook("replays", "get", begun["id"])
    assert (status, begun["status"]) == (0, "running")
    assert re.search(r"(?m)^status +running$", text)
    assert genhook("replays", "cancel", begun["id"]) == (0, f"{begun['id']} is canceled.\n")
    assert genhook("replays", "get", "rpl_" + "0" * 32)[0] == 4
    genhook("subscribers", "delete", new["id"])


def test_a_repeat_with_an_idempotency_key_makes_no_second_key_and_no_second_replay(
    genhook: Command, inbox: tuple[str, list[Any]]
) -> None:
    line = ("keys", "create", "--name", "n", "--scopes", "read", "--idempotency-key", "k-1")
    first, again = genhook(*line, "--json"), genhook(*line, "--json")
    assert (first[0], first) == (0, again)
    _, new = genhook("subscribers", "create", inbox[0], "--json")
    period = ("--since", "2026-01-01T00:00:00Z", "--until", "2026-02-01T00:00:00Z")
    replay = ("replay", new["id"], *period, "--idempotency-key", "r-1", "--json")
    first, again = genhook(*replay), genhook(*replay)
    assert (first[0], first[1]["id"]) == (0, again[1]["id"])
    other = ("replay", new["id"], *period, "--idempotency-key", "r-1", "--dry-run")
    assert genhook(*other)[0] == 1
    genhook("subscribers", "delete", new["id"])


def test_a_page_says_how_to_get_the_next_one(genhook: Command) -> None:
    create(genhook), create(genhook)
    _, text = genhook("generations", "list", "--limit", "1")
    after = re.search(r"more: --after (gen_\w+)\n$", text)
    assert after
    _, further = genhook("generations", "list", "--limit", "1", "--after", after[1])
    assert after[1] not in further.splitlines()[1]


def test_keys_are_made_over_http_where_there_is_a_key_to_ask_with(genhook: Command) -> None:
    line = ("keys", "create", "--name", "web shop", "--scopes", "read", "--tenant", "shop")
    status, key = genhook(*line, "--json")
    assert (status, key["tenant"], key["scopes"]) == (0, "shop", ["read"])
    assert genhook("generations", "list", "--key", key["key"])[0] == 0
    status, text = genhook("keys", "list", "--tenant", "shop")
    assert re.search(f"{key['id']}  live +shop +read +web shop", text)
    assert genhook("generations", "create", "--model", "m", "--key", key["key"])[0] == 5
    assert genhook("keys", "revoke", key["id"]) == (0, f"{key['id']} is revoked.\n")
    assert "revoked" in genhook("keys", "list", "--tenant", "shop")[1]
    assert genhook("generations", "list", "--key", key["key"])[0] == 5


def test_a_list_that_is_read_only_at_its_beginning_ends_quietly(genhook: Command) -> None:
    create(genhook)
    code = "from service.cli.start import main; raise SystemExit(main())"
    line = ["/bin/sh", "-c", '"$0" -c "$1" models | head -n 1', sys.executable, code]
    done = subprocess.run(line, capture_output=True, text=True, check=False)  # noqa: S603
    assert (done.stdout[:3], done.stderr) == ("ID ", "")


# Tables


def test_wide_and_combining_characters_take_their_columns() -> None:
    rows = [("港の絵", 1), ("e\u0301te\u0301", 2), ("\U0001f600", 3), ("abc", 4)]
    lines = output.table(rows)
    widths = {output.width(line[:-1]) for line in lines}
    assert widths == {8}
    assert lines[0] == "港の絵  1"


def test_numbers_stand_at_the_right_and_headings_name_the_columns() -> None:
    page = {"data": [{"id": "a", "credits": 4}, {"id": "b", "credits": 120}], "next": "b"}
    lines = ["ID  CREDITS", "a         4", "b       120", "more: --after b"]
    assert output.page(page, ("id", "credits")) == lines


def test_yes_and_no_stand_at_the_left() -> None:
    page = {"data": [{"callbacks": False, "id": "a"}, {"callbacks": False, "id": "b"}]}
    assert output.page(page, ("callbacks", "id"))[1:] == ["no         a", "no         b"]


@pytest.mark.parametrize(
    ("is_terminal", "environ", "coloured"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_only_a_terminal_gets_colours_and_only_if_it_wants_them(
    is_terminal: bool,  # noqa: FBT001  a parameter of the test
    environ: dict[str, str],
    coloured: bool,  # noqa: FBT001  the same
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    page = {"data": [{"id": "a", "status": "failed", "x": 1}], "next": None}
    lines = output.page(page, ("id", "status", "x"))
    assert ("\x1b[31mfailed\x1b[0m" in lines[1]) is coloured
    assert re.sub(r"\x1b\[\d*m", "", lines[1]) == "a   failed  1"


def test_an_ascii_terminal_keeps_its_columns() -> None:
    code = (
        "import sys\nfrom service.cli import main, output\n"
        "from service.cli import doctor, streams\n"
        "doctor.doctor = lambda options: [streams.echo(line) for line in"
        " output.table([('h\\xe9', 1), ('abcdefghij', 2)])] and 0\n"
        "raise SystemExit(main.main(['doctor']))"
    )
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}  # noqa: TID251  handed on
    done = subprocess.run(  # noqa: S603  our own code
        [sys.executable, "-c", code], capture_output=True, check=True, env=environ, text=True
    )
    assert done.stdout == "h\\u00e9     1\nabcdefghij  2\n"


# Completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_knows_every_command_and_its_options(
    shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    options = ("verdict", "idempotency-key", "retry-schedule-seconds")
    for word in (*main.COMMANDS, "timeline", *options):
        assert word in script
    if path := shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([path, "-n", str(tmp_path / "script")], check=True)  # noqa: S603


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("group", "begun", "word"),
    [("subscribers", "pa", "pause"), ("callbacks", "l", "list"), ("replays", "c", "cancel")],
)
def test_bash_completes_the_words_of_a_command(
    group: str, begun: str, word: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    main.main(["completion", "bash"])
    (tmp_path / "script").write_text(capsys.readouterr().out)
    code = (
        f"source {tmp_path}/script; COMP_WORDS=(genhook {group} {begun}); COMP_CWORD=2; "
        '$(complete -p genhook | sed -E "s/.* -F ([^ ]+) .*/\\1/") '
        f"genhook {begun} {group}; "
        'echo "${COMPREPLY[@]}"'
    )
    bash = shutil.which("bash") or ""
    done = subprocess.run([bash, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.split() == [word]
