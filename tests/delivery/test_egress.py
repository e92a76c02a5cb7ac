"""Which URLs are refused at creation, and which addresses when a connection is made."""

import ipaddress
from collections.abc import Awaitable, Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.delivery.target import SendError, parse_target
from service.delivery.webhook.egress import Policy, refuse_address, refuse_url, resolve

CLOSED = Policy()
HTTP = Policy(allow_http=True)

REFUSED = {
    "a loopback address": ["127.0.0.1", "127.255.255.254", "::1"],
    "a private address": ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fd12::1"],
    "a link-local address": ["169.254.1.1", "fe80::1", "febf::1"],
    "a carrier-grade NAT address": ["100.64.0.1", "100.127.255.255"],
    "a multicast address": ["224.0.0.1", "239.255.255.255", "ff02::1"],
    "an unspecified address": ["0.0.0.1", "0.1.2.3", "::"],
    "the broadcast address": ["255.255.255.255"],
    "a cloud metadata address": [
        "169.254.169.254",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "fd00:ec2::254",
        "fd20:ce::254",
    ],
    "a documentation address": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1"],
    "a benchmarking address": ["198.18.0.1", "198.19.255.255", "2001:2::1"],
    "a reserved address": ["192.0.0.1", "240.0.0.1", "2001:20::1", "100::1", "4000::1", "5f00::1"],
    "an IPv4 address inside an IPv6 address": [
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "::127.0.0.1",
        "64:ff9b::10.0.0.1",
        "64:ff9b::8.8.8.8",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    ],
    "an address with a zone": ["fe80::1%eth0", "2606:4700::1111%1"],
    "not an address": ["", "localhost", "0x7f.1", "127.1", "2130706433", "010.0.0.1", "1.1.1.1 "],
}
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "191.255.255.255",
    "223.255.255.255",
    "2606:4700::1111",
    "2001:4860:4860::8888",
    "2a00:1450::1",
]


def allowing(*networks: str, http: bool = False) -> Policy:
    return Policy(allow_http=http, allow_networks=tuple(map(ipaddress.ip_network, networks)))


# Addresses


@pytest.mark.parametrize(
    ("ip", "kind"), [(ip, kind) for kind, ips in REFUSED.items() for ip in ips]
)
def test_special_addresses_are_refused_by_name(ip: str, kind: str) -> None:
    assert refuse_address(ip, CLOSED) == kind


@pytest.mark.parametrize("ip", PUBLIC)
def test_public_addresses_may_be_reached(ip: str) -> None:
    assert refuse_address(ip, CLOSED) is None


@given(st.ip_addresses(v=4))
def test_what_is_reached_is_global_by_the_library_too(ip: ipaddress.IPv4Address) -> None:
    if refuse_address(str(ip), CLOSED) is None:
        assert ip.is_global
        assert not ip.is_multicast


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_inside_an_ipv6_address_is_never_reached(ip: ipaddress.IPv4Address) -> None:
    number = int(ip)
    for whole in (
        number,
        0xFFFF << 32 | number,
        0x64FF9B << 96 | number,
        0x64FF9B0001 << 80 | number,
        0x2002 << 112 | number << 80,
        0x20010000 << 96 | number ^ 0xFFFFFFFF,
    ):
        assert refuse_address(str(ipaddress.IPv6Address(whole)), CLOSED)


@given(st.ip_addresses(v=6) | st.ip_addresses(v=6, network="2000::/3"))
def test_only_global_unicast_is_reached_by_ipv6(ip: ipaddress.IPv6Address) -> None:
    if refuse_address(str(ip), CLOSED) is None:
        assert ip in ipaddress.ip_network("2000::/3")
        assert ip.is_global


def test_a_named_network_is_open_and_its_neighbours_are_not() -> None:
    policy = allowing("10.1.0.0/16", "fd00:1::/32")
    assert refuse_address("10.1.2.3", policy) is None
    assert refuse_address("fd00:1::5", policy) is None
    assert refuse_address("10.2.0.1", policy) == "a private address"
    assert refuse_address("fd00:2::5", policy) == "a private address"
    assert refuse_address("127.0.0.1", policy) == "a loopback address"


def test_a_named_ipv4_network_opens_no_ipv6_form() -> None:
    assert refuse_address("::ffff:10.1.2.3", allowing("10.0.0.0/8"))


@pytest.mark.parametrize(
    ("network", "inside", "public"),
    [
        ("::ffff:0:0/96", "::ffff:127.0.0.1", "::ffff:8.8.8.8"),
        ("::/96", "::127.0.0.1", "::8.8.8.8"),
        ("64:ff9b::/96", "64:ff9b::7f00:1", "64:ff9b::808:808"),
        ("64:ff9b:1::/48", "64:ff9b:1::7f00:1", "64:ff9b:1::808:808"),
        ("2002::/16", "2002:7f00:1::", "2002:808:808::"),
        ("2001::/32", "2001:0:808:808::80ff:fffe", "2001:0:808:808::f7f7:f7f7"),
    ],
)
def test_a_named_form_opens_only_the_ipv4_addresses_that_pass_alone(
    network: str, inside: str, public: str
) -> None:
    assert refuse_address(public, allowing(network)) is None
    assert refuse_address(inside, allowing(network)) == "a loopback address"
    assert refuse_address(inside, allowing(network, "127.0.0.0/8")) is None


