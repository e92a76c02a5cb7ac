"""Verifies what comes in: one function for each signature scheme that upstream may use."""

import binascii
import hmac
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from service.delivery import signing
from service.model import clock

Reason = Literal["missing", "malformed", "stale", "wrong"]
Secret = bytes | str
Verify = Callable[[bytes, Mapping[str, str], Sequence[Secret], int], None]

TOLERANCE_MS = 300 * clock.SECOND
HEADER_LENGTH_MAX = 4_096
_TIMESTAMP_DIGITS_MAX = 12


class SignatureError(Exception):
    """A callback that does not prove itself; `reason` is safe to show and to count by."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(f"the callback's signature is {reason}")
        self.reason: Reason = reason


class Scheme(msgspec.Struct, frozen=True):
    """How one kind of upstream signs.

    verify: returns if one of the secrets signed the callback, else raises SignatureError and
        nothing else. Header names are lower-case, `now` is in milliseconds, a secret is the
        configured text or the key itself; one that holds no key verifies nothing.
    read_secret: the key inside a configured text; ValueError with a sentence if there is none.
    proves_body: whether the body may be believed afterwards, or only the task's id.
    """

    verify: Verify
    read_secret: Callable[[str], bytes]
    proves_body: bool


def verify_standard(
    body: bytes, headers: Mapping[str, str], secrets: Sequence[Secret], now: int
) -> None:
    """Standard Webhooks 1.0, `v1`: base64 of an HMAC-SHA256 under the decoded key."""
    message_id, timestamp = _message(headers, now)
    keys = _keys(secrets, signing.decode_secret)
    expected = [signing.sign(key, message_id, timestamp, body) for key in keys]
    _demand_match(_signatures(headers, "v1,"), expected)


def verify_wavespeed(
    body: bytes, headers: Mapping[str, str], secrets: Sequence[Secret], now: int
) -> None:
    """WaveSpeedAI's `v3`: headers and content of `v1`, but hex, under a key that is plain text."""
    message_id, timestamp = _message(headers, now)
    content = f"{message_id}.{timestamp}.".encode() + body
    keys = _keys(secrets, read_wavespeed_secret)
    expected = [f"v3,{hmac.digest(key, content, 'sha256').hex()}" for key in keys]
    _demand_match([text.lower() for text in _signatures(headers, "v3,")], expected)


def verify_kie(
    body: bytes, headers: Mapping[str, str], secrets: Sequence[Secret], now: int
) -> None:
    """kie.ai: base64 of an HMAC-SHA256 over task id and time; the body can be anything."""
    presented = _header(headers, "x-webhook-signature")
    timestamp = _fresh_timestamp(headers, "x-webhook-timestamp", now)
    content = f"{_kie_task_id(body)}.{timestamp}".encode()
    macs = [hmac.digest(key, content, "sha256") for key in _keys(secrets, read_kie_secret)]
    _demand_match([presented], [binascii.b2a_base64(mac, newline=False).decode() for mac in macs])


def read_wavespeed_secret(text: str) -> bytes:
    """What follows `whsec_`, as it is written; ValueError if nothing does."""
    key = text.removeprefix(signing.SECRET_PREFIX)
    if key == text or not key:
        raise ValueError(f"a WaveSpeedAI secret starts with {signing.SECRET_PREFIX}")
    return key.encode()


def read_kie_secret(text: str) -> bytes:
    """The text itself; ValueError if it is empty."""
    if not text:
        raise ValueError("a kie.ai secret is not empty")
    return text.encode()


SCHEMES: Mapping[str, Scheme] = {
    "standard": Scheme(verify_standard, signing.decode_secret, proves_body=True),
    "wavespeed": Scheme(verify_wavespeed, read_wavespeed_secret, proves_body=True),
    "kie": Scheme(verify_kie, read_kie_secret, proves_body=False),
}


def _message(headers: Mapping[str, str], now: int) -> tuple[str, int]:
    """Id and time of a callback in the headers of Standard Webhooks."""
    return _header(headers, "webhook-id"), _fresh_timestamp(headers, "webhook-timestamp", now)


def _signatures(headers: Mapping[str, str], version: str) -> list[str]:
    """The entries of `version` in `webhook-signature`; those of other versions are passed over."""
    entries = _header(headers, "webhook-signature").split(" ")
    found = [entry for entry in entries if entry.startswith(version)]
    if not found:
        raise SignatureError("malformed")
    return found


def _header(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name, "")
    if not value:
        raise SignatureError("missing")
    if len(value) > HEADER_LENGTH_MAX or not value.isascii():
        raise SignatureError("malformed")
    return value


def _fresh_timestamp(headers: Mapping[str, str], name: str, now: int) -> int:
    """Seconds, in the one spelling that was signed: no sign, fraction, space or leading zero."""
    text = _header(headers, name)
    if not text.isdigit() or text[0] == "0" or len(text) > _TIMESTAMP_DIGITS_MAX:
        raise SignatureError("malformed")
    if abs(now - int(text) * clock.SECOND) > TOLERANCE_MS:
        raise SignatureError("stale")
    return int(text)


def _keys(secrets: Sequence[Secret], read: Callable[[str], bytes]) -> list[bytes]:
    """The keys of all secrets; whoever guesses that a key is empty must not get in."""
    keys = []
    for secret in secrets:
        try:
            keys.append(read(secret) if isinstance(secret, str) else secret)
        except ValueError:
            continue  # Start-up refuses such a secret; here it must only not let anybody in.
    return [key for key in keys if key]


def _demand_match(presented: Sequence[str], expected: Sequence[str]) -> None:
    """Compares spellings in constant time, so nothing that a stranger wrote is ever decoded."""
    for ours in expected:
        for theirs in presented:
            if hmac.compare_digest(ours.encode(), theirs.encode()):
                return
    raise SignatureError("wrong")


def _kie_task_id(body: bytes) -> str:
    """kie.ai's prose says `data.taskId`, its sample `data.task_id`, some of its APIs neither."""
    try:
        outer: Any = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        raise SignatureError("malformed") from None
    inner = outer.get("data") if isinstance(outer, dict) else None
    for place in (inner, outer):
        for name in ("taskId", "task_id"):
            task_id = place.get(name) if isinstance(place, dict) else None
            if isinstance(task_id, str) and task_id:
                return task_id
    raise SignatureError("malformed")
