"""Inbound signature schemes: what passes, what does not and why, and that nothing else escapes."""

import base64
import datetime
import hashlib
import hmac
import json
from typing import Any

import pytest
import standardwebhooks
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.api.signatures import SCHEMES, SignatureError

NOW_SECONDS = 1_700_000_000
NOW = NOW_SECONDS * 1000
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + base64.b64encode(b"other" * 6).decode()
BODY = b'{"data":{"taskId":"task-1"},"status":"completed"}'

Headers = dict[str, str]
names = pytest.mark.parametrize("name", sorted(SCHEMES))


def mac(key: bytes, content: bytes) -> bytes:
    return hmac.new(key, content, hashlib.sha256).digest()


def standard_headers(body: bytes = BODY, seconds: int = NOW_SECONDS) -> Headers:
    """Headers as the published library makes them."""
    moment = datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC)
    signature = standardwebhooks.Webhook(SECRET).sign("msg_1", moment, body.decode())
    return {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(seconds),
        "webhook-signature": signature,
    }


def wavespeed_headers(body: bytes = BODY, seconds: int = NOW_SECONDS) -> Headers:
    key = SECRET.removeprefix("whsec_").encode()
    signature = mac(key, b"msg_1.%d.%b" % (seconds, body)).hex()
    return {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(seconds),
        "webhook-signature": f"v3,{signature}",
    }


def kie_headers(task_id: str = "task-1", seconds: int = NOW_SECONDS) -> Headers:
    signature = mac(SECRET.encode(), f"{task_id}.{seconds}".encode())
    return {
        "x-webhook-timestamp": str(seconds),
        "x-webhook-signature": base64.b64encode(signature).decode(),
    }


def headers_for(name: str, seconds: int = NOW_SECONDS) -> Headers:
    if name == "kie":
        return kie_headers(seconds=seconds)
    return {"standard": standard_headers, "wavespeed": wavespeed_headers}[name](seconds=seconds)


def verdict(
    name: str,
    headers: Headers,
    body: bytes = BODY,
    secret: str = SECRET,
    now: int = NOW,
) -> str:
    scheme = SCHEMES[name]
    try:
        scheme.verify(body, headers, scheme.read_secret(secret), now)
    except SignatureError as error:
        return error.reason
    return "passed"


def header_ending(headers: Headers, ending: str) -> str:
    return next(name for name in headers if name.endswith(ending))


@names
def test_a_genuine_callback_passes(name: str) -> None:
    assert verdict(name, headers_for(name)) == "passed"


@names
def test_without_the_right_secret_nothing_passes(name: str) -> None:
    assert verdict(name, headers_for(name), secret=OTHER) == "wrong"


@names
@given(st.one_of(st.sampled_from(["", "whsec_", "whsec_%", "whsec_\ud800"]), st.text(max_size=40)))
def test_no_secret_has_an_empty_key_so_nobody_can_sign_with_one(name: str, secret: str) -> None:
    try:
        key = SCHEMES[name].read_secret(secret)
    except ValueError:
        return
    assert key


@names
def test_each_header_that_is_missing_or_empty_is_reported_as_missing(name: str) -> None:
    for absent in headers_for(name):
        headers = headers_for(name)
        del headers[absent]
        assert verdict(name, headers) == "missing"
        assert verdict(name, {**headers, absent: ""}) == "missing"


@names
@pytest.mark.parametrize("skew", [-300, -1, 0, 1, 300])
def test_five_minutes_of_clock_skew_are_tolerated_both_ways(name: str, skew: int) -> None:
    assert verdict(name, headers_for(name, seconds=NOW_SECONDS + skew)) == "passed"


@names
@pytest.mark.parametrize("skew_ms", [-300_001, 300_001, 86_400_000])
def test_more_skew_than_that_is_stale_even_with_a_genuine_signature(
    name: str, skew_ms: int
) -> None:
    assert verdict(name, headers_for(name), now=NOW + skew_ms) == "stale"


@names
@pytest.mark.parametrize(
    "spelling",
    ["{}.7", "{}abc", "+{}", "-{}", " {}", "{} ", "0{}", "{}e0", "1_{}", "now", "٣", "9" * 5000],
)
def test_a_timestamp_is_digits_only(name: str, spelling: str) -> None:
    headers = headers_for(name)
    headers[header_ending(headers, "timestamp")] = spelling.format(NOW_SECONDS)
    assert verdict(name, headers) == "malformed"


