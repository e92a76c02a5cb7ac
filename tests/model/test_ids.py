"""Ids: a prefix and a UUIDv7. They sort by time for any clock and any threads."""

import re
import threading
import uuid

import pytest

from service.model import ids
from service.model.clock import now_ms
from service.model.ids import first_id, new_id, time_of


@pytest.fixture(autouse=True)
def _new_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "_state", {"ms": 0, "counter": 0})


def test_an_id_is_a_prefix_and_a_uuid_of_version_7() -> None:
    identifier = new_id("gen", 1_795_371_600_123)
    assert re.fullmatch(r"gen_[0-9a-f]{32}", identifier)
    parsed = uuid.UUID(identifier.removeprefix("gen_"))
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122
    assert parsed.int >> 80 == 1_795_371_600_123


def test_ids_of_one_millisecond_sort_in_the_order_of_the_calls() -> None:
    identifiers = [new_id("evt", 1_000) for _ in range(5_000)]  # More than the counter's 12 bits.
    assert identifiers == sorted(identifiers)
    assert len(set(identifiers)) == 5_000


def test_a_clock_that_steps_back_does_not_change_the_order() -> None:
    first = new_id("evt", 5_000)
    assert new_id("evt", 4_000) > first
    assert new_id("evt", 5_001) > first


def test_without_a_time_the_wall_clock_is_used() -> None:
    before = now_ms()
    assert before <= time_of(new_id("req")) <= now_ms()


@pytest.mark.parametrize("prefix", ["gen", "evt", "a_long_prefix"])
def test_the_time_of_an_id_can_be_read_back(prefix: str) -> None:
    for at in (0, 1, 1_795_371_600_123, 2**48 - 1):
        assert time_of(new_id(prefix, at)) == at


def test_a_first_id_sorts_between_earlier_and_later_ids() -> None:
    earlier, later = new_id("gen", 999), new_id("gen", 1_000)
    assert earlier < first_id("gen", 1_000) < later
    assert first_id("gen", -5) < earlier


class Paused(dict[str, int]):
    """The state, paused between setting a new millisecond and resetting the counter."""

    def __init__(self) -> None:
        super().__init__(ms=4, counter=7)
        self.is_halfway, self.may_go_on = threading.Event(), threading.Event()

    def __setitem__(self, name: str, value: int) -> None:
        if (name, value) == ("counter", 0):
            self.is_halfway.set()
            self.may_go_on.wait(0.2)  # Times out if the other thread has to wait for this one.
        super().__setitem__(name, value)


def test_ids_of_two_threads_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    state = Paused()
    monkeypatch.setattr(ids, "_state", state)
    other = threading.Thread(target=new_id, args=("evt", 5))
    other.start()
    assert state.is_halfway.wait(10)
    first = new_id("evt", 5)
    state.may_go_on.set()
    other.join(10)
    assert new_id("evt", 5) > first


def test_an_id_sorts_behind_one_of_a_process_whose_clock_is_ahead() -> None:
    now = now_ms()
    for ahead in (new_id("evt", now + 5_000), f"evt_{now + 9_000:012x}7fff{'0' * 16}"):
        behind = new_id("evt", now, after=ahead)
        assert behind > ahead
        assert time_of(behind) - time_of(ahead) <= 1


def test_one_clock_that_is_ahead_moves_only_the_id_that_has_to_follow_it() -> None:
    now = now_ms()
    ahead = new_id("evt", now, after=f"evt_{now + 3_600_000:012x}7fff{'0' * 16}")
    assert time_of(ahead) == now + 3_600_001
    assert time_of(new_id("evt", now)) == now


def test_ids_keep_the_order_of_the_calls_also_behind_older_ids() -> None:
    oldest = new_id("evt", 1_000)
    identifiers = [new_id("evt", 2_000, after=oldest) for _ in range(5_000)]
    assert identifiers == sorted(identifiers)