@pytest.mark.parametrize("interface", ["0:5efe", "200:5efe"])
def test_an_isatap_address_is_as_its_ipv4_address_in_any_network(interface: str) -> None:
    policy = allowing()
    inside, public = f"2001:4860::{interface}:7f00:1", f"2001:4860::{interface}:808:808"
    assert refuse_address(inside, policy) == "a loopback address"
    assert refuse_address(public, policy) is None
    assert refuse_address(inside, allowing("127.0.0.0/8")) is None


@pytest.mark.parametrize(
    "inside",
    [
        "64:ff9b:1:a00:0:800:808:808",  # 10.0.0.8 after a prefix of 48 bits
        "64:ff9b:1:a:0:8:808:808",  # of 56 bits
        "64:ff9b:1:0:a:0:800:0",  # of 64 bits
        "64:ff9b:1::a00:8",  # of 96 bits
    ],
)
def test_a_local_translators_form_opens_no_private_address_at_any_length(inside: str) -> None:
    policy = allowing("64:ff9b:1::/48")
    assert refuse_address(inside, policy) == "a private address"
    assert refuse_address("64:ff9b:1::808:808", policy) is None


def test_loopback_can_be_opened() -> None:
    policy = allowing("127.0.0.0/8", "::1/128")
    assert refuse_address("127.0.0.1", policy) is None
    assert refuse_address("::1", policy) is None


# URLs


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "https://example.com/",
        "https://example.com:8443/a/b?c=d&e=%20",
        "https://EXAMPLE.com/",
        "https://example.com./",
        "https://b\u00fccher.example/\u00fc?\u00fc=1",
        "https://xn--bcher-kva.example/",
        "https://my_host.example/",
        "https://1.1.1.1/",
        "https://[2606:4700::1111]:443/",
        "https://1.example/",
        "https://example.com/" + "a" * 2028,
    ],
)
def test_a_url_that_may_pass_is_not_refused(url: str) -> None:
    assert refuse_url(url, CLOSED) is None


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.com/", "https"),
        ("ftp://example.com/", "https://"),
        ("file:///etc/passwd", "https://"),
        ("example.com/", "https://"),
        ("//example.com/", "https://"),
        ("", "https://"),
        ("https://", "no host"),
        ("https:///path", "no host"),
        ("https://:443/", "no host"),
        ("https://user@example.com/", "user name"),
        ("https://user:secret@example.com/", "user name"),
        ("https://@example.com/", "user name"),
        ("https://example.com/#part", "fragment"),
        ("https://example.com/#", "fragment"),
        ("https://example.com:0/", "Port 0"),
        ("https://example.com:65536/", "malformed"),
        ("https://example.com:-1/", "malformed"),
        ("https://example.com:http/", "malformed"),
        ("https://[::1/", "malformed"),
        ("https://example.com/" + "a" * 2029, "2048"),
        ("https://example.com/a b", "space"),
        (" https://example.com/", "space"),
        ("https://example.com/\r\nx", "control"),
        ("https://exam\tple.com/", "control"),
        ("https://example.com/\x00", "control"),
        ("https://example.com/\x85", "control"),
        ("https://example.com\\@127.0.0.1/", "backslash"),
        ("https://exa%6dple.com/", "valid host name"),
        ("https://-example.com/", "valid host name"),
        ("https://example..com/", "valid host name"),
        ("https://.example.com/", "valid host name"),
        ("https://" + "a" * 64 + ".com/", "valid host name"),
        ("https://" + "a." * 127 + "com/", "valid host name"),
        ("https://exam!ple.com/", "valid host name"),
        ("https://\u2603\ufe0f.\u0000/", "control"),
        ("https://xn--\u00fc.com/", "international"),
        ("https://127.0.0.1/", "a loopback address"),
        ("https://10.0.0.1/", "a private address"),
        ("https://169.254.169.254/latest/", "a cloud metadata address"),
        ("https://[::1]/", "a loopback address"),
        ("https://[::ffff:127.0.0.1]/", "inside an IPv6 address"),
        ("https://[fe80::1%25eth0]/", "zone"),
        ("https://[v1.a]/", "valid IPv6|malformed"),
        ("https://[1.1.1.1]/", "valid IPv6|malformed"),
        ("https://2130706433/", "four decimal numbers"),
        ("https://0x7f000001/", "four decimal numbers"),
        ("https://0x7f.1/", "four decimal numbers"),
        ("https://127.1/", "four decimal numbers"),
        ("https://0177.0.0.1/", "four decimal numbers"),
        ("https://127.0.0.0x1/", "four decimal numbers"),
        ("https://1.2.3.4.5/", "four decimal numbers"),
        ("https://256.1.1.1/", "four decimal numbers"),
        ("https://127.0.0.1./", "a loopback address"),
        ("https://\uff11\uff12\uff17.0.0.1/", "a loopback address"),
        ("https://127\u30020.0.1/", "a loopback address"),
        ("https://localhost/", "a loopback address"),
        ("https://LOCALHOST:8443/", "a loopback address"),
        ("https://localhost./", "a loopback address"),
        ("https://\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3/", "a loopback address"),
        ("https://api.localhost/", "a loopback address"),
        ("https://localhost.localdomain/", "a loopback address"),
        ("https://ip6-localhost/", "a loopback address"),
        ("https://metadata.google.internal/", "a cloud metadata address"),
    ],
)
def test_a_url_that_could_never_pass_is_refused_with_a_sentence(url: str, reason: str) -> None:
    said = refuse_url(url, CLOSED)
    assert said is not None
    assert any(part in said for part in reason.split("|"))
    assert said.endswith(".")


