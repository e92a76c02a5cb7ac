"""Names to addresses by the system's resolver, so that a slow name holds up no other."""

import asyncio
import functools
import socket
from concurrent.futures import ThreadPoolExecutor

THREADS = 32

_Key = tuple[str, int]


class SystemLookup:
    """An `egress.Lookup` over getaddrinfo, in threads of its own.

    A thread that waits for a name server cannot be interrupted, and the event loop's own pool may
    have four. Here a name never occupies more than one thread, however many deliveries want it:
    they share the question that is out, even after the one who asked first has given up.
    """

    def __init__(self, threads: int = THREADS) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="lookup")
        self._asked: dict[_Key, asyncio.Future[list[str]]] = {}

    async def __call__(self, host: str, port: int) -> list[str]:
        """The addresses of `host`, in the system's order of preference; OSError if it has none."""
        key = (host, port)
        asked = self._asked.get(key)
        if asked is None:
            loop = asyncio.get_running_loop()
            asked = loop.run_in_executor(self._threads, _getaddrinfo, host, port)
            self._asked[key] = asked
            asked.add_done_callback(functools.partial(self._answered, key))
        return await asyncio.shield(asked)

    def close(self) -> None:
        """Ask nothing more; threads that still wait for a name server end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _answered(self, key: _Key, asked: asyncio.Future[list[str]]) -> None:
        del self._asked[key]
        if not asked.cancelled():
            asked.exception()  # everybody may have stopped waiting for it


def _getaddrinfo(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
