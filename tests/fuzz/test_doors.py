"""Inputs that random bytes seldom reach: limits, outcomes, forgeries, and old faults."""

import gzip
import re
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.delivery.webhook.request import HEAD_BYTES, READ_BYTES
from service.model.errors import SettingsError
from service.settings import read_settings
from service.upstream import wire
from tests.fuzz import answers, seeds, targets, world
from tests.upstream.test_wire_bounds import BODIES, HEADERS

few_examples = settings(
    max_examples=50, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
ENDS = st.sampled_from(["completed", "failed", "processing"])
MOMENTS = st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
OUTPUTS = st.fixed_dictionaries(
    {"url": st.just("https://a.test/1.png") | st.text(max_size=9), "expires_at": MOMENTS}
)
OUTCOMES = st.fixed_dictionaries({"status": ENDS, "output": OUTPUTS, "error": st.text(max_size=9)})


# Subscribers


@pytest.mark.parametrize("size", [HEAD_BYTES - 1, HEAD_BYTES, HEAD_BYTES + 1, 40_000])
def test_a_head_near_its_limit_is_read_alike_however_it_is_split(size: int) -> None:
    lines, end = b"HTTP/1.1 200 OK\r\n", b"content-length: 0\r\n\r\n"
    while len(lines) + len(end) < size:
        lines += b"x:\r\n"
    for cut in (1, 1_400, HEAD_BYTES, HEAD_BYTES + 1):
        answers.check_answer(lines + end, [cut])


@pytest.mark.parametrize("size", [READ_BYTES - 60, READ_BYTES, READ_BYTES + 60])
def test_a_body_near_its_limit_is_read_alike_however_it_is_split(size: int) -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    for tail in (b"0\r\n\r\n", b"not a chunk"):
        whole = head + b"1;" + b"e" * (size - len(head)) + b"\r\nx\r\n" + tail
        answers.check_answer(whole, list(range(60_000, len(whole), 60_000)))


# Upstream


def compressed(body: bytes, encoding: str, status: int = 200) -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def submitted(answer: bytes) -> Any:
    return answers.loop().run_until_complete(answers.both([answer]))[0]


def test_an_answer_in_an_accepted_encoding_is_decompressed() -> None:
    body = msgspec.json.encode({"code": 200, "data": {"task_id": "n1_a"}})
    assert submitted(compressed(gzip.compress(body), "gzip")).task_id == "n1_a"


@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip", "br", "deflate"])
def test_a_compressed_bomb_takes_no_more_memory_than_any_answer(encoding: str) -> None:
    bomb = gzip.compress(gzip.compress(bytes(100_000_000)))
    if encoding in ("gzip", "deflate"):
        bomb = gzip.decompress(bomb)
    answers.check_response([compressed(b"{}", "identity")])  # Its imports must not count.
    tracemalloc.start()
    try:
        answers.check_response([compressed(bomb, encoding)])
        assert tracemalloc.get_traced_memory()[1] < 8_388_608  # As the default limit of a body.
    finally:
        tracemalloc.stop()


def test_a_body_that_cannot_be_decompressed_may_name_a_task() -> None:
    for encoding in ("br", "gzip"):
        assert submitted(compressed(b"rubbish", encoding, 400)).outcome == "refused"
        for status in (200, 429, 503):
            assert submitted(compressed(b"rubbish", encoding, status)).outcome == "lost"
    assert submitted(compressed(gzip.compress(b"busy"), "gzip", 429)).outcome == "put_off"


@few_examples
@given(OUTCOMES | BODIES)
def test_any_believed_callback_is_stored_and_can_be_read(body: Any) -> None:
    world.check_believed(msgspec.json.encode(body))


@few_examples
@given(st.sampled_from([200, 202, 404, 429, 500]), HEADERS, OUTCOMES | BODIES)
def test_after_any_answer_to_a_poll_the_generation_can_be_read(
    status: int, headers: dict[str, str], body: Any
) -> None:
    world.check_polled(status, headers, msgspec.json.encode(body))


@few_examples
@given(st.sampled_from([200, 202, 400, 429, 500]), HEADERS, OUTCOMES | BODIES)
def test_after_any_answer_to_a_submission_ours_keeps_the_contract(
    status: int, headers: dict[str, str], body: Any
) -> None:
    world.check_created(status, headers, msgspec.json.encode(body))


@pytest.mark.parametrize(
    "moment", [999_999_999_999_999, 2**53 - 1, 10**400, -1, "0001-01-01T00:00:00+23:59"]
)
def test_an_expiry_that_is_no_date_is_left_out_of_the_result(moment: Any) -> None:
    output = {"url": "https://a.test/1.png", "expires_at": moment}
    data = {"status": "completed", "output": output}
    generation = world.check_believed(msgspec.json.encode({"data": data}))
    assert generation["output"]["files"] == [{"url": output["url"], "media_type": "image/png"}]


@pytest.mark.parametrize("depth", [60, 70, 500, 100_000])
def test_a_deep_or_long_result_is_read_within_its_bounds(depth: int) -> None:
    urls = [f"https://a.test/{number}.png" for number in range(min(depth, 500))]
    targets.check_upstream(200, {}, msgspec.json.encode({"status": "completed", "output": urls}))
    for opening, closing in ((b"[", b"]"), (b'{"output":', b"}")):
        body = b'{"status":"completed","output":' + opening * depth + b"1" + closing * depth + b"}"
        targets.check_upstream(200, {}, body)
        assert wire.read_callback(body) is not None


# Tokens and callbacks


@few_examples
@given(st.integers(0, 3), st.integers(0, 2_000), st.integers(0, 7))
def test_no_single_bit_of_a_token_may_change(which: int, position: int, bit: int) -> None:
    token = bytearray(sorted(targets.token_reader()[1])[which].encode())
    token[position % len(token)] ^= 1 << bit
    targets.read_token(bytes(token))
    targets.read_token(bytes(token[: position % len(token)]))


def test_a_token_of_another_key_or_upstream_is_refused() -> None:
    for token in targets.foreign_tokens():
        targets.check_token(token)


def test_a_signed_token_with_another_nonce_is_refused() -> None:
    service = world.world()
    callback = world.check_callback(service, service.revoked(), [], [b"{}"], good=False)
    assert callback["reason"] == "token_revoked"


@few_examples
@given(
    st.lists(
        st.tuples(st.binary(max_size=20).map(bytes.lower), st.binary(max_size=40)), max_size=9
    ),
    st.lists(st.binary(max_size=40) | st.just(bytes(world.BODY_BYTES)), min_size=1, max_size=4),
    st.integers(0, 10**18),
)
def test_a_callback_with_any_headers_in_any_pieces_is_stored_or_too_large(
    headers: world.Headers, pieces: list[bytes], length: int
) -> None:
    lengths = [(b"content-length", str(length).encode())]
    others = [line for line in headers if line[0] != b"content-length"]
    service = world.world()
    world.check_callback(service, service.token(), [*others, *lengths], pieces, good=True)


# Signatures


def test_each_scheme_accepts_a_valid_signature() -> None:
    for data in seeds.of("signature"):
        assert targets.read_signed(data)
        assert not targets.read_signed(data.replace(b"m1", b"m2").replace(b"k1", b"k2"))


def test_no_scheme_accepts_a_valid_signature_that_is_old() -> None:
    stamp = str(targets.NOW // 1_000 - 301)
    for scheme in targets.SCHEME_SECRETS:
        headers = {"webhook-id": "m1", "webhook-timestamp": stamp, "x-webhook-timestamp": stamp}
        signature = targets.valid_signature(scheme, headers, b'{"taskId":"k1"}')
        headers |= {"webhook-signature": signature, "x-webhook-signature": signature}
        assert not targets.check_signed(scheme, headers, b'{"taskId":"k1"}')


# Settings


@few_examples
@given(st.sampled_from(targets.NAMES), st.text(max_size=40), st.sampled_from(["", "https://"]))
def test_a_setting_is_usable_or_refused_in_a_sentence(name: str, text: str, start: str) -> None:
    targets.check_setting(name, (start + text).replace("\0", "") or "x")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("GENHOOK_PUBLIC_URL", "https://user:hush-hush-hush\u2100@hooks.example"),
        ("GENHOOK_HTTP_PROXY", "http://user:hush-hush-hush\u2100@proxy.example"),
        ("GENHOOK_PUBLIC_URL", "https://user:hush-hush-hush@["),
        ("GENHOOK_UPSTREAM_URL", "https://hooks.example:hush-hush-hush"),
        ("PORT", "9" * 5_000),
        ("GENHOOK_SECRET_KEYS", "\udc80" * 40),
        ("GENHOOK_UPSTREAM_SIGNATURE_SECRET", "\udc80"),
        ("GENHOOK_DATABASE_URL", "sqlite:///a\nb"),
        ("GENHOOK_ALLOW_NETWORKS", "10.0.0.0/" + "8" * 5_000),
    ],
)
def test_a_wrong_setting_is_not_quoted_and_does_not_break_the_start(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name} .*must"):
        read_settings({"GENHOOK_SECRET_KEYS": "0123456789abcdef" * 2, name: text})
    targets.check_setting(name, text)


@pytest.mark.parametrize("before", ["line one\n", "?auth%3D", "key_", "Bearer%20"])
def test_a_key_is_removed_from_a_line_after_any_text(before: str) -> None:
    targets.check_log(before, targets.SECRETS[0], "")


def test_a_line_with_a_quoted_bearer_token_stays_json() -> None:
    targets.check_log("", targets.SECRETS[-1], '","level":"error')


def test_too_many_query_parameters_are_a_bad_request() -> None:
    fields = b"&".join([b"limit=1"] * (101))
    answer = world.world().ask("GET", "/v1/generations", fields)
    assert re.fullmatch("4..", str(answer.status_code))


def test_a_query_that_is_not_utf_8_is_a_bad_request() -> None:
    answer = world.world().ask("GET", "/v1/generations", b"\x80")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_query")