@names
def test_a_header_that_is_too_long_or_not_ascii_is_malformed(name: str) -> None:
    for changed in headers_for(name):
        headers = headers_for(name)
        assert verdict(name, {**headers, changed: headers[changed] + "a" * 4097}) == "malformed"
        assert verdict(name, {**headers, changed: headers[changed] + "é"}) == "malformed"
        assert verdict(name, {**headers, changed: "\ud800"}) == "malformed"


@names
def test_a_header_of_exactly_the_greatest_length_is_still_read(name: str) -> None:
    headers = headers_for(name)
    header = header_ending(headers, "signature")
    assert verdict(name, {**headers, header: headers[header].ljust(4096, "a")}) == "wrong"


@names
def test_every_single_changed_character_of_a_signature_is_wrong(name: str) -> None:
    headers = headers_for(name)
    header = header_ending(headers, "signature")
    genuine = headers[header]
    start = 0 if name == "kie" else 3
    for at in range(start, len(genuine)):
        other = "B" if genuine[at].upper() == "A" else "A"
        changed = genuine[:at] + other + genuine[at + 1 :]
        assert verdict(name, {**headers, header: changed}) == "wrong"


@names
def test_stray_characters_in_a_signature_are_not_passed_over(name: str) -> None:
    headers = headers_for(name)
    header = header_ending(headers, "signature")
    genuine = headers[header]
    for spelling in (genuine[:20] + "!" + genuine[20:], genuine + "\n", genuine + "="):
        assert verdict(name, {**headers, header: spelling}) == "wrong"


@pytest.mark.parametrize("name", ["standard", "wavespeed"])
def test_the_body_and_the_id_are_signed(name: str) -> None:
    headers = headers_for(name)
    assert verdict(name, headers, body=BODY + b" ") == "wrong"
    assert verdict(name, {**headers, "webhook-id": "msg_2"}) == "wrong"


@pytest.mark.parametrize("name", ["standard", "wavespeed"])
def test_tokens_of_other_forms_and_versions_are_passed_over(name: str) -> None:
    headers = headers_for(name)
    genuine = headers["webhook-signature"]
    for around in (f"nocomma {genuine}", f"v2,x  {genuine} v1a,y", f"{genuine} ,", f"v9 {genuine}"):
        assert verdict(name, {**headers, "webhook-signature": around}) == "passed"


@pytest.mark.parametrize("name", ["standard", "wavespeed"])
def test_a_header_with_no_token_of_the_version_is_malformed(name: str) -> None:
    headers = headers_for(name)
    for text in ("nocomma", "v1a,abc v2,abc", " ", ","):
        assert verdict(name, {**headers, "webhook-signature": text}) == "malformed"


def test_a_wrong_signature_beside_the_right_one_does_no_harm() -> None:
    headers = standard_headers()
    both = f"v1,AAAA {headers['webhook-signature']}"
    assert verdict("standard", {**headers, "webhook-signature": both}) == "passed"


def test_the_two_readings_of_a_whsec_secret_are_not_interchangeable() -> None:
    swapped = {**standard_headers(), "webhook-signature": "v1,"}
    key_as_text = SECRET.removeprefix("whsec_").encode()
    proof = mac(key_as_text, b"msg_1.%d.%b" % (NOW_SECONDS, BODY))
    swapped["webhook-signature"] += base64.b64encode(proof).decode()
    assert verdict("standard", swapped) == "wrong"


def test_wavespeed_hex_may_be_written_in_capitals() -> None:
    headers = wavespeed_headers()
    capitals = "v3," + headers["webhook-signature"].removeprefix("v3,").upper()
    assert verdict("wavespeed", {**headers, "webhook-signature": capitals}) == "passed"


def test_a_wavespeed_signature_covers_bytes_that_are_no_utf8() -> None:
    body = b"\xff\x00\xfe"
    assert verdict("wavespeed", wavespeed_headers(body), body=body) == "passed"


