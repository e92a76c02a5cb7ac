"""Limits of a period by key, and the brake for log lines, which counts what it holds back."""

from service.telemetry.brake import Brake, Limiter


def test_what_reaches_one_of_its_limits_counts_for_none() -> None:
    limiter = Limiter(1_000)
    both = {"a": 2, None: 3}
    assert [limiter.admit(1_000 + ms, both) for ms in range(4)] == [True, True, False, False]
    assert [limiter.admit(1_500, {"b": 2, None: 3}) for _ in range(2)] == [True, False]
    assert [limiter.admit(at, both) for at in (2_000, 2_999, 2_999)] == [True, True, False]


def test_a_brake_admits_a_number_a_second_and_counts_the_others() -> None:
    brake = Brake(2)
    assert [brake.admit(1_000 + ms) for ms in range(4)] == [0, 0, None, None]
    assert [brake.admit(2_000), brake.admit(2_001), brake.admit(2_999)] == [2, 0, None]
    assert brake.admit(5_000) == 1
