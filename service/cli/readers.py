"""Clients that read their answers slowly: how much of memory they may hold, and for how long."""

import asyncio

from service.cli.outgoing import Outgoing

# A client has to read so much of its answers in GENHOOK_BODY_SECONDS, or all that is left.
TAKEN_BYTES_MIN = 256 * 1024
UNREAD_BYTES_MAX = 128 * 1024 * 1024  # Answers that all slow clients together have not read.


class Reader:
    """The client of one connection; `slow` has the clients that are watched, oldest first."""

    def __init__(self, outgoing: Outgoing, seconds: float, slow: "dict[Reader, None]") -> None:
        self.transport = outgoing.transport
        self._outgoing = outgoing
        self._seconds = seconds
        self._slow = slow
        self._timer: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """Check later whether the client has read, unless its answers are all sent."""
        unread_bytes = self.transport.get_write_buffer_size()
        if not unread_bytes:
            return
        if self._timer is None:
            loop = asyncio.get_running_loop()
            read_bytes = self._outgoing.written_bytes - unread_bytes
            self._timer = loop.call_later(self._seconds, self._check, read_bytes, unread_bytes)
            self._slow[self] = None
        self._make_room()

    def forget(self) -> None:
        """Watch no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._slow.pop(self, None)

    def _check(self, read_bytes: int, unread_bytes: int) -> None:
        """End the connection of a client that reads nothing: its answers stay in memory.

        The arguments are of the time when the watch began. What has been written since may be as
        much as the client has read, so how much waits now says nothing of it.
        """
        self._timer = None
        still_unread_bytes = self.transport.get_write_buffer_size()
        taken_bytes = self._outgoing.written_bytes - still_unread_bytes - read_bytes
        if taken_bytes >= unread_bytes:
            self.forget()  # What waits now was written later.
        elif taken_bytes < TAKEN_BYTES_MIN:
            self.end()
            return
        self.watch()

    def _make_room(self) -> None:
        """End the connections that have had the most time to read, if all hold too much."""
        sizes = {reader: reader.transport.get_write_buffer_size() for reader in self._slow}
        too_many = sum(sizes.values()) - UNREAD_BYTES_MAX
        for reader, size in sizes.items():
            if too_many <= 0 or len(self._slow) == 1:
                break
            if size:
                reader.end()
                too_many -= size

    def end(self) -> None:
        """End the connection; what was not sent is lost."""
        self.forget()
        self.transport.abort()
