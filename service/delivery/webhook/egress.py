"""Which addresses may be reached: URLs are checked at creation, addresses at each connection."""

import ipaddress
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal
from urllib.parse import quote, urlsplit

import msgspec

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Lookup = Callable[[str, int], Awaitable[Sequence[str]]]

URL_CHARACTERS = 2048
PORTS = {"http": 80, "https": 443}

# The first match wins, so narrow networks stand before wide ones. From the IANA special-purpose
# registries, and the metadata services outside the link-local network.
_REFUSED: tuple[tuple[Network, str], ...] = tuple(
    (ipaddress.ip_network(network), kind)
    for kind, networks in {
        "a cloud metadata address": (
            "169.254.169.254/32 100.100.100.200/32 168.63.129.16/32 192.0.0.192/32 "
            "fd00:ec2::254/128 fd20:ce::254/128"
        ),
        "the broadcast address": "255.255.255.255/32",
        "an unspecified address": "0.0.0.0/8 ::/128",
        "a loopback address": "127.0.0.0/8 ::1/128",
        "a link-local address": "169.254.0.0/16 fe80::/10",
        "a private address": "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7 fec0::/10",
        "a carrier-grade NAT address": "100.64.0.0/10",
        "a multicast address": "224.0.0.0/4 ff00::/8",
        "a documentation address": (
            "192.0.2.0/24 198.51.100.0/24 203.0.113.0/24 2001:db8::/32 3fff::/20"
        ),
        "a benchmarking address": "198.18.0.0/15 2001:2::/48",
        "an IPv4 address inside an IPv6 address": (
            "::ffff:0:0/96 ::/96 64:ff9b::/96 64:ff9b:1::/48 2002::/16 2001::/32"
        ),
        "a reserved address": (
            "192.0.0.0/24 192.88.99.0/24 240.0.0.0/4 2001::/23 "
            "::/3 4000::/2 8000::/1"  # only 2000::/3 is global unicast
        ),
    }.items()
    for network in networks.split()
)
_LOW_32_BITS = tuple(
    ipaddress.IPv6Network(network) for network in ("::/96", "64:ff9b::/96", "64:ff9b:1::/48")
)
# Names whose addresses are known without a lookup.
_LOOPBACK = ("127.0.0.1", "::1")
_KNOWN_NAMES = {
    "localhost": _LOOPBACK,
    "localdomain": _LOOPBACK,
    "ip6-localhost": _LOOPBACK,
    "ip6-loopback": _LOOPBACK,
    "metadata.google.internal": ("169.254.169.254", "fd20:ce::254"),
}
_UNPRINTABLE = re.compile(r"[\s\x00-\x1f\x7f-\x9f]")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PATH_SAFE = "/%:@!$&'()*+,;=-._~?[]"


class Policy(msgspec.Struct, frozen=True):
    """What settings allow: plain http, and networks that are otherwise refused."""

    allow_http: bool = False
    allow_networks: tuple[Network, ...] = ()


class EgressError(Exception):
    """There is no address to connect to."""

    def __init__(self, code: Literal["address_refused", "dns_failed"], message: str) -> None:
        super().__init__(message)
        self.code: Literal["address_refused", "dns_failed"] = code


