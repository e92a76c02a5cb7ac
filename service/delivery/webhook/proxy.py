"""Sends webhooks through an outgoing HTTP proxy, which then decides which addresses are allowed."""

import asyncio
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING

from service.delivery.target import Answer, SendError, Target
from service.delivery.webhook.connection import tls_context
from service.delivery.webhook.request import (
    BODY_BYTES,
    HEAD_BYTES,
    HEADERS,
    READ_BYTES,
    encode_request,
)

if TYPE_CHECKING:
    import httpx


class ProxiedSender:
    """Sends through `proxy_url` (http or https, with or without a user name and password).

    It uses httpx's transport without its client: the client would follow redirects, keep cookies,
    add headers and read proxies from the environment.
    """

    def __init__(
        self, proxy_url: str, *, ssl_context: ssl.SSLContext | None = None, connections: int = 256
    ) -> None:
        import httpx  # noqa: PLC0415  0.1 s at start, only where there is a proxy

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
        """Like `WebhookSender.send`, but an answer that breaks off is a `protocol_error`.

        httpx does not distinguish it from an answer that is not valid.
        """
        encode_request(target, headers, b"")  # Raises ValueError for headers that cannot be sent.
        request = self._httpx.Request("POST", target.url, headers=headers, content=body)
        try:
            async with asyncio.timeout(deadline_seconds):
                return await self._exchange(request)
        except TimeoutError as error:
            raise SendError("timeout", "There was no complete answer in time.") from error
        except self._httpx.HTTPError as error:
            raise self._send_error(error) from error

    async def close(self) -> None:
        """Close all connections."""
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
        return Answer(response.status_code, _headers(response), bytes(body))

    def _send_error(self, error: "httpx.HTTPError") -> SendError:
        if isinstance(error, self._httpx.ProxyError):
            return SendError("connect_failed", f"The outgoing proxy refused: {error}.")
        if isinstance(error, self._httpx.ConnectError):
            if isinstance(_root(error), ssl.SSLError):
                return SendError(
                    "tls_failed", "The receiver's TLS handshake or certificate failed."
                )
            return SendError("connect_failed", "The outgoing proxy could not be reached.")
        if isinstance(error, self._httpx.RemoteProtocolError):
            return SendError("protocol_error", "The answer broke off or is not valid HTTP/1.1.")
        return SendError("connection_closed", "The connection was closed too early.")


def _root(error: BaseException) -> BaseException:
    """Return the first error of the chain that led to `error`."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


def _headers(response: "httpx.Response") -> tuple[tuple[str, str], ...]:
    raw = response.headers.raw
    if sum(len(name) + len(value) for name, value in raw) > HEAD_BYTES:
        raise SendError("answer_too_large", f"The answer's headers are over {HEAD_BYTES} bytes.")
    return tuple(
        (name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in raw[:HEADERS]
    )
