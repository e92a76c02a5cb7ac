"""The servers that a URL names: after a fail-over, another one of them takes writes."""

from functools import lru_cache
from typing import Any

import asyncpg
from asyncpg.exceptions import TargetServerAttributeNotMatched

from service.model.server_url import split_hosts

# Of a server that is gone, a standby, or one that starts or stops. Whatever else one says, another
# would say as well, or would hide.
_NEXT = (
    OSError,  # Includes TimeoutError.
    TargetServerAttributeNotMatched,
    asyncpg.CannotConnectNowError,
    asyncpg.ConnectionDoesNotExistError,
)


class Hosts:
    """The servers of one URL, with the one that took a connection last as the first to be asked.

    The driver itself would spend all of its time on a first server that does not answer.
    """

    def __init__(self, url: str) -> None:
        self._urls = split_hosts(url)

    async def connect(self, _url: str, *, timeout: float, **arguments: Any) -> Any:  # noqa: ASYNC109
        """Open a connection to the first server that takes writes; each has a part of the time."""
        urls = tuple(self._urls)
        failures: list[Exception] = []
        for url in urls:
            try:
                opened = await asyncpg.connect(url, timeout=timeout / len(urls), **arguments)
            except _NEXT as error:
                failures.append(error)
            else:
                self._urls.sort(key=url.__ne__)
                return opened
        # While no standby is promoted yet, what is wrong with the server before is the reason.
        raise min(failures, key=lambda error: isinstance(error, TargetServerAttributeNotMatched))


@lru_cache(maxsize=16)
def hosts_of(url: str) -> Hosts:
    """Return the servers of a URL, as all connections of this process know them."""
    return Hosts(url)
