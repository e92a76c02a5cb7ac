"""The writer of lines: in order, bounded, and never waiting for a reader."""

import os
from collections.abc import Iterator, Sequence

import pytest

from service.telemetry import metrics, writer
from service.telemetry.redact import Redactor
from service.telemetry.writer import LineWriter

SECONDS = 10.0  # For what takes none, on a machine that is not stuck.


class Pipe:
    """A pipe with a writer at its one end and the test at the other."""

    def __init__(self) -> None:
        self.reader, self.descriptor = os.pipe()
        self.lines = LineWriter(self.descriptor, lambda lines: lines)
        self._before = metrics.log_lines_dropped.values[()]

    @property
    def dropped(self) -> int:
        return round(metrics.log_lines_dropped.values[()] - self._before)

    def read(self, count: int) -> list[bytes]:
        """As many lines."""
        data = b""
        while data.count(b"\n") < count:
            data += os.read(self.reader, 65_536)
        return data.splitlines()

    def close_reader(self) -> None:
        if self.reader >= 0:
            os.close(self.reader)
            self.reader = -1


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close_reader()
    assert pipe.lines.drain(SECONDS)
    os.close(pipe.descriptor)


def test_lines_come_out_in_order(pipe: Pipe) -> None:
    for number in range(50):
        pipe.lines.write(str(number))
    assert pipe.lines.drain(SECONDS)
    assert pipe.read(50) == [b"%d" % number for number in range(50)]


def test_a_reader_that_stalls_costs_lines_and_delays_nobody(pipe: Pipe) -> None:
    total = 5 * writer.LINES_MAX
    for number in range(total):
        pipe.lines.write(f"{number:06}")
    assert not pipe.lines.drain(0)
    dropped = pipe.dropped
    # At most the pipe, the batch that is being written and the queue are full.
    assert dropped >= writer.LINES_MAX
    lines = pipe.read(total - dropped)
    assert len(lines) == total - dropped
    assert lines == sorted(lines)
    pipe.lines.write("again")
    assert pipe.read(1) == [b"again"]
    assert pipe.dropped == dropped


def test_the_queue_is_bounded_in_characters_too(pipe: Pipe) -> None:
    line = "x" * (writer.CHARACTERS_MAX // 4)
    for _ in range(9):
        pipe.lines.write(line)
    assert pipe.dropped >= 1


def test_a_pipe_without_a_reader_is_no_error(pipe: Pipe) -> None:
    pipe.close_reader()
    for count in (1, 2):
        pipe.lines.write("lost")
        assert pipe.lines.drain(SECONDS)
        assert pipe.dropped == count


def test_a_descriptor_that_does_not_block_is_waited_for(pipe: Pipe) -> None:
    os.set_blocking(pipe.descriptor, False)
    line = "x" * 1_000_000
    pipe.lines.write(line)
    assert pipe.read(1) == [line.encode()]
    assert pipe.dropped == 0


def test_secrets_are_cut_out_of_each_line_in_its_place(pipe: Pipe) -> None:
    """Many lines are looked at together: more than one look takes, with a secret in each part."""
    pipe.lines._cut = Redactor(["a-secret-of-ours"]).lines
    count = writer.LINES_AT_ONCE + 3
    numbers = [1, writer.LINES_AT_ONCE + 1]
    for number in range(count):
        pipe.lines.write(f"{number} a-secret-of-ours" if number in numbers else str(number))
    lines = pipe.read(count)
    expected = [f"{n} [redacted]" if n in numbers else str(n) for n in range(count)]
    assert [line.decode() for line in lines] == expected


def test_lines_that_cannot_be_cut_are_dropped_and_silence_no_others(pipe: Pipe) -> None:
    def cut(lines: Sequence[str]) -> Sequence[str]:
        if "bad" in lines:
            raise RuntimeError("unexpected")
        return lines

    pipe.lines._cut = cut
    pipe.lines.write("bad")
    assert pipe.lines.drain(SECONDS)
    pipe.lines.write("good")
    assert pipe.read(1) == [b"good"]
    assert pipe.dropped == 1