class Url(msgspec.Struct, frozen=True):
    """An http(s) URL in parts: `host` is ASCII and lower case, `path` has the query, encoded."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The value of a Host header: IPv6 in brackets, the port unless it is the default."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


def split_url(url: str) -> Url:
    """Parse `url`; ValueError with a sentence for people if it cannot be sent to."""
    if len(url) > URL_CHARACTERS:
        raise ValueError(f"The URL is longer than {URL_CHARACTERS} characters.")
    if _UNPRINTABLE.search(url) or "\\" in url:
        raise ValueError("The URL contains a space, a control character or a backslash.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError("The URL's host or port is malformed.") from error
    if parts.scheme not in PORTS:
        raise ValueError("The URL must start with https:// or http://.")
    if "@" in parts.netloc:
        raise ValueError("The URL must not contain a user name or password.")
    if "#" in url:
        raise ValueError("The URL must not have a fragment: it would never be sent.")
    if port == 0:
        raise ValueError("Port 0 cannot be connected to.")
    query = f"?{parts.query}" if parts.query else ""
    return Url(
        scheme=parts.scheme,
        host=_host(parts.hostname or "", bracketed="[" in parts.netloc),
        port=port or PORTS[parts.scheme],
        path=quote((parts.path or "/") + query, safe=_PATH_SAFE),
    )


def refuse_url(url: str, policy: Policy) -> str | None:
    """Return why `url` can never be delivered to, as a sentence; None if it can.

    Names are not resolved here: their addresses are checked whenever a connection is made.
    """
    try:
        parts = split_url(url)
    except ValueError as error:
        return str(error)
    if parts.scheme == "http" and not policy.allow_http:
        return "The URL must use https."
    reasons = [refuse_address(ip, policy) for ip in _addresses_without_lookup(parts.host)]
    if reasons and all(reasons):
        return f"The URL's host is {reasons[0]}, which is not allowed."
    return None


def refuse_address(ip: str, policy: Policy) -> str | None:
    """Return the kind of forbidden address, such as "a private address"; None if it is allowed.

    `policy.allow_networks` allows every address inside. An IPv4 address inside an IPv6 address is
    checked as well, so allowing 64:ff9b::/96 does not allow loopback.
    """
    if "%" in ip:
        return "an address with a zone"
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return "not an address"
    if not any(address in network for network in policy.allow_networks):
        for network, kind in _REFUSED:
            if address in network:
                return kind
    for embedded in _embedded(address):
        if reason := refuse_address(str(embedded), policy):
            return reason
    return None


async def resolve(host: str, port: int, policy: Policy, lookup: Lookup) -> list[str]:
    """Return the addresses of `host` that may be connected to, in the order of `lookup`.

    EgressError if there are none. The message contains no address, since the client that chose
    the URL can read it.
    """
    literal = _literal(host)
    try:
        addresses = [str(literal)] if literal else await lookup(host, port)
    except (OSError, UnicodeError) as error:
        raise EgressError("dns_failed", f"{host} could not be resolved.") from error
    if not addresses:
        raise EgressError("dns_failed", f"{host} has no address.")
    reasons = {ip: refuse_address(ip, policy) for ip in addresses}
    allowed = [ip for ip, reason in reasons.items() if reason is None]
    if not allowed:
        raise EgressError("address_refused", f"{host} is {reasons[addresses[0]]}: not allowed.")
    return allowed


def _host(name: str, *, bracketed: bool) -> str:
    """Return `name` as it is resolved; ValueError if it is no host name and no plain address."""
    if not name:
        raise ValueError("The URL has no host.")
    if bracketed:
        return _ipv6(name)
    host = _ascii(name).removesuffix(".")
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return _ipv4(host)
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("The URL's host is not a valid host name.")
    return host


def _ascii(name: str) -> str:
    if name.isascii():
        return name.lower()
    import idna  # noqa: PLC0415  its tables would slow every start, and few hosts need them

    try:
        return idna.encode(name, uts46=True).decode("ascii").lower()
    except idna.IDNAError as error:
        raise ValueError("The URL's host is not a valid international name.") from error


def _ipv4(host: str) -> str:
    # Resolvers also accept 127.1, 0x7f000001, 2130706433 and 0177.0.0.1 as addresses.
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError as error:
        raise ValueError("An IPv4 address must be four decimal numbers.") from error


def _ipv6(host: str) -> str:
    if "%" in host:
        raise ValueError("The URL's host is an address with a zone.")
    try:
        return str(ipaddress.IPv6Address(host))
    except ValueError as error:
        raise ValueError("The URL's host is not a valid IPv6 address.") from error


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _addresses_without_lookup(host: str) -> tuple[str, ...]:
    if _literal(host):
        return (host,)
    top = host.rpartition(".")[2]  # Every name under localhost is localhost (RFC 6761).
    return _KNOWN_NAMES.get(host) or _KNOWN_NAMES.get(top) or ()


def _embedded(address: Address) -> list[ipaddress.IPv4Address]:
    """Return every IPv4 address that a network might extract from an IPv6 address."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    embedded = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if any(address in network for network in _LOW_32_BITS) and int(address) > 1:
        embedded.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [ipv4 for ipv4 in embedded if ipv4]
