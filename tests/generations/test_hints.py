"""Which callbacks say that their task ended, whatever they prove."""

from typing import Any

import msgspec
import pytest

from service.generations import proofs
from service.store.callbacks import Arrival


def reports_end_of(body: bytes) -> bool | None:
    arrival = Arrival(id="cb_1", upstream="apiinone", received_at=0, headers=(), body=body)
    proofs.read_end(arrival)
    return arrival.reports_end


@pytest.mark.parametrize(
    ("body", "reports_end"),
    [
        ({"status": "completed"}, True),
        ({"state": "FAILED", "error": "nsfw"}, True),
        ({"code": 501, "status": "failed"}, True),
        ({"code": 500, "data": {"task_id": "task1", "status": "failed"}}, True),
        ({"data": {"task_id": "task1", "status": "completed"}}, True),
        ({"status": "processing"}, False),
        ({"status": "success", "progress": 40}, False),
        ({"status": "success", "data": {"task_id": "task1", "progress": 50}}, False),
        ({"status": "completed", "images": [{"status": "processing"}]}, False),
        ({"code": 429, "msg": "slow down"}, False),
    ],
)
def test_a_final_word_reports_an_end_unless_something_beside_it_is_open(
    body: dict[str, Any],
    reports_end: bool,  # noqa: FBT001  a column of the table
) -> None:
    assert reports_end_of(msgspec.json.encode(body)) is reports_end


@pytest.mark.parametrize("body", [b"", b"done", b"7"])
def test_what_cannot_be_read_reports_no_end(body: bytes) -> None:
    assert reports_end_of(body) is False
