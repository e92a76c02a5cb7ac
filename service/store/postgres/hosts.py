"""The servers that a URL names: after a fail-over, another one of them takes writes."""

import os
import ssl
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

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

# Options of a URL that name files: no error says which.
_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
_OTHER_NAMES = (62, 64)  # Codes of OpenSSL: a certificate of another host name, or IP address.
_NOT_OPENED = (FileNotFoundError, PermissionError, IsADirectoryError)


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
                failures.append(_with_files(error, url))
            else:
                self._urls.sort(key=lambda other: other != url)  # The others keep their order.
                return opened
        # While no standby is promoted, the reason is the error of the former primary.
        raise min(failures, key=lambda error: isinstance(error, TargetServerAttributeNotMatched))


@lru_cache(maxsize=16)
def hosts_of(url: str) -> Hosts:
    """Return the servers of a URL, which all connections of this process share."""
    return Hosts(url)


def _with_files(error: Exception, url: str) -> Exception:
    """Return an error about a file with the options of the URL that it may be about."""
    options = [
        (name, value)
        for name, value in parse_qsl(url.partition("?")[2])
        if name in _FILES or (name == "host" and value.startswith("/"))  # A socket's folder.
    ]
    if isinstance(error, _NOT_OPENED):
        options = [(name, path) for name, path in options if not _is_readable(path)]
    elif not isinstance(error, ssl.SSLError) or not _may_be_about_files(error):
        return error
    names = ", ".join(f"{name}={path}" for name, path in options)
    return OSError(f"{error}: {names} in GENHOOK_DATABASE_URL") if names else error


def _may_be_about_files(error: ssl.SSLError) -> bool:
    """Return whether files may be wrong, and not what the server or something before it sent."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_code not in _OTHER_NAMES
    return error.library != "SSL" or not error.reason  # The reason is that of a handshake.


def _is_readable(path: str) -> bool:
    return os.access(path, os.R_OK) and not Path(path).is_dir()
