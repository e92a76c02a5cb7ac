"""Upstream over HTTP: one create, one question, each with a deadline, a cap and no redirects."""

import asyncio
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from service.upstream import wire

if TYPE_CHECKING:
    import httpx

CONNECT_SECONDS = 10.0
_PACKINGS = ("identity", "gzip", "x-gzip", "deflate")
_encode = msgspec.json.Encoder().encode


class NotTaken(msgspec.Struct, frozen=True):
    """Not one byte of the request can have arrived: it may be sent again."""

    reason: str


class Lost(msgspec.Struct, frozen=True):
    """The request may have arrived, but its answer did not: it must not be sent again."""

    reason: str


class TooLargeError(Exception):
    """Upstream's answer is larger than the limit."""


class Client:
    """Upstream's HTTP API with our own key.

    Submissions never use a connection that was kept alive: one that upstream has just closed
    would leave it uncertain whether the request was taken.
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
    ) -> wire.Taken | wire.Refused | NotTaken | Lost:
        """Ask for a generation, once."""
        import httpx  # noqa: PLC0415  cold start: a fifth of a second

        try:
            answer = await self._exchange("POST", path, _encode(body), keep_alive=False)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            return NotTaken(_describe(error))
        except (httpx.HTTPError, TimeoutError, TooLargeError) as error:
            return Lost(_describe(error))
        return wire.read_create(*answer)

    async def ask(self, path: str) -> wire.Report | wire.Absent | wire.Throttled | wire.Unwell:
        """Ask how a task is doing. Whatever goes wrong on the way is `Unwell`."""
        import httpx  # noqa: PLC0415  cold start: a fifth of a second

        try:
            answer = await self._exchange("GET", path, None, keep_alive=True)
        except (httpx.HTTPError, TimeoutError, TooLargeError) as error:
            return wire.Unwell(0, _describe(error))
        return wire.read_task(*answer)

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
            client.stream(method, self._base_url + path, content=body, headers=headers) as answer,
        ):
            content = await self._read(answer)
            return answer.status_code, dict(answer.headers), content

    async def _read(self, answer: "httpx.Response") -> bytes:
        """The body; none if it is packed as nobody asked for, or badly: its status still counts.

        It is read from the stream itself, since httpx unpacks a bomb, and a bomb of bombs, before
        it can be measured.
        """
        packing = answer.headers.get("content-encoding", "identity").strip().lower()
        if packing not in _PACKINGS:
            return b""
        # The head says whether it is gzip or zlib.
        unpacking = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        content = bytearray()
        stream: Any = answer.stream
        async for chunk in stream:
            room = self._body_bytes_max + 1 - len(content)
            try:
                content += chunk if packing == "identity" else unpacking.decompress(chunk, room)
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
            # None are kept: there is no end to how many can be set, and all would be sent back.
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
