"""The brake for log lines: a number a second, and the others counted."""

from service.telemetry.brake import Brake


def test_a_brake_admits_a_number_a_second_and_counts_the_others() -> None:
    brake = Brake(2)
    assert [brake.admit(1_000 + ms) for ms in range(4)] == [0, 0, None, None]
    assert [brake.admit(2_000), brake.admit(2_001), brake.admit(2_999)] == [2, 0, None]
    assert brake.admit(5_000) == 1
