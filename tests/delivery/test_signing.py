"""Outgoing signatures: fixed vectors, the published library, and hostile secrets."""

import base64
import datetime
import os
import subprocess
import sys

import pytest
import standardwebhooks
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from service.delivery import signing
from service.delivery.signing import Previous, Secrets, Signer
from service.model import clock

# The vector that the test suites of the reference libraries share.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
TIMESTAMP = 1614265330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

# The vector of the Svix server, the only public one for v1a, over the same message.
PRIVATE_KEY = (
    "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="
)
PUBLIC_KEY = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="
SIGNATURE_ASYMMETRIC = (
    "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="
)

relaxed = settings(deadline=None)
keys = st.binary(min_size=24, max_size=64)
ids = st.text("abcdefghijklmnopqrstuvwxyz0123456789_", min_size=1, max_size=40)
timestamps = st.integers(0, 4_000_000_000)


def whsec(key: bytes) -> str:
    return "whsec_" + base64.b64encode(key).decode()


def published_signature(secret: str, message_id: str, timestamp: int, body: str) -> str:
    moment = datetime.datetime.fromtimestamp(timestamp, tz=datetime.UTC)
    return standardwebhooks.Webhook(secret).sign(message_id, moment, body)


def test_the_shared_vector_is_reproduced() -> None:
    key = signing.decode_secret(SECRET)
    assert signing.sign(key, MESSAGE_ID, TIMESTAMP, BODY) == SIGNATURE


@relaxed
@given(keys, ids, timestamps, st.text())
def test_any_message_is_signed_as_the_published_library_signs_it(
    key: bytes, message_id: str, timestamp: int, body: str
) -> None:
    expected = published_signature(whsec(key), message_id, timestamp, body)
    assert signing.sign(key, message_id, timestamp, body.encode()) == expected


def test_the_published_library_accepts_the_header_under_the_new_and_the_old_secret() -> None:
    new, old = signing.new_secret(os.urandom), signing.new_secret(os.urandom)
    timestamp = clock.now_ms() // clock.SECOND  # The library reads the wall clock by itself.
    signer = Signer(Secrets(new, (Previous(old, timestamp * clock.SECOND + 1),)))
    headers = {
        "webhook-id": MESSAGE_ID,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signer.header(MESSAGE_ID, timestamp * clock.SECOND, BODY),
    }
    for secret in (new, old):
        assert standardwebhooks.Webhook(secret).verify(BODY, headers) == {"test": 2432232314}
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(SECRET).verify(BODY, headers)


def test_the_published_library_passes_over_an_asymmetric_signature() -> None:
    secret = signing.new_secret(os.urandom)
    timestamp = clock.now_ms() // clock.SECOND
    key, seed = signing.decode_secret(secret), signing.decode_private_key(PRIVATE_KEY)
    both = (
        signing.sign_asymmetric(seed, signing.signed_content(MESSAGE_ID, timestamp, BODY)),
        signing.sign(key, MESSAGE_ID, timestamp, BODY),
    )
    headers = {
        "webhook-id": MESSAGE_ID,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(both),
    }
    assert standardwebhooks.Webhook(secret).verify(BODY, headers) == {"test": 2432232314}


def test_a_header_holds_one_signature_a_key_in_the_order_of_the_keys() -> None:
    new, old = b"n" * 32, b"o" * 32
    previous = (Previous(whsec(old), TIMESTAMP * clock.SECOND + 1),)
    signer = Signer(Secrets(whsec(new), previous, PRIVATE_KEY))
    assert signer.header(MESSAGE_ID, TIMESTAMP * clock.SECOND, BODY).split(" ") == [
        signing.sign(new, MESSAGE_ID, TIMESTAMP, BODY),
        signing.sign(old, MESSAGE_ID, TIMESTAMP, BODY),
        SIGNATURE_ASYMMETRIC,
    ]


def test_nothing_is_signed_without_a_key() -> None:
    with pytest.raises(ValueError, match="whsec_"):
        Signer(Secrets(""))


def test_bytes_that_are_no_utf8_are_signed_as_they_are() -> None:
    key = b"k" * 32
    assert signing.sign(key, "evt_1", 1, b"\xff") != signing.sign(key, "evt_1", 1, b"\xfe")


def test_a_new_secret_is_32_random_bytes() -> None:
    asked: list[int] = []

    def random_bytes(count: int) -> bytes:
        asked.append(count)
        return bytes(range(count))

    assert signing.decode_secret(signing.new_secret(random_bytes)) == bytes(range(32))
    assert asked == [32]


