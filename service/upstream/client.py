"""Calls upstream over HTTP; each call has a time and a size limit and follows no redirect."""

import asyncio
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from service.settings import Settings
from service.upstream import reading, wire

if TYPE_CHECKING:
    import httpx

Transport = Callable[[], Any]  # Makes a transport of httpx, whose import waits for its first use.
Read = Callable[[int, Mapping[str, str], bytes], wire.Answer]
CONNECT_SECONDS = 10.0
CONNECTIONS_MAX = 64  # As many as there are places for submissions: none waits in the pool.
_ENCODINGS = ("identity", "gzip", "x-gzip", "deflate")


class TooLargeError(Exception):
    """Upstream's answer is larger than the limit."""


class Progress:
    """How far a request came, from httpcore's `trace` extension (httpcore's documentation).

    It decides whether a submission may be sent again. The type of an error does not: the same
    timeout can fire before the connection is made and after the request was read.
    """

    def __init__(self, *, is_known: bool) -> None:
        self._is_known = is_known  # Whether the transport tells; a scripted one may not.
        self._was_written = False

    async def note(self, event: str, _info: Mapping[str, Any]) -> None:
        """Note an event of the connection."""
        self._is_known = True
        self._was_written |= event.endswith(".send_request_headers.started")

    def never_left(self, error: BaseException) -> bool:
        """Whether no byte of the request was written before `error`."""
        import httpx  # noqa: PLC0415  cold start: a fifth of a second

        if self._is_known:
            return not self._was_written
        return isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)


class Received(msgspec.Struct):
    """The part of an answer that has come so far: it is read even if the connection breaks."""

    status: int = 0
    headers: Mapping[str, str] = {}
    content: bytearray = msgspec.field(default_factory=bytearray)


class Client:
    """Upstream's HTTP API, called with our own key.

    A create request never reuses a connection: if upstream closes that just then, nobody knows
    whether it read the request.
    """

    def __init__(self, settings: Settings, transport: Transport | None = None) -> None:
        self._settings = settings
        self._transport = transport
        self._clients: dict[bool, httpx.AsyncClient] = {}

    def prepare(self) -> None:
        """Load what a submission needs, which takes a while, before its row says `sending`."""
        self._client(keep_alive=False)

    async def create(self, path: str, body: dict[str, Any]) -> wire.Answer:
        """Send one create request; without an answer, `NoReport` has no status."""
        content = msgspec.json.encode(body)
        read = partial(wire.read_create, request=content)
        return await self._exchange("POST", path, read, content)

    async def poll(self, path: str, task_id: str | None = None, request: Any = None) -> wire.Answer:
        """Poll the task of a request; without an answer, `NoReport` has the status 0."""
        read = partial(wire.read_poll, asked_id=task_id, request=request)
        return await self._exchange("GET", path, read)

    async def close(self) -> None:
        """Close every connection."""
        for client in self._clients.values():
            await client.aclose()
        self._clients.clear()

    async def _exchange(
        self, method: str, path: str, read: Read, body: bytes | None = None
    ) -> wire.Answer:
        import httpx  # noqa: PLC0415  cold start: a fifth of a second

        client = self._client(keep_alive=body is None)
        url = self._settings.upstream_url + path
        progress = Progress(is_known=self._transport is None)
        received = Received()
        headers = {"content-type": "application/json"} if body is not None else None
        trace = {"trace": progress.note}
        try:
            async with (
                asyncio.timeout(self._settings.upstream_timeout_seconds),
                client.stream(
                    method, url, content=body, headers=headers, extensions=trace
                ) as response,
            ):
                received.status, received.headers = response.status_code, response.headers
                content = await self._read(response, received.content)
            # Upstream's time is over: the answer may wait for the thread that reads large ones.
            make_answer = partial(read, response.status_code, response.headers, content)
            return await reading.read(len(content), make_answer)
        except (httpx.HTTPError, TimeoutError, TooLargeError) as error:
            message = f"{type(error).__name__}: {str(error) or 'no answer in time'}"[:200]
            if body is None and received.status == 429:
                return read(429, received.headers, b"")
            if body is None:
                return wire.NoReport("unwell", 0, message)
            if progress.never_left(error):
                return wire.NoReport("put_off", message=message)
            return await _read_piece(received, body, message)
        except asyncio.CancelledError as error:
            # The process stops. A task is cancelled only once: the answer can still be recorded.
            if body is None or not progress.never_left(error):
                raise
            return wire.NoReport("put_off", message="The process stopped before it was sent.")

    async def _read(self, response: "httpx.Response", content: bytearray) -> bytes:
        """Read and decompress the body into `content`; return b"" if its encoding is not known.

        The stream is read raw: httpx would decompress a whole chunk before its size can be checked.
        """
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in _ENCODINGS:
            return b""
        bytes_max = self._settings.upstream_body_bytes
        decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # Detects gzip and zlib.
        stream: Any = response.stream
        async for chunk in stream:
            room = bytes_max + 1 - len(content)
            try:
                content += chunk if encoding == "identity" else decompressor.decompress(chunk, room)
            except zlib.error:
                return b""
            if len(content) > bytes_max:
                raise TooLargeError(f"the answer has over {bytes_max} bytes")
        return bytes(content)

    def _client(self, *, keep_alive: bool) -> "httpx.AsyncClient":
        if keep_alive in self._clients:
            return self._clients[keep_alive]
        from http.cookiejar import CookieJar, DefaultCookiePolicy  # noqa: PLC0415  cold start

        import httpx  # noqa: PLC0415  cold start: a fifth of a second

        headers = {"user-agent": "genhook", "accept": "application/json", "accept-encoding": "gzip"}
        if self._settings.upstream_api_key:
            headers["authorization"] = f"Bearer {self._settings.upstream_api_key}"
        idle_max = 16 if keep_alive else 0
        self._clients[keep_alive] = httpx.AsyncClient(
            headers=headers,
            # Store no cookies: upstream could set any number, and all would be sent back.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            timeout=httpx.Timeout(self._settings.upstream_timeout_seconds, connect=CONNECT_SECONDS),
            limits=httpx.Limits(
                max_connections=CONNECTIONS_MAX, max_keepalive_connections=idle_max
            ),
            follow_redirects=False,
            trust_env=False,
            transport=self._transport() if self._transport else None,
        )
        return self._clients[keep_alive]


async def _read_piece(received: Received, request: bytes, message: str) -> wire.Answer:
    """Read what came before the answer broke off: it may name the task that was made."""
    status, headers, content = received.status, received.headers, bytes(received.content)
    read = partial(wire.read_piece, status, headers, content, request)
    answer = await reading.read(len(content), read)
    if isinstance(answer, wire.Report):
        return answer
    return msgspec.structs.replace(answer, status=None, message=message)
