"""Callback tokens: only minted tokens are read, and the cache never changes an answer."""

import hashlib
import itertools
import os
import string

import itsdangerous
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from service.model import ids
from service.model.generation import CALLBACK_GRACE_MS, Generation
from service.upstream.callback_url import (
    CallbackTokens,
    Claim,
    Refusal,
    callback_url,
    new_nonce,
)

OLD, NEW = "o" * 32, "n" * 32
NOW = 1_700_000_000_000
EXPIRES_AT = NOW + 86_400_000
TOKEN_PART = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=40)


def tokens(*secret_keys: str, upstream: str = "apiinone", cache_size: int = 10) -> CallbackTokens:
    reader = CallbackTokens(secret_keys or (NEW,), upstream)
    reader.cache_size = cache_size
    return reader


def sign(claim: str) -> str:
    """Sign any text as the service signs its claims, with itsdangerous alone."""
    signer = itsdangerous.Signer(
        NEW,
        salt="genhook.callback.apiinone",
        key_derivation="hmac",
        digest_method=hashlib.sha256,
    )
    return signer.sign(claim).decode()


def refusal_reason(reader: CallbackTokens, token: str, now: int = NOW) -> str:
    refusal = reader.read(token, now)
    assert isinstance(refusal, str)
    return refusal


