"""Takes connections: many in one round of the loop, where libuv takes one.

A round runs all callbacks that are ready. While many requests are, each further connection would
wait for another round.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

ACCEPTS_MAX = 128  # In one round.


class Acceptor:
    """Takes connections of a listening socket, beside the server that listens on it."""

    def __init__(self, sock: socket.socket, new_protocol: Callable[[], asyncio.Protocol]) -> None:
        self._sock = sock.dup()
        self._sock.setblocking(False)  # noqa: FBT003  the standard library's own
        self._new_protocol = new_protocol
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop.add_reader(self._sock, self._accept)

    def stop(self) -> None:
        """Take no more connections."""
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def _accept(self) -> None:
        for _ in range(ACCEPTS_MAX):
            try:
                connection, _address = self._sock.accept()
            except OSError:  # No more wait; or there are no descriptors, which the server handles.
                return
            connection.setblocking(False)  # noqa: FBT003  the standard library's own
            opening = self._loop.connect_accepted_socket(self._new_protocol, connection)
            task = self._loop.create_task(opening)
            self._tasks.add(task)
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # Retrieved: the client may have gone.