@relaxed
@given(keys)
def test_every_secret_of_24_to_64_bytes_is_decoded(key: bytes) -> None:
    assert signing.decode_secret(whsec(key)) == key


@pytest.mark.parametrize("size", [0, 1, 23, 65, 128])
def test_a_secret_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=r"24 to 64 bytes|must be base64"):
        signing.decode_secret(whsec(b"k" * size))


@pytest.mark.parametrize(
    "text",
    [
        "",
        SECRET.removeprefix("whsec_"),
        SECRET.upper(),
        " " + SECRET,
        SECRET + "\n",
        SECRET + "=",
        SECRET[:10] + "!" + SECRET[10:],
        SECRET[:10] + " " + SECRET[10:],
        "whsec_" + base64.urlsafe_b64encode(b"\xff" * 24).decode(),
        whsec(b"k" * 25).rstrip("="),
        "whsec_é" + SECRET[7:],
        "whsec_" + "\ud800" * 32,
        "whsk_" + SECRET.removeprefix("whsec_"),
    ],
)
def test_a_secret_in_any_other_spelling_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(ValueError) as refusal:
        signing.decode_secret(text)
    assert SECRET[12:] not in str(refusal.value)


@relaxed
@given(st.text(max_size=120))
def test_decoding_arbitrary_text_fails_with_a_value_error_only(text: str) -> None:
    for decode, prefix in (
        (signing.decode_secret, "whsec_"),
        (signing.decode_private_key, "whsk_"),
    ):
        for attempt in (text, prefix + text):
            try:
                decoded = decode(attempt)
            except ValueError:
                continue
            assert 24 <= len(decoded) <= 64


def verifies(public_key: str, signature: str, message_id: str, timestamp: int, body: bytes) -> bool:
    raw_key = base64.b64decode(public_key.removeprefix("whpk_"))
    raw_signature = base64.b64decode(signature.removeprefix("v1a,"))
    content = f"{message_id}.{timestamp}.".encode() + body
    try:
        Ed25519PublicKey.from_public_bytes(raw_key).verify(raw_signature, content)
    except InvalidSignature:
        return False
    return True


def test_the_asymmetric_vector_is_reproduced() -> None:
    seed = signing.decode_private_key(PRIVATE_KEY)
    content = signing.signed_content(MESSAGE_ID, TIMESTAMP, BODY)
    assert signing.sign_asymmetric(seed, content) == SIGNATURE_ASYMMETRIC
    assert signing.public_key_of(PRIVATE_KEY) == PUBLIC_KEY


def test_the_asymmetric_vector_verifies_and_any_change_to_it_does_not() -> None:
    def good(key: str = PUBLIC_KEY, message_id: str = MESSAGE_ID, body: bytes = BODY) -> bool:
        return verifies(key, SIGNATURE_ASYMMETRIC, message_id, TIMESTAMP, body)

    stranger = signing.public_key_of(signing.new_private_key(os.urandom))
    assert good()
    assert not good(key=stranger)
    assert not good(message_id="msg_other")
    assert not good(body=BODY + b" ")


@relaxed
@given(st.binary(min_size=32, max_size=32), st.binary(), st.binary())
def test_a_new_key_signs_what_its_public_key_verifies(
    seed: bytes, body: bytes, other: bytes
) -> None:
    assume(body != other)
    private = signing.new_private_key(lambda _: seed)
    public = signing.public_key_of(private)
    decoded = signing.decode_private_key(private)
    signature = signing.sign_asymmetric(decoded, signing.signed_content("evt_1", 1, body))
    assert decoded == seed
    assert verifies(public, signature, "evt_1", 1, body)
    assert not verifies(public, signature, "evt_1", 1, other)


def test_a_private_key_whose_public_half_belongs_to_another_is_refused() -> None:
    mixed = base64.b64encode(b"a" * 64).decode()
    seed_alone = base64.b64encode(b"a" * 32).decode()
    for text in (f"whsk_{mixed}", f"whsk_{seed_alone}", PUBLIC_KEY):
        with pytest.raises(ValueError):
            signing.decode_private_key(text)


def test_cryptography_is_not_imported_before_it_is_needed() -> None:
    program = (
        "import sys; import service.delivery.signing, service.api.signatures, service.store.vault; "
        "sys.exit('cryptography' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)  # noqa: S603  our own line
