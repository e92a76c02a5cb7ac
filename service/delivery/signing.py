"""Signatures by Standard Webhooks 1.0: `v1` (HMAC-SHA256) and `v1a` (ed25519)."""

import binascii
import hmac
from collections.abc import Callable, Sequence

SECRET_PREFIX = "whsec_"  # noqa: S105  a prefix, not a secret
PRIVATE_KEY_PREFIX = "whsk_"
PUBLIC_KEY_PREFIX = "whpk_"

SECRET_BYTES_MIN = 24
SECRET_BYTES_MAX = 64
_NEW_SECRET_BYTES = 32
_ED25519_KEY_BYTES = 32


def new_secret(random_bytes: Callable[[int], bytes]) -> str:
    """Return a fresh symmetric secret: `whsec_` and the base64 of 32 bytes."""
    return SECRET_PREFIX + _base64(random_bytes(_NEW_SECRET_BYTES))


def decode_secret(text: str) -> bytes:
    """Return the key inside a `whsec_` secret; ValueError, which never quotes it, if none is."""
    key = _decode(text, SECRET_PREFIX)
    if not SECRET_BYTES_MIN <= len(key) <= SECRET_BYTES_MAX:
        raise ValueError(
            f"a signing secret holds {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes, "
            f"this one holds {len(key)}"
        )
    return key


def sign(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """Return one `v1` signature; `timestamp` is in seconds, `body` the exact bytes sent."""
    return _sign(prepare(key), _signed_content(message_id, timestamp, body))


def prepare(key: bytes) -> hmac.HMAC:
    """Prepare a key for many signatures: that is a third of the cost of one."""
    return hmac.new(key, digestmod="sha256")


def signature_header(
    keys: Sequence[hmac.HMAC], message_id: str, timestamp: int, body: bytes
) -> str:
    """Return the `webhook-signature` value: a `v1` for each prepared key, newest first.

    `timestamp` is in seconds. ValueError without a key: nothing leaves unsigned.
    """
    if not keys:
        raise ValueError("a message needs at least one key to be signed with")
    content = _signed_content(message_id, timestamp, body)
    return " ".join([_sign(key, content) for key in keys])


def new_keypair(random_bytes: Callable[[int], bytes]) -> tuple[str, str]:
    """Return a fresh ed25519 pair, private then public.

    The specification does not define the bytes in `whsk_`; as in Svix they are seed and public key.
    """
    seed = random_bytes(_ED25519_KEY_BYTES)
    public = _public_bytes(seed)
    return PRIVATE_KEY_PREFIX + _base64(seed + public), PUBLIC_KEY_PREFIX + _base64(public)


def decode_private_key(text: str) -> bytes:
    """Return the 32-byte seed inside a `whsk_` key; ValueError unless its public half fits."""
    pair = _decode(text, PRIVATE_KEY_PREFIX)
    seed, public = pair[:_ED25519_KEY_BYTES], pair[_ED25519_KEY_BYTES:]
    if len(pair) != 2 * _ED25519_KEY_BYTES or _public_bytes(seed) != public:
        raise ValueError("a private key holds 64 bytes: an ed25519 seed and its public key")
    return seed


def public_key_of(private_key: str) -> str:
    """Return the `whpk_` text to publish for a `whsk_` key; ValueError if it is not one."""
    return PUBLIC_KEY_PREFIX + _base64(_public_bytes(decode_private_key(private_key)))


def sign_asymmetric(seed: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """Return one `v1a` signature, over the same content as `v1`; `timestamp` is in seconds."""
    from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415  cold start

    signer = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
    return "v1a," + _base64(signer.sign(_signed_content(message_id, timestamp, body)))


def verify_asymmetric(
    public_key: str, message_id: str, timestamp: int, body: bytes, *, signature: str
) -> bool:
    """True if `signature` is this message's `v1a`; ValueError if `public_key` is no `whpk_`."""
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  cold start
    from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415  cold start

    verifier = ed25519.Ed25519PublicKey.from_public_bytes(_decode(public_key, PUBLIC_KEY_PREFIX))
    try:
        proof = _decode(signature, "v1a,")
        verifier.verify(proof, _signed_content(message_id, timestamp, body))
    except (ValueError, InvalidSignature):
        return False
    return True


def _signed_content(message_id: str, timestamp: int, body: bytes) -> bytes:
    return b"%b.%d.%b" % (message_id.encode(), timestamp, body)


def _sign(key: hmac.HMAC, content: bytes) -> str:
    # hmac.digest would release the interpreter lock, and wait for it (decision 16).
    mac = key.copy()
    mac.update(content)
    return "v1," + _base64(mac.digest())


def _public_bytes(seed: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415  cold start

    return ed25519.Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


def _decode(text: str, prefix: str) -> bytes:
    """Decode strict base64 after `prefix`, accepting only the spelling that encoding gives."""
    if not text.startswith(prefix):
        raise ValueError(f"expected a text that starts with {prefix}")
    encoded = text.removeprefix(prefix)
    try:
        data = binascii.a2b_base64(encoded)
    except ValueError:
        data = b""
    if not data or _base64(data) != encoded:
        raise ValueError(f"expected base64, with its padding, after {prefix}")
    return data
