"""`genhook replay`: times, and a replay that is watched until it ends."""

import argparse
import json
import re
from typing import Any

import httpx
import pytest

from service.cli import main, replay
from service.model.clock import parse_rfc3339, rfc3339
from tests.cli.test_main import Replies, run, served

NOW = parse_rfc3339("2026-11-22T18:20:00Z")


# Times


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("90m", "2026-11-22T16:50:00.000Z"),
        ("24h", "2026-11-21T18:20:00.000Z"),
        ("7d", "2026-11-15T18:20:00.000Z"),
        ("2026-11-22T19:20:00+01:00", "2026-11-22T18:20:00.000Z"),
        ("2026-11-22T18:20:00.0001Z", "2026-11-22T18:20:00.001Z"),
    ],
)
def test_a_moment_is_an_age_or_a_time(text: str, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "now_ms", lambda: NOW)
    assert replay.parse_moment(text).time == at


def test_an_age_beyond_all_times_is_refused() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="neither an age"):
        replay.parse_moment("99999999999d")


# Replays


def replies_of(replays: list[dict[str, Any]], requests: list[httpx.Request]) -> Replies:
    """A service whose replay is at the next of `replays` each time it is looked at."""

    def reply(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/subscribers/sub_1":
            return httpx.Response(200, json={"id": "sub_1", "status": "active"})
        requests.append(request)
        return httpx.Response(202, json=replays.pop(0))

    return reply


def replay_at(done: int, status: str = "running") -> dict[str, Any]:
    return {"id": "rpl_1", "status": status, "done": done, "total": 40}


def test_a_replay_is_watched_until_it_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requests: list[httpx.Request] = []
    states = [replay_at(0), replay_at(10), replay_at(10), replay_at(40, "done")]
    served(monkeypatch, replies_of(states, requests))
    options = main.parser("replay").parse_args(
        ["replay", "sub_1", "--since", "24h", "--only", "all"]
    )
    waits: list[float] = []
    assert options.run(options, waits.append) == 0
    shown = capsys.readouterr()
    assert shown.out == "rpl_1 done: 40 events sent again.\n"
    assert shown.err.splitlines() == ["0 of 40", "10 of 40", "40 of 40"]
    assert len(waits) == 3
    body = json.loads(requests[0].content)
    fields = {"subscriber_id", "since", "until", "only", "event_types", "dry_run"}
    assert set(body) == {*fields, "rate_per_second"}
    assert body["since"] < body["until"]


@pytest.mark.parametrize(
    ("line", "rate"), [("", None), ("--rate-per-second none", None), ("--rate-per-second 5", 5)]
)
def test_a_replay_may_be_slowed_down(
    line: str, rate: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[httpx.Request] = []
    served(monkeypatch, replies_of([replay_at(0, "done")], requests))
    assert run(f"replay sub_1 --since {rfc3339(NOW)} {line}") == 0
    assert json.loads(requests[0].content)["rate_per_second"] == rate


@pytest.mark.parametrize(
    ("line", "last", "status", "result"),
    [
        ("--dry-run", replay_at(0, "done"), 0, "rpl_1 done: 40 events would be sent."),
        ("", replay_at(1, "canceled"), 1, "rpl_1 canceled after 1 event sent again."),
    ],
)
def test_the_result_of_a_replay_is_printed(
    line: str,
    last: dict[str, Any],
    status: int,
    result: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    served(monkeypatch, replies_of([last], []))
    assert run(f"replay sub_1 --since {rfc3339(NOW)} {line}") == status
    assert capsys.readouterr().out.splitlines()[-1] == result


def test_a_connection_that_breaks_does_not_end_the_watching(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers: list[Any] = [replay_at(0), None, replay_at(10), None, None, replay_at(40, "done")]

    def reply(request: httpx.Request) -> httpx.Response:
        assert request.url.path.startswith("/v1/replays")
        if (answer := answers.pop(0)) is None:
            raise httpx.ReadError("broken off")
        return httpx.Response(200, json=answer)

    served(monkeypatch, reply)
    options = main.parser("replay").parse_args(["replay", "sub_1", "--since", "1h"])
    assert options.run(options, lambda _: None) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == "rpl_1 done: 40 events sent again."
    assert shown.err.count("Trying again for 60 s.\n") == 2


def test_a_replay_that_its_subscriber_holds_up_says_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    states = [replay_at(0), replay_at(0), replay_at(0), replay_at(9), replay_at(40, "done")]
    looks: list[str] = []

    def reply(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/subscribers/sub_1":
            looks.append(request.url.path)
            return httpx.Response(200, json={"id": "sub_1", "status": "paused"})
        return httpx.Response(200, json=states.pop(0))

    served(monkeypatch, reply)
    options = main.parser("replay").parse_args(["replay", "sub_1", "--since", "1h", "--json"])
    assert options.run(options, lambda _: None) == 0
    shown = capsys.readouterr()
    assert re.fullmatch(
        "genhook: sub_1 is paused, so nothing is sent: genhook subscribers resume sub_1 .*\n",
        shown.err,
    )
    assert json.loads(shown.out)["status"] == "done"
    assert len(looks) == 1


def test_a_replay_that_was_canceled_with_its_subscriber_names_no_way_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    states = [replay_at(0), replay_at(0, "canceled")]
    served(monkeypatch, lambda _: httpx.Response(200, json=states.pop(0)))
    options = main.parser("replay").parse_args(["replay", "sub_1", "--since", "1h", "--json"])
    options.run(options, lambda _: None)
    assert "resume" not in capsys.readouterr().err


def test_a_replay_goes_on_without_its_watcher(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    served(monkeypatch, replies_of([replay_at(0)], []))
    options = main.parser("replay").parse_args(["replay", "sub_1", "--since", "1h"])
    with pytest.raises(KeyboardInterrupt):  # `genhook` then ends with 130.
        options.run(options, interrupt)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.search(r"0 of 40\n.*rpl_1 goes on: .* genhook replays cancel rpl_1 ends", shown.err)
