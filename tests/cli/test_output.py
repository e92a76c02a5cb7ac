"""What commands print: nothing in it can steer a terminal."""

import json
import sys

import msgspec
import pytest

from service.cli import answers, output

STEERING = [
    chr(n) for n in (0x1B, 0x7F, 0x85, 0x9B, 0x061C, 0x200E, 0x2028, 0x202E, 0x2066, 0xFEFF)
]


@pytest.mark.parametrize("mark", STEERING, ids=ascii)
def test_json_that_is_printed_cannot_steer_a_terminal_and_means_the_same(mark: str) -> None:
    content = {"prompt": f"a{mark}31m harbour é 港", mark: [mark]}
    line = output.json_line(content)
    assert mark not in line
    assert json.loads(line) == content
    assert "é 港" in line


def test_no_control_character_is_printed() -> None:
    controls = [chr(n) for n in range(sys.maxunicode) if chr(n).isprintable() is False and n < 0xA0]
    assert not set(controls) & set(output.json_line(controls))


def test_a_text_that_utf_8_cannot_hold_is_printed_as_json() -> None:
    class Finding(msgspec.Struct):
        name: str

    line = output.json_line({"findings": [Finding("GENHOOK_\udcff é")]})
    assert json.loads(line) == {"findings": [{"name": r"GENHOOK_\udcff é"}]}


def test_a_file_without_a_url_is_one_of_an_answer_of_genhook() -> None:
    names = ("task_id", "credits", "notify_url", "error", "completed_at")
    view = {
        **dict.fromkeys(("id", "model", "status", "route", "created_at"), "x"),
        **dict.fromkeys(names),
        "output": {"files": [{"url": None}]},
    }
    assert msgspec.convert(view, answers.Generation) == view
    assert "output.raw" in output.generation(view)[-1]
