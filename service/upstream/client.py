"""Calls upstream over HTTP; each call has a time and a size limit and follows no redirect."""

import asyncio
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from service.upstream import wire

if TYPE_CHECKING:
    import httpx

CONNECT_SECONDS = 10.0
_ENCODINGS = ("identity", "gzip", "x-gzip", "deflate")
_encode = msgspec.json.Encoder().encode


class NotSent(msgspec.Struct, frozen=True):
    """No byte of the request reached upstream: it may be sent again."""

    message: str


class NoAnswer(msgspec.Struct, frozen=True):
    """The request may have reached upstream, but no answer came back: it must not be sent again."""

    message: str


class TooLargeError(Exception):
    """Upstream's answer is larger than the limit."""


class Client:
    """Upstream's HTTP API, called with our own key.

    A create request never reuses a connection. If upstream closed it just then, we could not know
    whether the request was accepted.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        *,
        timeout_seconds: float,
        body_bytes_max: int,
        transport: "Callable[[], httpx.AsyncBaseTransport] | None" = None,
    ) -> None:
        self._base_url = base_url
        self._api_key = api_key
        self._timeout_seconds = timeout_seconds
        self._body_bytes_max = body_bytes_max
        self._transport = transport
        self._clients: dict[bool, httpx.AsyncClient] = {}

    async def create(
        self, path: str, body: dict[str, Any]
    ) -> wire.CreateAnswer | NotSent | NoAnswer:
        """Send one create request; transport errors become `NotSent` or `NoAnswer`."""
        import httpx  # noqa: PLC0415  cold start: a fifth of a second

        try:
            answer = await self._exchange("POST", path, _encode(body), keep_alive=False)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            return NotSent(_describe(error))
        except (httpx.HTTPError, TimeoutError, TooLargeError) as error:
            return NoAnswer(_describe(error))
        return wire.read_create(*answer)

    async def poll(self, path: str) -> wire.PollAnswer:
        """Poll a task; transport errors become `NoReport`."""
        import httpx  # noqa: PLC0415  cold start: a fifth of a second

        try:
            answer = await self._exchange("GET", path, None, keep_alive=True)
        except (httpx.HTTPError, TimeoutError, TooLargeError) as error:
            return wire.NoReport(0, _describe(error))
        return wire.read_poll(*answer)

    async def close(self) -> None:
        """Close every connection."""
        for client in self._clients.values():
            await client.aclose()
        self._clients.clear()

    async def _exchange(
        self, method: str, path: str, body: bytes | None, *, keep_alive: bool
    ) -> tuple[int, dict[str, str], bytes]:
        client = self._client(keep_alive=keep_alive)
        headers = {"content-type": "application/json"} if body is not None else {}
        async with (
            asyncio.timeout(self._timeout_seconds),
            client.stream(method, self._base_url + path, content=body, headers=headers) as response,
        ):
            content = await self._read(response)
            return response.status_code, dict(response.headers), content

    async def _read(self, response: "httpx.Response") -> bytes:
        """Read and decompress the body; it is empty if the encoding is unknown or broken.

        The stream is read raw: httpx would decompress a whole chunk before its size can be checked.
        """
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in _ENCODINGS:
            return b""
        decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # Detects gzip and zlib.
        content = bytearray()
        stream: Any = response.stream
        async for chunk in stream:
            room = self._body_bytes_max + 1 - len(content)
            try:
                content += chunk if encoding == "identity" else decompressor.decompress(chunk, room)
            except zlib.error:
                return b""
            if len(content) > self._body_bytes_max:
                raise TooLargeError(f"the answer has over {self._body_bytes_max} bytes")
        return bytes(content)

    def _client(self, *, keep_alive: bool) -> "httpx.AsyncClient":
        if keep_alive not in self._clients:
            self._clients[keep_alive] = self._new_client(keep_alive=keep_alive)
        return self._clients[keep_alive]

    def _new_client(self, *, keep_alive: bool) -> "httpx.AsyncClient":
        from http.cookiejar import CookieJar, DefaultCookiePolicy  # noqa: PLC0415  cold start

        import httpx  # noqa: PLC0415  cold start: a fifth of a second

        headers = {
            "user-agent": "genhook",
            "accept": "application/json",
            "accept-encoding": "gzip",
        }
        if self._api_key:
            headers["authorization"] = f"Bearer {self._api_key}"
        return httpx.AsyncClient(
            headers=headers,
            # Store no cookies: upstream could set any number, and all would be sent back.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            timeout=httpx.Timeout(self._timeout_seconds, connect=CONNECT_SECONDS),
            limits=httpx.Limits(
                max_connections=64, max_keepalive_connections=16 if keep_alive else 0
            ),
            follow_redirects=False,
            trust_env=False,
            transport=self._transport() if self._transport else None,
        )


def _describe(error: BaseException) -> str:
    text = str(error) or "no answer in time"
    return f"{type(error).__name__}: {text}"[:200]
