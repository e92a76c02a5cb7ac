"""Ports that are free: none is given twice, and none on which something listens."""

import itertools
import socket
from pathlib import Path

import pytest

from service.store.sqlite.byte_locks import IS_LINUX
from tests import ports


def test_no_port_is_given_twice_in_a_row_and_none_on_which_something_listens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, two = ports.free_port(), ports.free_port()
    assert one != two
    with socket.create_server(("127.0.0.1", one)):
        monkeypatch.setattr(ports, "_ports", itertools.cycle((one, two)))
        assert [ports.free_port(), ports.free_port()] == [two, two]
        monkeypatch.setattr(ports, "_ports", itertools.cycle((one,)))
        with pytest.raises(AssertionError, match="no port is free"):
            ports.free_port()


@pytest.mark.skipif(not IS_LINUX, reason="other systems say it in other ways")
def test_no_connection_gets_such_a_port() -> None:
    lowest, _ = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    assert 1_024 < ports.FIRST < ports.LAST < int(lowest)
