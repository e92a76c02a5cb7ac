"""Which addresses may be reached: URLs are checked at creation, addresses at each connection."""

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from service.delivery.target import SendError, parse_target
from service.delivery.webhook.lookups import KINDS, PLACES, Lookup

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

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
_LOW_32_BITS = tuple(map(ipaddress.IPv6Network, ("::/96", "64:ff9b::/96", "64:ff9b:1::/48")))
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
_KNOWN_NAMES = {  # Their addresses are known without a lookup.
    **dict.fromkeys(
        ("localhost", "localdomain", "ip6-localhost", "ip6-loopback"), ("127.0.0.1", "::1")
    ),
    "metadata.google.internal": ("169.254.169.254", "fd20:ce::254"),
}


class Policy(msgspec.Struct, frozen=True):
    """What the settings allow: plain http, and networks that are otherwise refused."""

    allow_http: bool = False
    allow_networks: tuple[Network, ...] = ()


def refuse_url(url: str, policy: Policy) -> str | None:
    """Return why `url` can never be delivered to, as a sentence; None if it can.

    Names are not resolved here: their addresses are checked whenever a connection is made.
    """
    try:
        target = parse_target(url)
    except ValueError as error:
        return str(error)
    if not (target.tls or policy.allow_http):
        return "The URL must use https."
    host = target.host
    top = host.rpartition(".")[2]  # Every name under localhost is localhost (RFC 6761).
    addresses = _KNOWN_NAMES.get(host) or _KNOWN_NAMES.get(top) or _read_literal(host)
    reasons = [refuse_address(ip, policy) for ip in addresses]
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
    kind = next((kind for network, kind in _REFUSED if address in network), None)
    if kind and not any(address in network for network in policy.allow_networks):
        return kind
    reasons = (refuse_address(str(ipv4), policy) for ipv4 in _list_embedded(address))
    return next(filter(None, reasons), None)


async def resolve(host: str, port: int, policy: Policy, lookup: Lookup) -> list[str]:
    """Return the addresses of `host` that may be connected to, in the order of `lookup`.

    SendError if there are none. The message contains no address, since the client that chose
    the URL can read it.
    """
    try:
        addresses = _read_literal(host) or await lookup(host, port)
    except (OSError, UnicodeError) as error:
        raise SendError("dns_failed", f"{host} could not be resolved.") from error
    if not addresses:
        raise SendError("dns_failed", f"{host} has no address.")
    reasons = {ip: refuse_address(ip, policy) for ip in addresses}
    allowed = [ip for ip, reason in reasons.items() if reason is None]
    if not allowed:
        raise SendError("address_refused", f"{host} is {reasons[addresses[0]]}: not allowed.")
    return allowed


def _read_literal(host: str) -> Sequence[str]:
    """Return the host if it is an address; a name has to be looked up."""
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        return []


def _list_embedded(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> list[ipaddress.IPv4Address]:
    """Return every IPv4 address that a network might extract from an IPv6 address."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    embedded = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if any(address in network for network in _LOW_32_BITS) and int(address) > 1:
        embedded.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    if address in _LOCAL_NAT64:  # A translator may use any length of prefix in it (RFC 6052).
        bits = int(address)
        numbers = (
            (bits >> 64 & 0xFFFF) << 16 | bits >> 40 & 0xFFFF,  # /48
            (bits >> 64 & 0xFF) << 24 | bits >> 32 & 0xFFFFFF,  # /56
            bits >> 24 & 0xFFFFFFFF,  # /64
        )
        # Below 0.0.0.0/8 it is no address, but the zeros of another form.
        embedded += [ipaddress.IPv4Address(number) for number in numbers if number >> 24]
    return [ipv4 for ipv4 in embedded if ipv4]


class SystemLookup:
    """A Lookup over getaddrinfo in its own threads: the event loop's pool may have only four."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(KINDS * PLACES, thread_name_prefix="lookup")

    async def __call__(self, host: str, port: int) -> list[str]:
        """Return the addresses of `host` in the system's order; OSError if it has none."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, _getaddrinfo, host, port)

    def close(self) -> None:
        """Start no more lookups; threads that wait for a name server end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _getaddrinfo(host: str, port: int) -> list[str]:
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in infos))
