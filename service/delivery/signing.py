"""Signatures by Standard Webhooks 1.0: `v1` (HMAC-SHA256) and `v1a` (ed25519), and their keys."""

import binascii
import hmac
import math
from collections.abc import Callable
from typing import Any

import msgspec

from service.model.clock import SECOND
from service.store.vault import Vault

SECRET_PREFIX = "whsec_"  # noqa: S105  a prefix, not a secret
PRIVATE_KEY_PREFIX = "whsk_"
PUBLIC_KEY_PREFIX = "whpk_"

SECRET_BYTES_MIN = 24
SECRET_BYTES_MAX = 64
PREVIOUS_MAX = 10  # Secrets that still sign after their rotation.
_KEY_BYTES = 32  # Of a new secret, and of each half of an ed25519 key.


def new_secret(random_bytes: Callable[[int], bytes]) -> str:
    """Return a fresh symmetric secret: `whsec_` and the base64 of 32 bytes."""
    return SECRET_PREFIX + _encode_base64(random_bytes(_KEY_BYTES))


def decode_secret(text: str) -> bytes:
    """Return the key in a `whsec_` secret; else ValueError, whose message never quotes it."""
    key = _decode(text, SECRET_PREFIX)
    if not SECRET_BYTES_MIN <= len(key) <= SECRET_BYTES_MAX:
        raise ValueError(
            f"must hold {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes, and holds {len(key)}"
        )
    return key


def signed_content(message_id: str, timestamp: int, body: bytes) -> bytes:
    """Return the bytes to sign; `timestamp` is in seconds, `body` the exact bytes sent."""
    return b"%b.%d.%b" % (message_id.encode(), timestamp, body)


