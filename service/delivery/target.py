"""The target of an attempt, the answer or the error that it gets, and the sender's interface."""

import ipaddress
import re
from collections.abc import Mapping
from typing import Literal, Protocol
from urllib.parse import quote, urlsplit

import msgspec

URL_CHARACTERS = 2048
PORTS = {"http": 80, "https": 443}
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_PATH_SAFE = "/%:@!$&'()*+,;=-._~?[]"

Code = Literal[
    "address_refused",
    "dns_failed",
    "connect_refused",
    "connect_failed",
    "timeout",
    "tls_failed",
    "connection_closed",
    "protocol_error",
    "answer_too_large",
    "internal_error",
]


class Target(msgspec.Struct, frozen=True):
    """A subscriber's URL, parsed once; targets with the same `origin` share connections."""

    url: str  # In ASCII, with path and query encoded.
    origin: str
    host: str  # In ASCII and lower case; an IPv6 address has no brackets.
    port: int
    tls: bool
    head: bytes  # The request line and the host header, as they are written.
    tenant: str = ""  # Lookups of names are shared fairly by tenant.


class Answer(msgspec.Struct, frozen=True, gc=False):
    """A receiver's final answer, whatever its status."""

    status_code: int  # 200 to 999; redirects are not followed.
    # Names in lower case, repeated ones too, at most webhook.request.HEADERS.
    headers: tuple[tuple[str, str], ...]
    body: bytes  # The first webhook.request.BODY_BYTES as they came, not decompressed.


class SendError(Exception):
    """The attempt got no answer: `code` is stable, the message is for people."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


class SenderClosed(Exception):  # noqa: N818  it is no error of the attempt
    """The sender was closed during the attempt, which counts as not made."""


class Sender(Protocol):
    """Carries one attempt to its target: webhook/sender.py, or webhook/proxy.py through a proxy."""

    async def send(
        self, target: Target, headers: Mapping[str, str], body: bytes, deadline_seconds: float
    ) -> Answer:
        """POST the body and return the answer; SendError if there is none in time.

        SenderClosed if the sender was closed meanwhile.
        """


def parse_target(url: str, tenant: str = "") -> Target:
    """Parse `url`; ValueError with a sentence for people if it cannot be sent to."""
    if len(url) > URL_CHARACTERS:
        raise ValueError(f"The URL is longer than {URL_CHARACTERS} characters.")
    if re.search(r"[\s\x00-\x1f\x7f-\x9f\\]", url):
        raise ValueError("The URL contains a space, a control character or a backslash.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError("The URL's host or port is malformed.") from error
    refusals = {
        "The URL must start with https:// or http://.": parts.scheme not in PORTS,
        "The URL must not contain a user name or password.": "@" in parts.netloc,
        "The URL must not have a fragment: it would never be sent.": "#" in url,
        "Port 0 cannot be connected to.": port == 0,
        "The URL has no host.": not parts.hostname,
    }
    for reason, applies in refusals.items():
        if applies:
            raise ValueError(reason)
    host = _parse_host(parts.hostname or "", bracketed="[" in parts.netloc)
    authority = f"[{host}]" if ":" in host else host
    if port not in (None, PORTS[parts.scheme]):
        authority += f":{port}"
    origin = f"{parts.scheme}://{authority}"
    query = f"?{parts.query}" if parts.query else ""
    path = quote((parts.path or "/") + query, safe=_PATH_SAFE)
    if len(origin) + len(path) > URL_CHARACTERS:
        raise ValueError(f"The URL, encoded, is longer than {URL_CHARACTERS} characters.")
    return Target(
        url=origin + path,
        origin=origin,
        host=host,
        port=port or PORTS[parts.scheme],
        tls=parts.scheme == "https",
        head=f"POST {path} HTTP/1.1\r\nhost: {authority}\r\n".encode("ascii"),
        tenant=tenant,
    )


def _parse_host(name: str, *, bracketed: bool) -> str:
    """Return `name` as it is resolved; ValueError if it is no host name and no plain address."""
    if bracketed:
        if "%" in name:
            raise ValueError("The URL's host is an address with a zone.")
        return _parse_address(
            name, ipaddress.IPv6Address, "The URL's host is not a valid IPv6 address."
        )
    if not name.isascii():
        import idna  # noqa: PLC0415  its tables would slow every start, and few hosts need them

        try:
            name = idna.encode(name, uts46=True).decode("ascii")
        except idna.IDNAError as error:
            raise ValueError("The URL's host is not a valid international name.") from error
    host = name.lower().removesuffix(".")
    labels = host.split(".")
    # Resolvers also accept 127.1, 0x7f000001, 2130706433 and 0177.0.0.1 as addresses.
    if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", labels[-1]):
        return _parse_address(
            host, ipaddress.IPv4Address, "An IPv4 address must be four decimal numbers."
        )
    if len(host) > 253 or not all(re.fullmatch(_LABEL, label) for label in labels):
        raise ValueError("The URL's host is not a valid host name.")
    return host


def _parse_address(
    text: str, kind: type[ipaddress.IPv4Address | ipaddress.IPv6Address], refusal: str
) -> str:
    try:
        return str(kind(text))
    except ValueError as error:
        raise ValueError(refusal) from error