def test_http_passes_only_where_it_is_allowed() -> None:
    assert refuse_url("http://example.com/", HTTP) is None
    assert refuse_url("http://127.0.0.1/", HTTP)


def test_this_machine_has_its_names_where_loopback_is_allowed() -> None:
    for network in ("127.0.0.0/8", "::1/128"):
        assert refuse_url("https://localhost/", allowing(network)) is None
    assert refuse_url("https://localhost/", allowing("10.0.0.0/8"))


@given(st.text(max_size=60))
def test_any_text_is_either_refused_or_a_url_in_plain_ascii(text: str) -> None:
    for url in (text, "https://" + text):
        if refuse_url(url, CLOSED) is None:
            target = parse_target(url)
            assert target.url.isascii()
            assert not set(target.url) & set(" \r\n\t\\#\0")
            assert "@" not in target.origin  # A path may have it.


def test_a_path_may_have_an_at_sign() -> None:
    assert refuse_url("https://example.com/@me", CLOSED) is None


def test_a_url_is_taken_apart_and_encoded() -> None:
    target = parse_target("HTTP://B\u00fccher.Example:8080/\u00e4%20b?q=\u20ac&r=<x>")
    path = "/%C3%A4%20b?q=%E2%82%AC&r=%3Cx%3E"
    assert target.origin == "http://xn--bcher-kva.example:8080"
    assert target.url == target.origin + path
    assert target.host == "xn--bcher-kva.example"
    assert target.port == 8080
    assert not target.tls
    assert target.head.decode() == (f"POST {path} HTTP/1.1\r\nhost: xn--bcher-kva.example:8080\r\n")


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("https://example.com:443/", "example.com"),
        ("http://example.com:80/", "example.com"),
        ("https://example.com:80/", "example.com:80"),
        ("https://[2606:4700:0::1111]/", "[2606:4700::1111]"),
        ("https://[2606:4700::1111]:8443/", "[2606:4700::1111]:8443"),
    ],
)
def test_a_host_header_has_a_port_where_it_is_unusual(url: str, authority: str) -> None:
    assert parse_target(url).head.decode() == f"POST / HTTP/1.1\r\nhost: {authority}\r\n"


# Names


def answering(*ips: str) -> Callable[[str, int], Awaitable[Sequence[str]]]:
    async def lookup(host: str, port: int) -> Sequence[str]:
        assert (host, port) == ("example.com", 443)
        return ips

    return lookup


async def failing(_host: str, _port: int) -> Sequence[str]:
    raise OSError("no such name")


async def test_allowed_addresses_keep_their_order_and_refused_ones_are_left_out() -> None:
    lookup = answering("10.0.0.1", "2606:4700::1111", "127.0.0.1", "1.1.1.1")
    assert await resolve("example.com", 443, CLOSED, lookup) == ["2606:4700::1111", "1.1.1.1"]


async def test_a_name_with_only_refused_addresses_is_refused_without_naming_them() -> None:
    with pytest.raises(SendError) as caught:
        await resolve("example.com", 443, CLOSED, answering("10.0.0.1", "127.0.0.1"))
    assert caught.value.code == "address_refused"
    assert str(caught.value) == "example.com is a private address: not allowed."


@pytest.mark.parametrize("lookup", [failing, answering()])
async def test_a_name_without_addresses_is_a_dns_failure(
    lookup: Callable[[str, int], Awaitable[Sequence[str]]],
) -> None:
    with pytest.raises(SendError) as caught:
        await resolve("example.com", 443, CLOSED, lookup)
    assert caught.value.code == "dns_failed"


async def test_an_address_is_checked_and_not_looked_up() -> None:
    assert await resolve("1.1.1.1", 443, CLOSED, failing) == ["1.1.1.1"]
    with pytest.raises(SendError) as caught:
        await resolve("::1", 443, CLOSED, failing)
    assert caught.value.code == "address_refused"
