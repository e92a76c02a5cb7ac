"""Verifies signatures of callbacks: one function for each scheme that upstream may use."""

import binascii
import hmac
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from service.delivery import signing
from service.model import clock

Reason = Literal["missing", "malformed", "stale", "wrong"]
Headers = Mapping[str, str]
Secrets = Sequence[bytes | str]
Verify = Callable[[bytes, Headers, Secrets, int], None]

TOLERANCE_MS = 300 * clock.SECOND
HEADER_LENGTH_MAX = 4_096
_TIMESTAMP = re.compile(r"[1-9][0-9]{0,11}")


class SignatureError(Exception):
    """The signature is not valid. `reason` has no text of the callback, so it may be shown."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(f"the callback's signature is {reason}")
        self.reason: Reason = reason


class Scheme(msgspec.Struct, frozen=True):
    """A signature scheme.

    verify: returns if one of the secrets signed the callback; raises SignatureError otherwise, and
        nothing else. Header names are lower-case, `now` is in milliseconds. A secret is the
        configured text or the key itself; one without a key verifies nothing.
    read_secret: returns the key of a configured text; ValueError with a sentence if there is none.
    proves_body: whether the signature covers the body, or only the task's id.
    """

    verify: Verify
    read_secret: Callable[[str], bytes]
    proves_body: bool


def verify_standard(body: bytes, headers: Headers, secrets: Secrets, now: int) -> None:
    """Verify `v1` of Standard Webhooks 1.0: base64 of an HMAC-SHA256 with the decoded key."""
    message_id, timestamp, signatures = _read(headers, "v1,", now)
    keys = _keys(secrets, signing.decode_secret)
    _require_match(signatures, [signing.sign(key, message_id, timestamp, body) for key in keys])


def verify_wavespeed(body: bytes, headers: Headers, secrets: Secrets, now: int) -> None:
    """Verify WaveSpeedAI's `v3`: as `v1`, but hexadecimal, and the key is the secret's text."""
    message_id, timestamp, signatures = _read(headers, "v3,", now)
    content = f"{message_id}.{timestamp}.".encode() + body
    macs = [hmac.digest(key, content, "sha256") for key in _keys(secrets, read_wavespeed_secret)]
    _require_match([text.lower() for text in signatures], [f"v3,{mac.hex()}" for mac in macs])


def verify_kie(body: bytes, headers: Headers, secrets: Secrets, now: int) -> None:
    """Verify kie.ai's scheme: base64 of an HMAC-SHA256 of task id and time, not of the body."""
    presented = _header(headers, "x-webhook-signature")
    timestamp = _fresh_timestamp(headers, "x-webhook-timestamp", now)
    content = f"{_kie_task_id(body)}.{timestamp}".encode()
    macs = [hmac.digest(key, content, "sha256") for key in _keys(secrets, read_kie_secret)]
    _require_match([presented], [binascii.b2a_base64(mac, newline=False).decode() for mac in macs])


def read_wavespeed_secret(text: str) -> bytes:
    """Return the text after `whsec_`; ValueError if there is none."""
    key = text.removeprefix(signing.SECRET_PREFIX)
    if key == text or not key:
        raise ValueError(f"a WaveSpeedAI secret starts with {signing.SECRET_PREFIX}")
    return key.encode()


def read_kie_secret(text: str) -> bytes:
    """Return the text; ValueError if it is empty."""
    if not text:
        raise ValueError("a kie.ai secret is not empty")
    return text.encode()


SCHEMES: Mapping[str, Scheme] = {
    "standard": Scheme(verify_standard, signing.decode_secret, proves_body=True),
    "wavespeed": Scheme(verify_wavespeed, read_wavespeed_secret, proves_body=True),
    "kie": Scheme(verify_kie, read_kie_secret, proves_body=False),
}


def _read(headers: Headers, version: str, now: int) -> tuple[str, int, list[str]]:
    """Return id, time and the signatures of `version` in the headers of Standard Webhooks."""
    message_id = _header(headers, "webhook-id")
    timestamp = _fresh_timestamp(headers, "webhook-timestamp", now)
    entries = _header(headers, "webhook-signature").split(" ")
    signatures = [entry for entry in entries if entry.startswith(version)]
    if not signatures:
        raise SignatureError("malformed")
    return message_id, timestamp, signatures


def _header(headers: Headers, name: str) -> str:
    value = headers.get(name, "")
    if not value:
        raise SignatureError("missing")
    if len(value) > HEADER_LENGTH_MAX or not value.isascii():
        raise SignatureError("malformed")
    return value


def _fresh_timestamp(headers: Headers, name: str, now: int) -> int:
    """Return the timestamp in seconds; it has no sign, fraction, space or leading zero."""
    text = _header(headers, name)
    if not _TIMESTAMP.fullmatch(text):
        raise SignatureError("malformed")
    if abs(now - int(text) * clock.SECOND) > TOLERANCE_MS:
        raise SignatureError("stale")
    return int(text)


def _keys(secrets: Secrets, read: Callable[[str], bytes]) -> list[bytes]:
    """Return the keys of the secrets, without empty ones: anybody can sign with an empty key."""
    keys = []
    for secret in secrets:
        try:
            keys.append(read(secret) if isinstance(secret, str) else secret)
        except ValueError:
            continue  # Start-up refuses such a secret; here it only must not verify anything.
    return [key for key in keys if key]


def _require_match(presented: Sequence[str], expected: Sequence[str]) -> None:
    """Compare signatures as text, in constant time; the presented ones are never decoded."""
    pairs = itertools.product(expected, presented)
    if not any(hmac.compare_digest(one.encode(), other.encode()) for one, other in pairs):
        raise SignatureError("wrong")


def _kie_task_id(body: bytes) -> str:
    """Return the task's id: kie.ai documents `data.taskId`, shows `data.task_id`, sends others."""
    try:
        document: Any = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        raise SignatureError("malformed") from None
    data = document.get("data") if isinstance(document, dict) else None
    for node, name in itertools.product((data, document), ("taskId", "task_id")):
        task_id = node.get(name) if isinstance(node, dict) else None
        if isinstance(task_id, str) and task_id:
            return task_id
    raise SignatureError("malformed")
