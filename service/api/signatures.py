"""Verifies signatures of callbacks, by each scheme that upstream may use."""

import binascii
import hmac
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, TypeVar

import msgspec

from service.delivery import signing
from service.model import clock
from service.model.errors import SettingsError
from service.settings import Settings

T = TypeVar("T")
Reason = Literal["missing", "malformed", "stale", "wrong"]
Headers = Mapping[str, str]
Signed = tuple[bytes, list[str]]  # The signed content, and the signatures in the headers.

TOLERANCE_MS = 300 * clock.SECOND
HEADER_LENGTH_MAX = 4_096
_TIMESTAMP = re.compile(r"[1-9][0-9]{0,11}")


class SignatureError(Exception):
    """The signature is not valid. `reason` has no text of the callback, so it may be shown."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(f"the callback's signature is {reason}")
        self.reason: Reason = reason


class Scheme(msgspec.Struct, frozen=True):
    """A signature scheme: an HMAC-SHA256, shown as text.

    read: takes body, headers (names in lower case) and `now`, returns the signed content and the
        signatures; SignatureError if they are malformed or over TOLERANCE_MS away from `now`.
    read_secret: returns the key in a configured secret; ValueError with a sentence if it is empty,
        because anybody can sign with an empty key.
    encode: returns a MAC as the header shows it.
    proves_body: whether the signature covers the body, or only the task's id.
    """

    read: Callable[[bytes, Headers, int], Signed]
    read_secret: Callable[[str], bytes]
    encode: Callable[[bytes], str]
    proves_body: bool

    def verify(self, body: bytes, headers: Headers, key: bytes, now: int) -> None:
        """SignatureError unless the key signed the callback; `now` is in milliseconds."""
        content, presented = self.read(body, headers, now)
        expected = self.encode(hmac.new(key, content, "sha256").digest()).encode()
        # Compared as text, in constant time: no signature of a stranger is decoded.
        if not any(hmac.compare_digest(expected, each.encode()) for each in presented):
            raise SignatureError("wrong")


def _read_webhook(version: str, body: bytes, headers: Headers, now: int) -> Signed:
    """Read a Standard Webhooks 1.0 signature, of id, time and body; each has a version."""
    message_id = _read_header(headers, "webhook-id")
    timestamp = _read_timestamp(headers, "webhook-timestamp", now)
    entries = _read_header(headers, "webhook-signature").split(" ")
    signatures = [entry.removeprefix(version) for entry in entries if entry.startswith(version)]
    if not signatures:
        raise SignatureError("malformed")
    return signing.signed_content(message_id, timestamp, body), signatures


def _read_wavespeed(body: bytes, headers: Headers, now: int) -> Signed:
    content, signatures = _read_webhook("v3,", body, headers, now)
    return content, [signature.lower() for signature in signatures]


def _read_kie(body: bytes, headers: Headers, now: int) -> Signed:
    signature = _read_header(headers, "x-webhook-signature")
    timestamp = _read_timestamp(headers, "x-webhook-timestamp", now)
    return f"{_read_kie_task_id(body)}.{timestamp}".encode(), [signature]


def _encode_base64(mac: bytes) -> str:
    return binascii.b2a_base64(mac, newline=False).decode()


def _read_wavespeed_secret(text: str) -> bytes:
    """Return the bytes of the text after `whsec_`; ValueError without it."""
    key = text.removeprefix(signing.SECRET_PREFIX)
    if key == text or not key:
        raise ValueError(f"a WaveSpeedAI secret starts with {signing.SECRET_PREFIX}")
    return key.encode()


def _read_kie_secret(text: str) -> bytes:
    """Return the bytes of the text; ValueError if it is empty."""
    if not text:
        raise ValueError("a kie.ai secret is not empty")
    return text.encode()


def _read_header(headers: Headers, name: str) -> str:
    value = headers.get(name, "")
    if not value:
        raise SignatureError("missing")
    if len(value) > HEADER_LENGTH_MAX or not value.isascii():
        raise SignatureError("malformed")
    return value


def _read_timestamp(headers: Headers, name: str, now: int) -> int:
    """Return the timestamp in seconds; SignatureError with a sign, fraction or leading zero."""
    text = _read_header(headers, name)
    if not _TIMESTAMP.fullmatch(text):
        raise SignatureError("malformed")
    if abs(now - int(text) * clock.SECOND) > TOLERANCE_MS:
        raise SignatureError("stale")
    return int(text)


def _read_kie_task_id(body: bytes) -> str:
    """Return the task's id: kie.ai documents `data.taskId`, shows `data.task_id`, sends others."""
    document = _decode(body, _KieNode) or _KieNode()
    data = _decode(document.data, _KieNode) or _KieNode()
    for text in (data.task_id, data.snake_task_id, document.task_id, document.snake_task_id):
        if task_id := _decode(text, str):
            return task_id
    raise SignatureError("malformed")


class _KieNode(msgspec.Struct, frozen=True):
    """An object that may name the task. Before a signature is verified, nothing else is decoded."""

    task_id: msgspec.Raw = msgspec.field(name="taskId", default=msgspec.Raw())
    snake_task_id: msgspec.Raw = msgspec.field(name="task_id", default=msgspec.Raw())
    data: msgspec.Raw = msgspec.Raw()


def _decode(text: bytes | msgspec.Raw, type_: type[T]) -> T | None:
    try:
        return msgspec.json.decode(text, type=type_)
    except (ValueError, RecursionError):
        return None


# kie.ai signs the task's id and the time, not the body. WaveSpeedAI's key is the secret's text.
SCHEMES: Mapping[str, Scheme] = {
    "standard": Scheme(
        partial(_read_webhook, "v1,"), signing.decode_secret, _encode_base64, proves_body=True
    ),
    "wavespeed": Scheme(_read_wavespeed, _read_wavespeed_secret, bytes.hex, proves_body=True),
    "kie": Scheme(_read_kie, _read_kie_secret, _encode_base64, proves_body=False),
}


def configured(settings: Settings) -> tuple[Scheme, bytes] | None:
    """Return the scheme of the settings with its key, if they name one; SettingsError."""
    scheme = SCHEMES.get(settings.upstream_signature or "")
    if scheme is None:
        return None
    try:
        return scheme, scheme.read_secret(settings.upstream_signature_secret or "")
    except ValueError as error:
        raise SettingsError(f"GENHOOK_UPSTREAM_SIGNATURE_SECRET: {error}.") from None
