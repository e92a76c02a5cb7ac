"""The servers that a URL names: after a fail-over, another one of them takes writes."""

from functools import lru_cache
from typing import Any

import asyncpg
from asyncpg.exceptions import TargetServerAttributeNotMatched

from service.model.server_url import split_hosts

# Errors after which the next server is tried: this one is gone, a standby, or starts or stops. Any
# other error, such as a wrong password, is raised: the next server has it too, or would hide it.
_NEXT = (
    OSError,  # Includes TimeoutError.
    TargetServerAttributeNotMatched,
    asyncpg.CannotConnectNowError,
    asyncpg.ConnectionDoesNotExistError,
)


class Hosts:
    """The servers of one URL. The one that took the last connection is tried first.

    asyncpg would spend the whole timeout on a first server that does not answer.
    """

    def __init__(self, url: str) -> None:
        self._urls = split_hosts(url)

    async def connect(self, _url: str, *, timeout: float, **arguments: Any) -> Any:  # noqa: ASYNC109
        """Open a connection to the first server that takes writes; each has a part of the time.

        asyncpg passes its URL, which has all servers.
        """
        urls = tuple(self._urls)
        failures: list[Exception] = []
        for url in urls:
            try:
                opened = await asyncpg.connect(url, timeout=timeout / len(urls), **arguments)
            except _NEXT as error:
                failures.append(error)
            else:
                self._urls.sort(key=lambda other: other != url)  # The others keep their order.
                return opened
        # While no standby is promoted, the reason is the error of the former primary.
        raise min(failures, key=lambda error: isinstance(error, TargetServerAttributeNotMatched))


@lru_cache(maxsize=16)
def hosts_of(url: str) -> Hosts:
    """Return the servers of a URL, which all connections of this process share."""
    return Hosts(url)