def sign(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """Return one `v1` signature; `timestamp` is in seconds."""
    content = signed_content(message_id, timestamp, body)
    return sign_content(hmac.new(key, digestmod="sha256"), content)


def sign_content(key: hmac.HMAC, content: bytes) -> str:
    """Return one `v1` signature; preparing the key once saves a third of the cost of each."""
    # hmac.digest would release the interpreter lock, and wait for it (decision 16).
    mac = key.copy()
    mac.update(content)
    return "v1," + _encode_base64(mac.digest())


def new_private_key(random_bytes: Callable[[int], bytes]) -> str:
    """Return a fresh ed25519 key.

    The specification does not define the bytes in `whsk_`; as in Svix they are seed and public key.
    """
    seed = random_bytes(_KEY_BYTES)
    return PRIVATE_KEY_PREFIX + _encode_base64(seed + _make_public_bytes(seed))


def decode_private_key(text: str) -> bytes:
    """Return the 32-byte seed inside a `whsk_` key; ValueError unless its public half fits."""
    pair = _decode(text, PRIVATE_KEY_PREFIX)
    seed, public = pair[:_KEY_BYTES], pair[_KEY_BYTES:]
    if len(pair) != 2 * _KEY_BYTES or _make_public_bytes(seed) != public:
        raise ValueError("a private key holds 64 bytes: an ed25519 seed and its public key")
    return seed


def public_key_of(private_key: str) -> str:
    """Return the `whpk_` text to publish for a `whsk_` key; ValueError if it is not one."""
    return PUBLIC_KEY_PREFIX + _encode_base64(_make_public_bytes(decode_private_key(private_key)))


def sign_asymmetric(seed: bytes, content: bytes) -> str:
    """Return the `v1a` signature of the same content as `v1`."""
    return "v1a," + _encode_base64(_load_ed25519_key(seed).sign(content))


def _make_public_bytes(seed: bytes) -> bytes:
    return bytes(_load_ed25519_key(seed).public_key().public_bytes_raw())


def _load_ed25519_key(seed: bytes) -> Any:
    from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415  cold start

    return ed25519.Ed25519PrivateKey.from_private_bytes(seed)


def _encode_base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


def _decode(text: str, prefix: str) -> bytes:
    """Decode strict base64 after `prefix`, accepting only the spelling that encoding gives."""
    if not text.startswith(prefix):
        raise ValueError(f"must start with {prefix}")
    encoded = text.removeprefix(prefix)
    try:
        data = binascii.a2b_base64(encoded)
    except ValueError:
        data = b""
    if not data or _encode_base64(data) != encoded:
        raise ValueError(f"must be base64, with its padding, after {prefix}")
    return data


class Previous(msgspec.Struct, frozen=True):
    """A secret and its ed25519 key, which sign beside the current ones until `expires_at`."""

    secret: str
    expires_at: int
    private_key: str | None = None


class Secrets(msgspec.Struct, frozen=True):
    """The current secret, an ed25519 key for `v1a`, and what they replaced."""

    current: str
    previous: tuple[Previous, ...] = ()
    private_key: str | None = None

    def rotated(self, new: "Secrets", overlap_seconds: int, now: int) -> "Secrets":
        """Return `new` as the current secrets; the old ones sign for `overlap_seconds`.

        0 seconds end every overlap: that is for a leak. If the new secret is the current one, the
        ed25519 key stays too, and only the overlap changes.
        """
        new = self if new.current == self.current else new
        replaced = [
            Previous(self.current, now + overlap_seconds * SECOND, self.private_key),
            *self.previous,
        ]
        pair = new.current, new.private_key
        valid = [p for p in replaced if p.expires_at > now and (p.secret, p.private_key) != pair]
        valid = valid if overlap_seconds else []
        return Secrets(new.current, tuple(valid[:PREVIOUS_MAX]), new.private_key)


# msgspec prepares a struct at its first use, and crashes if two threads do that at once.
_decode_secrets = msgspec.json.Decoder(Secrets).decode


def new_secrets(
    random_bytes: Callable[[int], bytes], *, secret: str | None = None, asymmetric: bool = False
) -> Secrets:
    """Create secrets, around `secret` if it is given, with an Ed25519 key if `v1a` is asked for."""
    private_key = new_private_key(random_bytes) if asymmetric else None
    return Secrets(secret or new_secret(random_bytes), (), private_key)


def seal(vault: Vault, secrets: Secrets, owner_id: str) -> bytes:
    """Encrypt secrets for the row of `owner_id`; in another row they cannot be read."""
    return vault.seal(msgspec.json.encode(secrets), f"secrets:{owner_id}")


def unseal(vault: Vault, sealed: bytes, owner_id: str) -> Secrets:
    """Decrypt what `seal` returned; VaultError if the key is missing or the row was changed."""
    return _decode_secrets(vault.open(sealed, f"secrets:{owner_id}"))


def seal_headers(vault: Vault, headers: dict[str, str], owner_id: str) -> bytes | None:
    """Encrypt a subscriber's own headers, which often contain credentials; None for none."""
    return vault.seal(msgspec.json.encode(headers), f"headers:{owner_id}") if headers else None


def unseal_headers(vault: Vault, sealed: bytes | None, owner_id: str) -> dict[str, str]:
    """Decrypt what `seal_headers` returned."""
    if sealed is None:
        return {}
    return msgspec.json.decode(vault.open(sealed, f"headers:{owner_id}"), type=dict[str, str])


class Signer:
    """Signs messages with keys that are decoded and prepared once for a recipient."""

    def __init__(self, secrets: Secrets) -> None:
        current = secrets.current, math.inf, secrets.private_key
        owned = [current, *map(msgspec.structs.astuple, secrets.previous)]
        self._keys = [
            (hmac.new(decode_secret(secret), digestmod="sha256"), expires_at)
            for secret, expires_at, _ in owned
        ]
        self._seeds = [
            (decode_private_key(private_key), expires_at)
            for _, expires_at, private_key in owned
            if private_key
        ]

    def header(self, message_id: str, now: int, body: bytes) -> str:
        """Return the `webhook-signature` value for a message that leaves at `now`."""
        content = signed_content(message_id, now // SECOND, body)
        signatures = [
            sign_content(key, content) for key, expires_at in self._keys if expires_at > now
        ]
        signatures += [
            sign_asymmetric(seed, content) for seed, ends_at in self._seeds if ends_at > now
        ]
        return " ".join(dict.fromkeys(signatures))  # Once, if a secret came back.
