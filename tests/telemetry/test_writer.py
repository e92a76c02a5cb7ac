"""The writer of lines: in order, bounded, and never waiting for a reader."""

import os
from collections.abc import Iterator

import pytest

from service.telemetry import metrics, writer
from service.telemetry.writer import LineWriter

SECONDS = 10.0  # For what takes none, on a machine that is not stuck.


class Pipe:
    """A pipe with a writer at its one end and the test at the other."""

    def __init__(self) -> None:
        self.reader, self.descriptor = os.pipe()
        self.lines = LineWriter(self.descriptor)
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
        pipe.lines.write(b"%d\n" % number)
    assert pipe.lines.drain(SECONDS)
    assert pipe.read(50) == [b"%d" % number for number in range(50)]


def test_a_reader_that_stalls_costs_lines_and_delays_nobody(pipe: Pipe) -> None:
    total = 5 * writer.LINES_MAX
    for number in range(total):
        pipe.lines.write(b"%06d\n" % number)
    assert not pipe.lines.drain(0)
    dropped = pipe.dropped
    # At most the pipe, the batch that is being written and the queue are full.
    assert dropped >= writer.LINES_MAX
    lines = pipe.read(total - dropped)
    assert len(lines) == total - dropped
    assert lines == sorted(lines)
    pipe.lines.write(b"again\n")
    assert pipe.read(1) == [b"again"]
    assert pipe.dropped == dropped


def test_the_queue_is_bounded_in_bytes_too(pipe: Pipe) -> None:
    line = b"x" * (writer.BYTES_MAX // 4) + b"\n"
    for _ in range(9):
        pipe.lines.write(line)
    assert pipe.dropped >= 1


def test_a_pipe_without_a_reader_is_no_error(pipe: Pipe) -> None:
    pipe.close_reader()
    for count in (1, 2):
        pipe.lines.write(b"lost\n")
        assert pipe.lines.drain(SECONDS)
        assert pipe.dropped == count


def test_a_descriptor_that_does_not_block_is_waited_for(pipe: Pipe) -> None:
    os.set_blocking(pipe.descriptor, False)
    line = b"x" * 1_000_000
    pipe.lines.write(line + b"\n")
    assert pipe.read(1) == [line]
    assert pipe.dropped == 0
