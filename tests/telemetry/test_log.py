"""Logs: JSON lines that hold everything but secrets."""

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from service.telemetry import log

TOKEN = "WyJnZW4iLCJub25jZSIsMTIzXQ.c2lnbmF0dXJl-_x"  # The shape of one.


class Console:
    """What a process wrote to standard output."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def text(self) -> str:
        log._lines.flush()
        return self._capsys.readouterr().out

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]


@pytest.fixture
def console(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Console]:
    """Standard output; the loggers are put back as they were."""
    monkeypatch.setattr(log, "_output", log._output)
    monkeypatch.setattr(log, "_lines", log._Lines())
    root, handlers, level = logging.root, list(logging.root.handlers), logging.root.level
    yield Console(capsys)
    root.handlers[:] = handlers
    root.setLevel(level)


def test_lines_are_json_without_secrets_at_any_depth(console: Console) -> None:
    log.configure("info", terminal=False)
    log.get(key="ghk_0123456789abcdef").info(
        "sent",
        url=f"/callbacks/apiinone/{TOKEN}",
        nested={"deep": [f"/callbacks/apiinone/{TOKEN}", {"secret": "hush-hush"}]},
        error=ValueError("wrong key aio_0123456789abcdef"),
        nonce="hush-hush",
        token=TOKEN,
        count=3,
    )
    [line] = console.lines()
    assert (line["event"], line["level"], line["count"]) == ("sent", "info", 3)
    assert line["nested"]["deep"][0] == "/callbacks/apiinone/[redacted]"
    text = json.dumps(line)
    for secret in (TOKEN, "0123456789abcdef", "hush-hush"):
        assert secret not in text


def test_a_traceback_is_redacted_too(console: Console) -> None:
    log.configure("info", terminal=False)
    try:
        raise RuntimeError(f"cannot POST /callbacks/apiinone/{TOKEN}")  # noqa: TRY301
    except RuntimeError:
        log.get().exception("failed")
    [line] = console.lines()
    assert "RuntimeError: cannot POST /callbacks/apiinone/[redacted]" in line["exception"]
    assert TOKEN not in json.dumps(line)


@pytest.mark.parametrize(
    "secret",
    [
        f"/callbacks/apiinone/{TOKEN}",
        "ghk_0123456789abcdef",
        "aio_0123456789abcdef",
        "whsec_aGVsbG8+/w==",
        "whsk_aGVsbG8+/w==",
        "bEaReR 0123456789abcdef",
        f"%2Fcallbacks%2Fapiinone%2F{TOKEN}",
    ],
)
def test_every_secret_is_cut_out_of_a_line_however_it_is_spelt(
    console: Console, secret: str
) -> None:
    log.configure("info", terminal=False)
    log.get().info("sent", text=f"é {secret} é")
    [line] = console.lines()
    assert line["text"].startswith("é ")
    assert "[redacted]" in line["text"]
    assert secret[-8:] not in line["text"]


async def test_lines_of_a_moment_are_written_together_and_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[bytes] = []
    lines = log._Lines()
    monkeypatch.setattr(log, "WRITE_SECONDS", 0)
    monkeypatch.setattr(lines, "_write", lambda *found: written.append(b" ".join(found)))
    lines.line(b"first")
    lines.line(b"second")
    assert written == []
    for _ in range(2):
        await asyncio.sleep(0)  # noqa: TID251  a turn of the loop
    assert written == [b"first second"]
    await asyncio.to_thread(lines.line, b"third")
    assert written == [b"first second", b"third"]


async def test_requests_side_by_side_have_their_own_ids_in_their_lines(console: Console) -> None:
    log.configure("info", terminal=False)

    async def serve(request_id: str) -> None:
        with log.request(request_id):
            await asyncio.sleep(0)  # noqa: TID251  the other's turn
            log.get().info("served", who=request_id)

    await asyncio.gather(serve("req_1"), serve("req_2"))
    log.get().info("outside")
    assert [(line.get("who"), line.get("request_id")) for line in console.lines()] == [
        ("req_1", "req_1"),
        ("req_2", "req_2"),
        (None, None),
    ]


def test_what_libraries_log_comes_out_in_the_same_lines(console: Console) -> None:
    log.configure("info", terminal=False)
    logging.getLogger("some.library").warning("odd: %s", "Bearer abc.def")
    logging.getLogger("some.library").info("chatter")
    [line] = console.lines()
    assert (line["library"], line["level"]) == ("some.library", "warning")
    assert line["event"] == "odd: [redacted]"


def test_lines_below_the_level_are_left_out(console: Console) -> None:
    log.configure("warning", terminal=False)
    log.get().info("quiet")
    log.get().warning("loud")
    assert [line["event"] for line in console.lines()] == ["loud"]


def test_on_a_terminal_lines_are_for_people_and_redacted_all_the_same(console: Console) -> None:
    log.configure("info", terminal=True)
    log.get().info("sent", url=f"/callbacks/apiinone/{TOKEN}")
    text = console.text()
    assert "sent" in text
    assert "/callbacks/apiinone/[redacted]" in text
    assert TOKEN not in text
