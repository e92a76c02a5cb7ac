"""Flow control of one connection: whether its client is read, and how long it may take to send."""

import asyncio
from collections.abc import Callable, Mapping

from service.cli.serving import FlowControl


class Flow(FlowControl):
    """What a client has to send now, and the time that it has for it.

    The time runs only while the client is read: what waits in the network is not late. It begins
    anew for each head and each body, and when the client is read again.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        seconds: Mapping[str, float],
        on_late: Callable[[], object],
    ) -> None:
        super().__init__(transport)
        self.on_late = on_late
        self.awaited: str | None = None  # A key of `seconds`; None: the client need not send.
        self.is_held = False  # Bytes that were read wait to be parsed, so no more are read.
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def expect(self, what: str | None) -> None:
        """Set what the client has to send now; `watch` starts the time that it has for that."""
        self.awaited = what
        self._stop_timer()

    def watch(self) -> None:
        """Let the time run if the client has something to send, and is read."""
        if self.awaited is not None and self._timer is None and not self.read_paused:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._seconds[self.awaited], self.on_late)

    def pause_reading(self) -> None:
        """Read no more of the client, which may be as slow as it likes meanwhile."""
        super().pause_reading()
        self._stop_timer()

    def resume_reading(self) -> None:
        """Read on, unless the client was read all the time or what was read waits to be parsed."""
        if self.read_paused and not self.is_held:
            super().resume_reading()
            self.watch()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