def record_verifications(reader: CallbackTokens, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    verified: list[str] = []
    verify = reader._verify

    def counting(token: str) -> Claim | Refusal:
        verified.append(token)
        return verify(token)

    monkeypatch.setattr(reader, "_verify", counting)
    return verified


def test_a_minted_token_is_read_as_what_it_was_minted_for() -> None:
    token = tokens().mint("gen_1", "nonce", EXPIRES_AT)
    assert tokens().read(token, NOW) == Claim("gen_1", "nonce", EXPIRES_AT)


@settings(deadline=None)
@given(TOKEN_PART, TOKEN_PART, st.integers(1, 9))
def test_every_claim_is_read_as_it_was_minted(generation_id: str, nonce: str, days: int) -> None:
    expires_at = NOW + days * 86_400_000
    token = tokens().mint(generation_id, nonce, expires_at)
    assert tokens().read(token, NOW) == Claim(generation_id, nonce, expires_at)


def test_a_real_token_is_short_and_safe_in_a_path() -> None:
    token = tokens().mint(ids.new_id("gen", NOW), new_nonce(os.urandom), EXPIRES_AT)
    assert len(token) <= 160
    assert set(token) <= set(string.ascii_letters + string.digits + "-_.")


def test_a_token_expires_at_its_time_and_not_a_millisecond_earlier() -> None:
    for reader in (tokens(), tokens()):
        token = reader.mint("gen_1", "nonce", EXPIRES_AT)
        assert reader.read(token, EXPIRES_AT - 1) == Claim("gen_1", "nonce", EXPIRES_AT)
        assert refusal_reason(reader, token, EXPIRES_AT) == "expired"


def test_a_fraction_of_a_second_is_rounded_up() -> None:
    token = tokens().mint("gen_1", "nonce", EXPIRES_AT + 1)
    claim = Claim("gen_1", "nonce", EXPIRES_AT + 1000)
    assert tokens().read(token, EXPIRES_AT + 999) == claim


def test_a_cached_token_expires_too_and_leaves_the_cache() -> None:
    reader = tokens()
    token = reader.mint("gen_1", "nonce", EXPIRES_AT)
    reader.read(token, NOW)
    assert reader._claims
    assert refusal_reason(reader, token, EXPIRES_AT) == "expired"
    assert not reader._claims
    assert not reader._token_of


def test_a_token_of_another_key_or_upstream_is_forged() -> None:
    token = tokens(OLD).mint("gen_1", "nonce", EXPIRES_AT)
    assert refusal_reason(tokens(NEW), token) == "forged"
    assert refusal_reason(tokens(OLD, upstream="other"), token) == "forged"


def test_all_keys_verify_and_the_newest_signs() -> None:
    old = tokens(OLD).mint("gen_1", "nonce", EXPIRES_AT)
    new = tokens(OLD, NEW).mint("gen_1", "nonce", EXPIRES_AT)
    assert tokens(OLD, NEW).read(old, NOW) == tokens(NEW).read(new, NOW)
    assert refusal_reason(tokens(OLD), new) == "forged"


def test_a_token_with_one_changed_character_is_refused() -> None:
    reader = tokens()
    token = reader.mint("gen_1", "nonce", EXPIRES_AT)
    for index, character in itertools.product(range(len(token)), "A.B"):
        changed = token[:index] + character + token[index + 1 :]
        if changed != token:
            assert refusal_reason(reader, changed) in {"forged", "malformed"}
    assert not reader._claims


def test_a_token_has_only_one_spelling() -> None:
    token = tokens().mint("gen_1", "nonce", EXPIRES_AT)
    lenient = itsdangerous.encoding.base64_decode
    accepted = []
    for last in string.ascii_letters + string.digits + "-_":
        other = token[:-1] + last
        if lenient(other[-43:]) == lenient(token[-43:]):
            accepted.append(other)
    assert len(accepted) == 4  # The library alone would accept all of these.
    for other in accepted:
        if other != token:
            assert refusal_reason(tokens(), other) == "forged"
    for other in (token + "=", token + "!", token + "\n", " " + token):
        assert refusal_reason(tokens(), other) == "malformed"


@pytest.mark.parametrize(
    "token",
    ["", ".", "a", "a.b", "é" * 60, "\ud800" * 60, "a" * 513, "a" * 469 + "." + "A" * 43, "a\x00b"],
)
def test_text_that_cannot_be_a_token_is_malformed(token: str) -> None:
    assert refusal_reason(tokens(), token) == "malformed"


def test_length_is_checked_before_the_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    def validate(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(itsdangerous.Signer, "verify_signature", validate)
    reader, end = tokens(), ".n.1." + "A" * 43
    assert refusal_reason(reader, "a" * (513 - len(end)) + end) == "malformed"
    with pytest.raises(AssertionError):
        reader.read("a" * (512 - len(end)) + end, NOW)


@given(TOKEN_PART, TOKEN_PART, st.integers(0, 9**12))
def test_tokens_are_exactly_those_of_the_library(
    generation_id: str, nonce: str, seconds: int
) -> None:
    assume(seconds < 10**12)
    token = sign(f"{generation_id}.{nonce}.{seconds}")
    assert tokens()._verify(token) == Claim(generation_id, nonce, seconds * 1_000)
    assert tokens().mint(generation_id, nonce, seconds * 1_000) == token


@pytest.mark.parametrize(
    "claim",
    ["", "gen_1", "gen_1.n", "gen_1.n.", "gen_1.n.x", "g.n.1.2", ".n.1", "g..1", "g.n.-1", "g.n.٣"],
)
def test_a_good_signature_over_another_shape_is_malformed(claim: str) -> None:
    assert refusal_reason(tokens(), sign(claim)) == "malformed"


@pytest.mark.parametrize(
    ("generation_id", "nonce"), [("", "n"), ("g", ""), ("g.1", "n"), ("g", "é")]
)
def test_a_token_that_could_not_be_read_is_not_minted(generation_id: str, nonce: str) -> None:
    with pytest.raises(ValueError, match="too long or has an invalid character"):
        tokens().mint(generation_id, nonce, EXPIRES_AT)


@settings(deadline=None)
@given(st.text(max_size=600))
def test_any_text_that_was_not_minted_raises_a_token_error_and_nothing_else(text: str) -> None:
    reader = tokens()
    genuine = reader.mint("gen_1", "nonce", EXPIRES_AT)
    assume(text)
    for token in (text, genuine + text, text + genuine, genuine.replace(".", text, 1)):
        if token != genuine:
            assert refusal_reason(reader, token) in {"forged", "malformed"}


def test_a_token_too_long_to_be_read_is_not_minted() -> None:
    with pytest.raises(ValueError, match="too long or has an invalid character"):
        tokens().mint("g" * 600, "nonce", EXPIRES_AT)


def test_every_minted_token_can_be_read() -> None:
    longest = 0
    for length in range(300, 500):
        generation_id = "g" * length
        try:
            token = tokens().mint(generation_id, "nonce", EXPIRES_AT)
        except ValueError:
            continue
        longest = max(longest, len(token))
        assert tokens().read(token, NOW) == Claim(generation_id, "nonce", EXPIRES_AT)
    assert longest >= 510


def test_a_cached_token_is_not_verified_again(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = tokens()
    verified = record_verifications(reader, monkeypatch)
    token = reader.mint("gen_1", "nonce", EXPIRES_AT)
    assert [reader.read(token, NOW) for _ in range(3)] == [Claim("gen_1", "nonce", EXPIRES_AT)] * 3
    assert verified == [token]


def test_a_forgotten_token_is_verified_again(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = tokens()
    verified = record_verifications(reader, monkeypatch)
    token = reader.mint("gen_1", "nonce", EXPIRES_AT)
    reader.read(token, NOW)
    reader.forget("gen_1")
    reader.forget("gen_unknown")
    reader.read(token, NOW)
    assert verified == [token, token]


def test_minting_does_not_fill_the_cache() -> None:
    reader = tokens()
    reader.mint("gen_1", "nonce", EXPIRES_AT)
    assert not reader._claims


def test_expired_and_forged_tokens_evict_nothing_from_the_cache() -> None:
    reader = tokens(cache_size=1)
    cached = reader.mint("gen_cached", "nonce", EXPIRES_AT)
    reader.read(cached, NOW)
    refusal_reason(reader, reader.mint("gen_old", "nonce", NOW), NOW)
    refusal_reason(reader, tokens(OLD).mint("gen_2", "nonce", EXPIRES_AT))
    assert list(reader._claims) == [cached]


def test_a_generation_has_one_entry_in_the_cache_for_all_its_nonces() -> None:
    reader = tokens(cache_size=3)
    for number in range(9):
        reader.read(reader.mint("gen_1", f"nonce{number}", EXPIRES_AT), NOW)
    assert [claim.nonce for claim in reader._claims.values()] == ["nonce8"]


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 4))
def test_the_cache_is_bounded_and_never_wrong(numbers: list[int], size: int) -> None:
    reader = tokens(cache_size=size)
    minted = [reader.mint(f"gen_{number}", "nonce", EXPIRES_AT) for number in range(10)]
    for number in numbers:
        assert reader.read(minted[number], NOW) == Claim(f"gen_{number}", "nonce", EXPIRES_AT)
        assert minted[number] in reader._claims
        assert len(reader._claims) <= size
        assert {t: c.generation_id for t, c in reader._claims.items()} == {
            token: generation_id for generation_id, token in reader._token_of.items()
        }


def test_the_oldest_entry_is_evicted() -> None:
    reader = tokens(cache_size=2)
    first, second, third = (reader.mint(f"gen_{n}", "nonce", EXPIRES_AT) for n in range(3))
    for token in (first, second, third):
        reader.read(token, NOW)
    assert list(reader._claims) == [second, third]


def test_a_nonce_is_128_bits_and_safe_in_a_url() -> None:
    assert new_nonce(lambda count: b"\xff" * count) == "_" * 21 + "w"
    assert new_nonce(os.urandom) != new_nonce(os.urandom)


def test_tokens_without_a_key_are_refused() -> None:
    with pytest.raises(ValueError, match="secret key"):
        CallbackTokens([], "apiinone")


GENERATION = Generation(
    id="gen_1",
    tenant="default",
    model="imagen4",
    status="queued",
    route="callback",
    input={},
    metadata={},
    created_at=NOW,
    deadline_at=EXPIRES_AT,
    nonce="nonce",
    submission="sending",
)


def test_a_callback_url_is_valid_until_the_grace_after_the_deadline_ends() -> None:
    url = callback_url(tokens(), "https://hooks.example", GENERATION)
    assert url is not None
    base, _, token = url.rpartition("/")
    assert base == "https://hooks.example/callbacks/apiinone"
    assert tokens().read(token, NOW) == Claim("gen_1", "nonce", EXPIRES_AT + CALLBACK_GRACE_MS)


def test_without_a_public_url_there_is_no_callback_url() -> None:
    assert callback_url(tokens(), None, GENERATION) is None
