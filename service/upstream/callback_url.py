"""Callback URLs: each ends in a signed token that names one generation."""

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Sequence
from typing import Literal

import itsdangerous
import msgspec
from itsdangerous.signer import SigningAlgorithm

from service.model import clock
from service.model.generation import CALLBACK_GRACE_MS, Generation

Refusal = Literal["forged", "expired", "malformed"]  # Recorded; the caller only sees a 404.

TOKEN_LENGTH_MAX = 512
_NONCE_BYTES = 16

# Generation id, nonce, second of expiry, and a SHA-256 in 43 characters of URL-safe base64.
_TOKEN = re.compile(r"(([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([0-9]{1,12}))\.([A-Za-z0-9_-]{43})")
# Only four of the last character's six bits belong to the hash, and itsdangerous ignores the other
# two. Requiring them to be zero leaves one spelling for each token.
_LAST_CHARACTERS = frozenset("AEIMQUYcgkosw048")


class Claim(msgspec.Struct, frozen=True):
    """The content of a valid token."""

    generation_id: str
    nonce: str  # Must equal the generation's stored nonce, or the token has been revoked.
    expires_at: int  # Milliseconds since the epoch, a whole second.


def new_nonce(random_bytes: Callable[[int], bytes]) -> str:
    """Draw 128 random bits, written as 22 URL-safe characters."""
    return base64.urlsafe_b64encode(random_bytes(_NONCE_BYTES)).rstrip(b"=").decode()


class _HmacSha256(SigningAlgorithm):
    """HMAC-SHA256 that prepares each key once: to do so takes longer than to hash a token."""

    def __init__(self) -> None:
        self._prepared: dict[bytes, hmac.HMAC] = {}

    def get_signature(self, key: bytes, value: bytes) -> bytes:
        """Return the HMAC of a value."""
        if key not in self._prepared:
            self._prepared[key] = hmac.new(key, digestmod=hashlib.sha256)
        mac = self._prepared[key].copy()
        mac.update(value)
        return mac.digest()


class CallbackTokens:
    """Mints and reads the callback tokens of one upstream, with a cache of verified tokens.

    The cache holds one token for each generation, so that the holder of one token cannot fill it.
    """

    cache_size = 10_000

    def __init__(self, secret_keys: Sequence[str], upstream: str) -> None:
        """`secret_keys` are ordered from oldest to newest: the newest signs, all verify."""
        if not secret_keys:
            raise ValueError("callback tokens need a secret key")
        self.upstream = upstream
        self._signer = itsdangerous.Signer(
            list(secret_keys),
            salt=f"genhook.callback.{upstream}",
            key_derivation="hmac",
            digest_method=hashlib.sha256,
            algorithm=_HmacSha256(),
        )
        # Derive the keys once: the library would derive them for each token and take twice as long.
        self._signer.secret_keys = [self._signer.derive_key(k) for k in self._signer.secret_keys]
        self._signer.key_derivation = "none"
        self._claims: dict[str, Claim] = {}
        self._token_of: dict[str, str] = {}
        self._owners: dict[str, str] = {}

    def mint(self, generation_id: str, nonce: str, expires_at: int) -> str:
        """Sign a token that is valid before `expires_at` (milliseconds, rounded up to a second).

        ValueError if `read` would refuse the result.
        """
        expires_at_seconds = -(-expires_at // clock.SECOND)
        token = self._signer.sign(f"{generation_id}.{nonce}.{expires_at_seconds}").decode()
        if len(token) > TOKEN_LENGTH_MAX or not _TOKEN.fullmatch(token):
            raise ValueError("a part of the callback token is too long or has an invalid character")
        return token

    def read(self, token: str, now: int) -> Claim | Refusal:
        """Return the claim of `token`; a refusal unless it is signed by us and valid at `now`."""
        cached = self._claims.get(token)
        claim = cached or self._verify(token)
        if isinstance(claim, str):
            return claim
        if now >= claim.expires_at:
            self.forget(claim.generation_id)
            return "expired"
        if cached is None:
            self.forget(claim.generation_id)
            if len(self._token_of) >= self.cache_size:
                self.forget(next(iter(self._token_of)))  # In insertion order: the oldest entry.
            self._claims[token] = claim
            self._token_of[claim.generation_id] = token
        return claim

    def forget(self, generation_id: str) -> None:
        """Remove the generation's token from the cache."""
        self._claims.pop(self._token_of.pop(generation_id, ""), None)

    def note_owner(self, generation_id: str, tenant: str) -> None:
        """Remember for a while the tenant of a generation for which this process mints a token."""
        if len(self._owners) >= self.cache_size:
            del self._owners[next(iter(self._owners))]
        self._owners[generation_id] = tenant

    def owner_of(self, generation_id: str) -> str | None:
        """Return the tenant of a generation, if it is remembered."""
        return self._owners.get(generation_id)

    def _verify(self, token: str) -> Claim | Refusal:
        match = _TOKEN.fullmatch(token) if len(token) <= TOKEN_LENGTH_MAX else None
        if match is None:
            return "malformed"
        signed, generation_id, nonce, seconds, signature = match.groups()
        is_ours = self._signer.verify_signature(signed, signature)
        if token[-1] not in _LAST_CHARACTERS or not is_ours:
            return "forged"
        return Claim(generation_id, nonce, int(seconds) * clock.SECOND)


def callback_url(
    tokens: CallbackTokens, public_url: str | None, generation: Generation
) -> str | None:
    """Return the URL at which upstream reports on the generation; None without a public URL.

    The tokens remember its tenant, whose turn the callback's write will take.
    """
    if public_url is None:
        return None
    tokens.note_owner(generation.id, generation.tenant)
    expires_at = generation.deadline_at + CALLBACK_GRACE_MS
    token = tokens.mint(generation.id, generation.nonce, expires_at)
    return f"{public_url}/callbacks/{tokens.upstream}/{token}"
