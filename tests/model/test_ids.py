"""Ids: a prefix and a UUIDv7 that sorts by time, whatever the clock and the threads do."""

import re
import threading
import uuid

import pytest

from service.model import ids
from service.model.clock import now_ms
from service.model.ids import new_id


@pytest.fixture(autouse=True)
def _own_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "_state", {"ms": 0, "counter": 0})


def test_an_id_is_a_prefix_and_a_uuid_of_version_7() -> None:
    found = new_id("gen", 1_795_371_600_123)
    assert re.fullmatch(r"gen_[0-9a-f]{32}", found)
    parsed = uuid.UUID(found.removeprefix("gen_"))
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122
    assert parsed.int >> 80 == 1_795_371_600_123


def test_ids_of_one_millisecond_sort_in_the_order_in_which_they_were_made() -> None:
    made = [new_id("evt", 1_000) for _ in range(5_000)]  # More than the counter's 12 bits.
    assert made == sorted(made)
    assert len(set(made)) == 5_000


def test_a_clock_that_steps_back_does_not_break_the_order() -> None:
    first = new_id("evt", 5_000)
    assert new_id("evt", 4_000) > first
    assert new_id("evt", 5_001) > first


def test_without_a_time_the_wall_clock_is_used() -> None:
    before = now_ms()
    made = int(new_id("req")[4:16], 16)
    assert before <= made <= now_ms()


class Paused(dict[str, int]):
    """The state, held still where a new millisecond is noted and its counter is not yet."""

    def __init__(self) -> None:
        super().__init__(ms=4, counter=7)
        self.is_halfway, self.may_go_on = threading.Event(), threading.Event()

    def __setitem__(self, name: str, value: int) -> None:
        if (name, value) == ("counter", 0):
            self.is_halfway.set()
            self.may_go_on.wait(0.2)  # In vain, where the other thread has to wait for this one.
        super().__setitem__(name, value)


def test_two_threads_never_spoil_the_order_of_either(monkeypatch: pytest.MonkeyPatch) -> None:
    state = Paused()
    monkeypatch.setattr(ids, "_state", state)
    other = threading.Thread(target=new_id, args=("evt", 5))
    other.start()
    assert state.is_halfway.wait(10)
    first = new_id("evt", 5)
    state.may_go_on.set()
    other.join(10)
    assert new_id("evt", 5) > first
