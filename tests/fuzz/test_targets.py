"""Every target, with realistic inputs and with changes of them."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import seeds
from tests.fuzz.targets import TARGETS

few_examples = settings(
    max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


def changed(draw: st.DrawFn, data: bytes) -> bytes:
    """Change, remove, double or insert a few bytes of `data`."""
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 12)))
        middle = draw(st.binary(max_size=6) | st.just(data[start:end] * 2))
        data = data[:start] + middle + data[end:]
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_realistic_inputs_are_read(name: str) -> None:
    inputs = list(seeds.of(name))
    assert inputs
    for data in inputs:
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
@few_examples
@given(data=st.data())
def test_inputs_near_the_realistic_ones_break_nothing(name: str, data: st.DataObject) -> None:
    start = data.draw(st.sampled_from(list(seeds.of(name))))
    TARGETS[name](data.draw(st.composite(changed)(start)))


@pytest.mark.parametrize("name", TARGETS)
@few_examples
@given(data=st.binary(max_size=300))
def test_any_bytes_break_nothing(name: str, data: bytes) -> None:
    TARGETS[name](data)
