"""Signatures by Standard Webhooks 1.0: `v1` (HMAC-SHA256) and `v1a` (ed25519)."""

import binascii
import hmac
from collections.abc import Callable

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


def signed_content(message_id: str, timestamp: int, body: bytes) -> bytes:
    """Return what is signed; `timestamp` is in seconds, `body` the exact bytes sent."""
    return b"%b.%d.%b" % (message_id.encode(), timestamp, body)


def sign(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """Return one `v1` signature; `timestamp` is in seconds."""
    content = signed_content(message_id, timestamp, body)
    return sign_content(hmac.new(key, digestmod="sha256"), content)


def sign_content(key: hmac.HMAC, content: bytes) -> str:
    """Return one `v1` signature; a key prepared for many saves a third of the cost of each."""
    # hmac.digest would release the interpreter lock, and wait for it (decision 16).
    mac = key.copy()
    mac.update(content)
    return "v1," + _base64(mac.digest())


def new_private_key(random_bytes: Callable[[int], bytes]) -> str:
    """Return a fresh ed25519 key.

    The specification does not define the bytes in `whsk_`; as in Svix they are seed and public key.
    """
    seed = random_bytes(_ED25519_KEY_BYTES)
    return PRIVATE_KEY_PREFIX + _base64(seed + _public_bytes(seed))


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


def sign_asymmetric(seed: bytes, content: bytes) -> str:
    """Return the `v1a` signature of the same content as `v1`."""
    from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415  cold start

    return "v1a," + _base64(ed25519.Ed25519PrivateKey.from_private_bytes(seed).sign(content))


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
