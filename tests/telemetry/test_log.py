"""Log lines: JSON that holds everything but secrets, from the service and its libraries."""

import asyncio
import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.telemetry import log, metrics
from service.telemetry.redact import Redactor
from tests.logs import Console

ROOT = Path(__file__).parents[2]
LOGGED = re.compile(r'_log\.(?:info|warning|error|exception)\(\s*"([a-z_.]+)"')
TOKEN = "WyJnZW4iLCJub25jZSIsMTIzXQ.c2lnbmF0dXJl-_x"  # The shape of one.


def test_lines_are_json_without_secrets_at_any_depth(console: Console) -> None:
    console.configure("info")
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


def test_a_text_that_utf_8_cannot_hold_is_shown_and_raises_nothing(console: Console) -> None:
    console.configure("info")
    log.get().warning("unknown", name="GENHOOK_\udcff", nested=[{"\udc80": "\udcff"}], count=3)
    [line] = console.lines()
    assert (line["name"], line["nested"]) == (r"GENHOOK_\udcff", [{r"\udc80": r"\udcff"}])
    assert line["count"] == 3


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colors_on_a_terminal_can_be_refused(
    no_color: str, monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    console.configure("info", terminal=True)
    log.get().info("sent")
    assert ("\x1b[" in console.text()) is (no_color == "")


def test_a_traceback_is_text_and_redacted_too(console: Console) -> None:
    console.configure("info")
    try:
        raise RuntimeError(f"cannot POST /callbacks/apiinone/{TOKEN}")  # noqa: TRY301
    except RuntimeError as error:
        log.get().exception("failed")
        log.get().error("failed", exc_info=error)
    for line in console.lines():
        assert line["level"] == "error"
        assert line["exception"].startswith("Traceback (most recent call last):\n")
        assert "RuntimeError: cannot POST /callbacks/apiinone/[redacted]" in line["exception"]
        assert TOKEN not in json.dumps(line)


def test_without_an_exception_there_is_no_traceback(console: Console) -> None:
    console.configure("info")
    log.get().error("failed", exc_info=None)
    assert "exception" not in console.lines()[0]


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
        'sk-"0123456789abcdef"\\/',
    ],
)
def test_every_secret_is_cut_out_of_a_line(console: Console, secret: str) -> None:
    console.configure("info", redactor=Redactor(['sk-"0123456789abcdef"\\/']))
    log.get().info("sent", text=f"é {secret} é")
    [line] = console.lines()
    assert line["text"].startswith("é ")
    assert "[redacted]" in line["text"]
    assert secret[-8:] not in line["text"]


async def test_requests_side_by_side_have_their_own_ids_in_their_lines(console: Console) -> None:
    console.configure("info")

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


@pytest.mark.parametrize(
    ("number", "level"), [(30, "warning"), (35, "warning"), (40, "error"), (99, "critical")]
)
def test_what_libraries_log_comes_out_in_the_same_lines(
    console: Console, number: int, level: str
) -> None:
    console.configure("info")
    logging.getLogger("some.library").log(number, "odd: %s", "Bearer abc.def")
    logging.getLogger("some.library").info("chatter")
    [line] = console.lines()
    assert (line["library"], line["level"]) == ("some.library", level)
    assert line["event"] == "odd: [redacted]"


def test_a_library_whose_arguments_do_not_fit_its_line_goes_on(console: Console) -> None:
    console.configure("info")
    logging.getLogger("some.library").warning("%d left", "Bearer abc.def")
    [line] = console.lines()
    assert line["event"] == "%d left"


def test_lines_below_the_level_are_left_out(console: Console) -> None:
    console.configure("warning")
    log.get().info("quiet")
    log.get().warning("loud")
    assert [line["event"] for line in console.lines()] == ["loud"]


def test_on_a_terminal_lines_are_for_people_and_redacted_all_the_same(console: Console) -> None:
    console.configure("info", terminal=True)
    log.get().info("sent", url=f"/callbacks/apiinone/{TOKEN}")
    text = console.text()
    assert "sent" in text
    assert "/callbacks/apiinone/[redacted]" in text
    assert TOKEN not in text


class Closed:
    """A stream whose reader has gone away."""

    def write(self, _text: str) -> int:
        raise BrokenPipeError


@pytest.mark.usefixtures("console")
@pytest.mark.parametrize("stream", [None, Closed()])
def test_a_closed_stream_is_no_error(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", stream)
    log.configure("info", stream="stdout", terminal=False, background=False)
    log.get().info("sent")


@pytest.mark.usefixtures("console")
def test_without_a_stream_lines_are_counted_as_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    before = metrics.log_lines_dropped.values[()]
    log.configure("info")
    log.get().info("sent")
    assert metrics.log_lines_dropped.values[()] == before + 1


def test_a_stream_that_is_not_a_file_is_written_at_once(console: Console) -> None:
    log.configure("info", stream="stdout")
    log.get().info("sent")
    assert [line["event"] for line in console.lines()] == ["sent"]


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_process_that_ends_has_written_every_line_in_order(stream: str) -> None:
    code = (
        "from service.telemetry import log\n"
        f"log.configure('info', stream={stream!r})\n"
        "for number in range(3000): log.get().info('sent', number=number)\n"
    )
    done = subprocess.run(  # noqa: S603  our own code
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    lines = [json.loads(line) for line in getattr(done, stream).splitlines()]
    assert [line["number"] for line in lines] == list(range(3_000))
    assert len(done.stdout + done.stderr) == len(getattr(done, stream))


def test_rich_is_not_imported_and_stays_importable() -> None:
    code = (
        "import sys\nfrom service.telemetry import log\nassert 'rich' not in sys.modules\n"
        "import rich.console"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603  our own code


def test_the_table_of_operations_has_every_event_of_the_service() -> None:
    sources = [path.read_text("utf-8") for path in (ROOT / "service").rglob("*.py")]
    events = {event for source in sources for event in LOGGED.findall(source)}
    page = (ROOT / "docs/operations.md").read_text("utf-8")
    table = re.findall(r"^\| `([a-z_.]+)` \| (?:info|warning|error) \|", page, re.MULTILINE)
    assert len(events) > 50
    assert events - set(table) == set()
    assert len(table) == len(set(table))
