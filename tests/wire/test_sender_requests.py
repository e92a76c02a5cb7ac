"""What is written: no subscriber's URL or header can turn one request into another."""

import pytest

from service.api.checks import header_errors
from service.delivery.target import parse_target
from service.delivery.webhook.request import encode_request, refuse_header

TARGET = parse_target("https://B\u00fccher.example:8443/w\u00e4g?q=a b".replace(" ", "%20"))

FORBIDDEN = [
    ("x", "a\r\nhost: b"),
    ("x", "a\nb"),
    ("x", "a\rb"),
    ("x", "a\0b"),
    ("x", "\u20ac"),
    ("x\r\ny", "a"),
    ("x y", "a"),
    ("x:", "a"),
    ("\u00e9", "a"),
    ("", "a"),
    ("Host", "a"),
    ("content-length", "1"),
    ("Transfer-Encoding", "chunked"),
    ("Connection", "close"),
    ("expect", "100-continue"),
]


def test_a_target_is_taken_apart_once() -> None:
    assert TARGET.url == "https://xn--bcher-kva.example:8443/w%C3%A4g?q=a%20b"
    assert TARGET.origin == "https://xn--bcher-kva.example:8443"
    assert (TARGET.host, TARGET.port, TARGET.tls) == ("xn--bcher-kva.example", 8443, True)


def test_a_request_is_the_targets_head_the_headers_a_length_and_the_body() -> None:
    assert encode_request(TARGET, {"webhook-id": "evt_1", "X-Name": "J\u00fcrgen"}, b"\x00{}") == (
        b"POST /w%C3%A4g?q=a%20b HTTP/1.1\r\n"
        b"host: xn--bcher-kva.example:8443\r\n"
        b"webhook-id: evt_1\r\n"
        b"X-Name: J\xfcrgen\r\n"
        b"content-length: 3\r\n"
        b"\r\n"
        b"\x00{}"
    )


def test_an_empty_body_has_a_length() -> None:
    assert encode_request(TARGET, {}, b"").endswith(b"\r\ncontent-length: 0\r\n\r\n")


@pytest.mark.parametrize("url", ["https://", "https://127.1/", "ftp://example.com/"])
def test_what_is_not_a_url_to_send_to_is_no_target(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|IPv4"):
        parse_target(url)


@pytest.mark.parametrize(("name", "value"), FORBIDDEN)
def test_a_header_that_changes_the_request_is_refused_at_creation(name: str, value: str) -> None:
    assert header_errors({name: value})


@pytest.mark.parametrize(("name", "value"), FORBIDDEN)
def test_a_header_that_changes_the_request_is_never_written(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=r"header|latin"):
        encode_request(TARGET, {"a": "b", name: value, "c": "d"}, b"{}")


@pytest.mark.parametrize(
    ("name", "value"), [("Authorization", "Bearer x"), ("x", ""), ("X_y-1.2", "\t\u00e9 : ; ,")]
)
def test_other_headers_are_written(name: str, value: str) -> None:
    assert refuse_header(name) is None
    line = f"{name}: {value}\r\n".encode("latin-1")
    assert line in encode_request(TARGET, {name: value}, b"{}")
