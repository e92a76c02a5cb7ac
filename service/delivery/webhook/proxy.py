"""The same `send` through an outgoing HTTP proxy, which then decides about addresses."""

import asyncio
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING

from service.delivery.webhook.connection import tls_context
from service.delivery.webhook.request import (
    BODY_BYTES,
    HEAD_BYTES,
    HEADERS,
    READ_BYTES,
    Answer,
    SendError,
    Target,
    encode_request,
)

if TYPE_CHECKING:
    import httpx


class ProxiedSender:
    """Sends through `proxy_url` (http or https, a user name and password may be part of it).

    It uses httpx's transport without its client: the client would add redirects, cookies, headers
    and the environment's own proxies.
    """

    def __init__(
        self, proxy_url: str, *, ssl_context: ssl.SSLContext | None = None, connections: int = 256
    ) -> None:
        import httpx  # noqa: PLC0415  a tenth of a second at start, for those who have a proxy

        self._httpx = httpx
        self._transport = httpx.AsyncHTTPTransport(
            verify=ssl_context or tls_context(),
            trust_env=False,
            proxy=proxy_url,
            limits=httpx.Limits(max_connections=connections, keepalive_expiry=30.0),
        )

    async def send(
        self, target: Target, headers: Mapping[str, str], body: bytes, deadline_seconds: float
    ) -> Answer:
        """As `Sender.send`, but httpx tells less apart.

        After a timeout `maybe_received` is always True, and an answer that breaks off is a
        `protocol_error`.
        """
        encode_request(target, headers, b"")  # for its ValueError
        request = self._httpx.Request("POST", target.url, headers=headers, content=body)
        try:
            async with asyncio.timeout(deadline_seconds):
                return await self._exchange(request)
        except TimeoutError as error:
            message = "There was no complete answer in time."
            raise SendError("timeout", message, maybe_received=True) from error
        except self._httpx.HTTPError as error:
            raise self._told(error) from error

    async def close(self) -> None:
        """End all connections."""
        await self._transport.aclose()

    async def _exchange(self, request: "httpx.Request") -> Answer:
        response = await self._transport.handle_async_request(request)
        try:
            body, read = bytearray(), 0
            async for part in response.aiter_raw():
                read += len(part)
                body += part[: BODY_BYTES - len(body)]
                if read > READ_BYTES:
                    break
        finally:
            await response.aclose()
        return Answer(response.status_code, _headers(response), bytes(body), read > BODY_BYTES)

    def _told(self, error: "httpx.HTTPError") -> SendError:
        if isinstance(error, self._httpx.ProxyError):
            return SendError("connect_failed", f"The outgoing proxy refused: {error}.")
        if isinstance(error, self._httpx.ConnectError):
            if isinstance(_root(error), ssl.SSLError):
                return SendError(
                    "tls_failed", "The receiver's TLS handshake or certificate failed."
                )
            return SendError("connect_failed", "The outgoing proxy could not be reached.")
        if isinstance(error, self._httpx.RemoteProtocolError):
            message = "The answer broke off or is not valid HTTP/1.1."
            return SendError("protocol_error", message, maybe_received=True)
        message = "The connection was closed too early."
        return SendError("connection_closed", message, maybe_received=True)


def _root(error: BaseException) -> BaseException:
    """The first error of the chain that led to `error`."""
    while before := error.__cause__ or error.__context__:
        error = before
    return error


def _headers(response: "httpx.Response") -> tuple[tuple[str, str], ...]:
    raw = response.headers.raw
    if sum(len(name) + len(value) for name, value in raw) > HEAD_BYTES:
        message = f"The answer's headers are over {HEAD_BYTES} bytes."
        raise SendError("answer_too_large", message, maybe_received=True)
    kept = raw[:HEADERS]
    return tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in kept)
