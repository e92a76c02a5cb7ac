"""Every target, with the real inputs and what hypothesis makes of them."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import seeds
from tests.fuzz.targets import TARGETS

relaxed = settings(
    max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


def mangled(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` with a few bytes changed, cut out, doubled or put in."""
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 12)))
        middle = draw(st.binary(max_size=6) | st.just(data[start:end] * 2))
        data = data[:start] + middle + data[end:]
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_really_sent_is_read(name: str) -> None:
    given_inputs = list(seeds.of(name))
    assert given_inputs
    for data in given_inputs:
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
@relaxed
@given(data=st.data())
def test_bytes_near_the_real_ones_break_nothing(name: str, data: st.DataObject) -> None:
    start = data.draw(st.sampled_from(list(seeds.of(name))))
    changed = data.draw(st.composite(mangled)(start))
    TARGETS[name](changed)


@pytest.mark.parametrize("name", TARGETS)
@relaxed
@given(data=st.binary(max_size=300))
def test_any_bytes_break_nothing(name: str, data: bytes) -> None:
    TARGETS[name](data)