@pytest.mark.parametrize(
    "body",
    [
        {"data": {"taskId": "task-1"}},
        {"data": {"task_id": "task-1"}},
        {"taskId": "task-1"},
        {"task_id": "task-1"},
        {"data": {"taskId": "task-1", "task_id": "task-2"}, "taskId": "task-3"},
        {"data": {"taskId": "", "task_id": "task-1"}},
        {"data": {"taskId": 7, "task_id": "task-1"}},
        {"data": None, "taskId": "task-1"},
        {"data": ["task-2"], "task_id": "task-1"},
        {"data": {"task_id": {"task_id": "task-2"}}, "task_id": "task-1"},
    ],
)
def test_kie_finds_the_task_id_where_kie_puts_it(body: dict[str, Any]) -> None:
    assert verdict("kie", kie_headers(), body=json.dumps(body).encode()) == "passed"


def test_kie_decodes_nothing_but_the_task_id_before_the_signature_is_verified() -> None:
    number = b"1e400"  # It cannot be decoded.
    body = b'{"x":[%s],"data":{"x":%s,"taskId":"task-1"},"task_id":%s}' % ((number,) * 3)
    assert verdict("kie", kie_headers(), body=body) == "passed"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        b"[]",
        b'"task-1"',
        b"null",
        b"{}",
        b'{"data":{}}',
        b'{"taskId":7}',
        b'{"taskId":"\xff"}',
        b'{"taskId":"\\ud800"}',
        b"[" * 200_000,
        b'{"data":' * 50_000,
    ],
)
def test_kie_without_a_readable_task_id_is_malformed(body: bytes) -> None:
    assert verdict("kie", kie_headers(), body=body) == "malformed"


def test_kie_does_not_sign_the_body_and_says_so() -> None:
    forged = b'{"data":{"taskId":"task-1"},"status":"completed","url":"https://evil.example"}'
    assert verdict("kie", kie_headers(), body=forged) == "passed"
    assert not SCHEMES["kie"].proves_body
    assert SCHEMES["standard"].proves_body
    assert SCHEMES["wavespeed"].proves_body


def test_kie_refuses_the_signature_of_another_task() -> None:
    assert verdict("kie", kie_headers("task-2")) == "wrong"


def test_secrets_that_hold_no_key_are_refused_with_a_sentence() -> None:
    texts = [(name, "") for name in SCHEMES]
    texts += [("standard", "whsec_"), ("standard", "whsec_%"), ("wavespeed", "whsec_")]
    for name, text in (*texts, ("standard", "short")):
        with pytest.raises(ValueError, match=r"\w+ \w+"):
            SCHEMES[name].read_secret(text)


anything = st.one_of(
    st.text(max_size=40),
    st.just(str(NOW_SECONDS)),
    st.text(max_size=40).map("v1,{}".format),
    st.text(max_size=40).map("v3,{}".format),
)
header_names = st.sampled_from(
    [
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
        "x-webhook-timestamp",
        "x-webhook-signature",
    ]
)
task_ids = st.text(max_size=20).map(lambda text: json.dumps({"data": {"taskId": text}}).encode())


@settings(deadline=None)
@given(
    st.sampled_from(sorted(SCHEMES)),
    st.one_of(st.binary(max_size=80), task_ids),
    st.dictionaries(header_names, anything),
    st.integers(),
)
@example("kie", b'{"taskId":"\\udcff"}', kie_headers(), NOW)
def test_whatever_a_stranger_sends_only_a_signature_error_escapes(
    name: str, body: bytes, headers: Headers, now: int
) -> None:
    assert verdict(name, headers, body, now=now) in {"missing", "malformed", "stale", "wrong"}


@settings(deadline=None)
@given(st.text(max_size=200), st.integers(NOW_SECONDS - 300, NOW_SECONDS + 300))
def test_whatever_the_published_library_signs_passes(text: str, seconds: int) -> None:
    body = text.encode()
    assert verdict("standard", standard_headers(body, seconds), body=body) == "passed"


def test_an_error_names_its_reason() -> None:
    scheme = SCHEMES["standard"]
    key = scheme.read_secret(SECRET)
    with pytest.raises(SignatureError, match="signature is stale") as refusal:
        scheme.verify(BODY, standard_headers(), key, NOW + 10**9)
    assert refusal.value.reason == "stale"
