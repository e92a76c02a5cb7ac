"""The answers of one connection, written so that the head of each leaves with its body."""

import asyncio
from collections.abc import Callable


class Outgoing:
    """The transport as requests see it.

    uvicorn writes the head and the body of an answer one after the other, which would be two system
    calls and two packets. So what is written first waits for what follows, at most until the next
    round of the event loop.
    """

    __slots__ = (
        *("_first", "_has_ended", "_loop"),
        *("close", "is_closing", "transport", "written_bytes"),
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        close: Callable[[], None],
    ) -> None:
        self.close = close
        self.is_closing = transport.is_closing
        self.transport = transport
        self._loop = loop
        self._first = b""
        self._has_ended = False
        self.written_bytes = 0  # What the client has not read yet is part of it.

    def write(self, data: bytes) -> None:
        """Write, now if something waits already; else with what follows."""
        if self._first:
            first, self._first = self._first, b""
            self.written_bytes += len(first) + len(data)
            self.transport.writelines((first, data))
        elif not self._has_ended:
            self._first = data
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what still waits."""
        if self._first:
            first, self._first = self._first, b""
            if not self.is_closing():
                self.written_bytes += len(first)
                self.transport.write(first)

    def end(self) -> None:
        """Write nothing more: a request may not know that it was refused."""
        self._has_ended = True
        self.transport.write_eof()
