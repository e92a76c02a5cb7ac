"""Resolves names by the system's resolver, so that a slow name delays no other."""

import asyncio
import functools
import socket
from concurrent.futures import ThreadPoolExecutor

THREADS = 32

_Key = tuple[str, int]


class SystemLookup:
    """An `egress.Lookup` over getaddrinfo, in threads of its own.

    A thread that waits for a name server cannot be interrupted, and the event loop's own pool may
    have only four. Here a name occupies one thread at most: all attempts that resolve it share one
    lookup, which goes on even if the attempt that started it gives up.
    """

    def __init__(self, threads: int = THREADS) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="lookup")
        self._running: dict[_Key, asyncio.Future[list[str]]] = {}

    async def __call__(self, host: str, port: int) -> list[str]:
        """Return the addresses of `host` in the system's order; OSError if it has none."""
        key = (host, port)
        running = self._running.get(key)
        if running is None:
            loop = asyncio.get_running_loop()
            running = loop.run_in_executor(self._threads, _getaddrinfo, host, port)
            self._running[key] = running
            running.add_done_callback(functools.partial(self._finish, key))
        return await asyncio.shield(running)

    def close(self) -> None:
        """Start no more lookups; threads that wait for a name server end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _finish(self, key: _Key, running: asyncio.Future[list[str]]) -> None:
        del self._running[key]
        if not running.cancelled():
            running.exception()  # Retrieved, as every waiter may have given up.


def _getaddrinfo(host: str, port: int) -> list[str]:
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in infos))
