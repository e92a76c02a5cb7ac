"""Signed URLs say when they expire."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.model.clock import parse_rfc3339, rfc3339
from service.upstream.expiry import expiry_of

AT = "2026-11-23T18:20:00.000Z"
SECONDS = parse_rfc3339(AT) // 1_000


@pytest.mark.parametrize(
    "query",
    [
        "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date=20261122T182000Z&X-Amz-Expires=86400",
        "x-amz-expires=86400&x-amz-date=20261122T182000Z",
        "X-Goog-Date=20261123T172000Z&X-Goog-Expires=3600&X-Goog-Signature=ab",
        "x-oss-date=20261123T172000Z&x-oss-expires=3600",
        "X-Tos-Date=20261122T182000Z&X-Tos-Expires=86400",
        f"AWSAccessKeyId=k&Expires={SECONDS}&Signature=s",
        f"lk3s=1&x-expires={SECONDS}&x-signature=s",
        f"q-sign-algorithm=sha1&q-sign-time=1700000000;{SECONDS}",
        "sv=2022-11-02&se=2026-11-23T18%3A20%3A00Z&sig=s",
        "se=2026-11-23T18:20Z",
        "se=2026-11-23T19:20:00%2B01:00",
    ],
)
def test_a_signed_url_says_when_it_expires(query: str) -> None:
    expires_at = expiry_of(f"https://cdn.example/a.png?{query}")
    assert expires_at is not None
    assert rfc3339(expires_at) == AT


@pytest.mark.parametrize(
    "url",
    [
        "https://cdn.example/a.png",
        "https://cdn.example/expires=1/a.png",
        "https://cdn.example/a.png?expires=",
        "https://cdn.example/a.png?expires=soon",
        "https://cdn.example/a.png?expires=0",
        "https://cdn.example/a.png?expires=3600",
        "https://cdn.example/a.png?expires=99999999999999",
        "https://cdn.example/a.png?X-Amz-Expires=60",
        "https://cdn.example/a.png?X-Amz-Date=today&X-Amz-Expires=60",
        "https://cdn.example/a.png?X-Amz-Date=20261122T182000Z&X-Amz-Expires=9999999999999",
        "https://cdn.example/a.png?se=never",
        "https://cdn.example/a.png?noexpires=1795000000",
        "data:image/png;base64,AAAA",
        "https://[/a.png?expires=1",
    ],
)
def test_any_other_url_says_nothing(url: str) -> None:
    assert expiry_of(url) is None


@given(
    st.sampled_from(["x-amz-date=20261122T182000Z&x-amz-expires", "expires", "se", "q-sign-time"]),
    st.text(max_size=40),
)
def test_no_text_is_an_error(name: str, value: str) -> None:
    expiry_of(f"https://cdn.example/a.png?{name}={value}")
