"""Ports for what has to be told its port before it starts."""

import errno
import itertools
import os
import socket

# Below the ports that connections get (ip_local_port_range): one that is free here stays free.
FIRST, LAST = 10_000, 32_000
EACH = 100  # Ports of a process: those that test at the same time have others.
_start = FIRST + os.getpid() * EACH % (LAST - FIRST)
_ports = itertools.cycle(range(_start, _start + EACH))


def free_port() -> int:
    """Return a port of this machine on which nothing listens, and another one each time."""
    for port in itertools.islice(_ports, EACH):
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return port
    raise AssertionError("no port is free")
