"""Sends webhooks through an outgoing HTTP proxy, which then decides which addresses are allowed."""

import asyncio
import contextlib
import ssl
from collections.abc import Mapping

import httpx

from service.delivery.target import Answer, SenderClosed, SendError, Target
from service.delivery.webhook import request


class ProxiedSender:
    """Sends through `proxy_url` (http or https, with or without a user name and password).

    It uses httpx's transport without its client: the client would follow redirects, keep cookies,
    add headers and read proxies from the environment.
    """

    def __init__(
        self, proxy_url: str, ssl_context: ssl.SSLContext, *, connections: int = 1024
    ) -> None:
        self._is_closed = False
        self._transport = httpx.AsyncHTTPTransport(
            verify=ssl_context,
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
        request.encode_request(
            target, headers, b""
        )  # Raises ValueError for headers that cannot be sent.
        post = httpx.Request("POST", target.url, headers=headers, content=body)
        ends_at = asyncio.get_running_loop().time() + deadline_seconds
        try:
            async with asyncio.timeout_at(ends_at):
                response = await self._transport.handle_async_request(post)
            return await self._read(response, ends_at)
        except TimeoutError as error:
            raise SendError("timeout", "There was no complete answer in time.") from error
        except (httpx.HTTPError, RuntimeError) as error:
            if self._is_closed:
                raise SenderClosed from error
            if isinstance(error, RuntimeError):
                raise
            raise _send_error(error) from error

    async def close(self) -> None:
        """Close all connections; whoever waits for an answer gets SenderClosed."""
        self._is_closed = True
        await self._transport.aclose()

    async def _read(self, response: httpx.Response, ends_at: float) -> Answer:
        """Return the answer; its head counts though the body breaks off, or comes too slowly."""
        body = bytearray()
        async with contextlib.aclosing(response):
            try:
                async with asyncio.timeout_at(ends_at):
                    async for part in response.aiter_raw():
                        body += part[: request.BODY_BYTES - len(body)]
                        if response.num_bytes_downloaded > request.READ_BYTES:
                            break
            except (TimeoutError, httpx.HTTPError):
                if self._is_closed:
                    raise
        raw = response.headers.raw
        if sum(len(name) + len(value) for name, value in raw) > request.HEAD_BYTES:
            raise request.head_too_large()
        lines = raw[: request.HEADERS]
        headers = [(n.decode("latin-1").lower(), v.decode("latin-1")) for n, v in lines]
        return Answer(response.status_code, tuple(headers), bytes(body))


def _send_error(error: httpx.HTTPError) -> SendError:
    """Translate the reason why there was no answer."""
    cause: BaseException = error
    while earlier := cause.__cause__ or cause.__context__:
        cause = earlier
    match error:
        case httpx.ProxyError():
            # Not in its own words: they may name internal addresses, and the tenant reads this.
            status = str(error)[:3] if str(error)[:3].isdecimal() else "no status"
            return SendError("connect_failed", f"The outgoing proxy refused: {status}.")
        case httpx.ConnectError() if isinstance(cause, ssl.SSLError):
            return SendError("tls_failed", "The receiver's TLS handshake or certificate failed.")
        case httpx.ConnectError():
            return SendError("connect_failed", "The outgoing proxy could not be reached.")
        case httpx.RemoteProtocolError():
            return SendError("protocol_error", "The answer broke off or is not valid HTTP/1.1.")
    return SendError("connection_closed", "The connection was closed too early.")
