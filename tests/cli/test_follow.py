"""Following a service: events as they come, and a replay until it is done."""

import argparse
import json
import shlex
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from service.cli import follow, main, options
from service.model.clock import parse_rfc3339, rfc3339
from service.model.errors import CommandError

NOW = parse_rfc3339("2026-11-22T18:20:00Z")


def run(line: str) -> int:
    return main.main(shlex.split(line))


Reply = httpx.Response | Exception
Replies = Callable[[httpx.Request], httpx.Response]


def served(monkeypatch: pytest.MonkeyPatch, replies: Replies) -> None:
    """Have the commands talk to a scripted service."""

    def connect(_: argparse.Namespace) -> httpx.Client:
        return httpx.Client(transport=httpx.MockTransport(replies), base_url="http://genhook")

    monkeypatch.setattr(follow, "connect", connect)


# Times


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("90m", "2026-11-22T16:50:00.000Z"),
        ("24h", "2026-11-21T18:20:00.000Z"),
        ("7d", "2026-11-15T18:20:00.000Z"),
        ("2026-11-22T19:20:00+01:00", "2026-11-22T18:20:00.000Z"),
    ],
)
def test_a_moment_is_an_age_or_a_time(text: str, at: str) -> None:
    assert follow.moment(text, NOW) == at


def test_an_age_beyond_all_times_is_refused() -> None:
    with pytest.raises(ValueError, match="neither an age"):
        follow.moment("99999999999d", NOW)


# Replays


def replies_of(replays: list[dict[str, Any]], asked: list[httpx.Request]) -> Replies:
    """A service whose replay is at the next of `replays` each time it is looked at."""

    def reply(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(202, json=replays.pop(0))

    return reply


def replay_at(done: int, status: str = "running") -> dict[str, Any]:
    return {"id": "rpl_1", "status": status, "done": done, "total": 40}


def test_a_replay_is_watched_until_it_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[httpx.Request] = []
    states = [replay_at(0), replay_at(10), replay_at(10), replay_at(40, "done")]
    served(monkeypatch, replies_of(states, asked))
    given = options.parser().parse_args(["replay", "sub_1", "--since", "24h", "--only", "all"])
    waits: list[float] = []
    assert follow.replay(given, main._say, waits.append) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == ["0 of 40", "10 of 40", "40 of 40", "rpl_1 done: 40 events sent again."]
    assert len(waits) == 3
    body = json.loads(asked[0].content)
    assert set(body) == {"subscriber_id", "since", "until", "only", "event_types", "dry_run"}
    assert body["since"] < body["until"]


@pytest.mark.parametrize(
    ("line", "last", "status", "said"),
    [
        ("--dry-run", replay_at(0, "done"), 0, "rpl_1 done: 40 events would be sent."),
        ("", replay_at(1, "canceled"), 1, "rpl_1 canceled after 1 event sent again."),
    ],
)
def test_how_a_replay_ends_is_said(
    line: str,
    last: dict[str, Any],
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    served(monkeypatch, replies_of([last], []))
    assert run(f"replay sub_1 --since {rfc3339(NOW)} {line}") == status
    assert capsys.readouterr().out.splitlines()[-1] == said


def test_a_replay_goes_on_without_its_watcher(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    served(monkeypatch, replies_of([replay_at(0)], []))
    given = options.parser().parse_args(["replay", "sub_1", "--since", "1h"])
    with pytest.raises(CommandError, match="rpl_1 goes on"):
        follow.replay(given, main._say, interrupt)
    assert capsys.readouterr().out == "0 of 40\n"


# Listening


def event(number: int) -> bytes:
    found = {"id": f"evt_{number}", "type": "ping", "timestamp": rfc3339(NOW), "data": {}}
    return json.dumps(found, indent=number).encode()  # so that bytes are kept, not remade


def page(*events: bytes) -> httpx.Response:
    ids = [json.loads(found)["id"] for found in events]
    after = json.dumps(ids[-1] if ids else None).encode()
    return httpx.Response(
        200, content=b'{"data":[' + b",".join(events) + b'],"next":' + after + b"}"
    )


def listen_to(script: list[Reply], monkeypatch: pytest.MonkeyPatch, line: str = "") -> list[str]:
    """What `listen` asks for while the service answers by the script, then is interrupted."""
    asked: list[str] = []

    def reply(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.params.get("after", ""))
        if not script:
            raise KeyboardInterrupt
        answer = script.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    served(monkeypatch, reply)
    given = options.parser().parse_args(["listen", *line.split()])
    with pytest.raises(KeyboardInterrupt):
        follow.listen(given, main._say, lambda _: None)
    return asked


def test_listening_starts_at_what_is_new_and_goes_on_from_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script: list[Reply] = [page(event(1)), page(event(2), event(3)), page()]
    assert listen_to(script, monkeypatch) == ["", "evt_1", "evt_3", "evt_3"]
    said = capsys.readouterr().out.splitlines()
    assert [line.split() for line in said] == [
        ["18:20:00", "ping", "evt_2"],
        ["18:20:00", "ping", "evt_3"],
    ]


def test_listening_waits_for_a_service_that_is_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    away = httpx.ConnectError("refused")
    busy = httpx.Response(503, json={"detail": "Not now.", "code": "storage_unavailable"})
    script: list[Reply] = [away, busy, page(event(2))]
    assert listen_to(script, monkeypatch, "--after evt_1 --json") == ["evt_1"] * 3 + ["evt_2"]
    said = capsys.readouterr().out
    assert said.count("Trying again.") == 1
    assert event(2).decode() in said


def test_listening_with_a_secret_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served(monkeypatch, lambda _: page())
    assert run("listen --once --secret whsec_short") == 1
    assert "--secret cannot be used" in capsys.readouterr().err
