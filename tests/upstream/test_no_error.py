"""What stands under the name of an error beside an unknown word, and says that there is none."""

from typing import Any

import pytest

from service.upstream import errors
from tests.upstream.test_wire import read_poll

NONE: list[Any] = [
    *("", " ", ".", "-", "--", "N/A", "n/a", "None", "NULL", "nil", "false", "undefined", "[]"),
    *("{}", "no", "No errors", "no error.", "no_error", "NO_ERROR", "ERROR_NONE", "normal", "无"),
    *("0", "0000", "200", "成功", "success", "success.", "Success!", "OK.", "ok", "pending"),
    *("queued", "IN_PROGRESS", "in progress", "completed", "nothing"),
    *(None, 0, 200, False, [], {}, ["", None], [0], {"code": "0", "message": "success"}),
    *({"code": "None", "msg": "N/A"}, {"type": "none"}, {"code": None, "message": None}),
]
SOME: list[Any] = [
    *("none yet", "Task is still running", "not available", "warning: slow queue", "failed"),
    *("E0", "404", "-1", "nsfw", "error", 500, -1, {"message": "nsfw"}, ["N/A", "nsfw"]),
]


@pytest.mark.parametrize("error", NONE, ids=repr)
@pytest.mark.parametrize("key", ["error", "errors", "error_message", "failMsg"])
def test_an_error_that_says_that_there_is_none_ends_nothing(key: str, error: Any) -> None:
    report = read_poll({"data": {"task_id": "t", "status": "allocating_gpu", key: error}})
    assert (report.state, report.recognised, report.possible) == ("processing", False, None)


@pytest.mark.parametrize("error", SOME, ids=repr)
def test_any_other_error_beside_an_unknown_word_is_a_failure(error: Any) -> None:
    report = read_poll({"data": {"task_id": "t", "status": "allocating_gpu", "error": error}})
    assert report.state == "failed"


def test_an_id_of_dots_is_more_than_nothing() -> None:
    assert errors.is_nothing("N/A")
    assert not errors.is_nothing("..")
