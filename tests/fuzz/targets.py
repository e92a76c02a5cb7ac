"""The targets of fuzzing: each passes bytes to one reader of foreign input, and checks the result.

hypothesis (tests/fuzz/test_*.py) and atheris (chaos/fuzz.py) call the same functions. A target
`read_x` splits the bytes into arguments and calls `check_x`, which holds the assertions. A test
with better arguments calls `check_x` itself.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import msgspec

from service.api import signatures
from service.api.signatures import SCHEMES, SignatureError
from service.delivery import retry, signing
from service.model import clock
from service.model.errors import SettingsError
from service.settings import VARIABLES, Settings, read_settings
from service.store.vault import Vault
from service.telemetry.redact import Redactor
from service.upstream import links, results, scalars, vocabulary, wire
from service.upstream.callback_url import CallbackTokens, Claim
from tests import logs
from tests.fuzz import answers, world

Target = Callable[[bytes], object]

NOW = 1_795_000_000_000
LATER = NOW + clock.DAY
STATUSES = (200, 201, 202, 204, 299, 301, 400, 401, 404, 408, 410, 425, 429, 451, 499, 500, 503, 0)


# What upstream answers


def read_upstream(data: bytes) -> None:
    """Read a byte for the status, a line for two headers, then the body."""
    head, _, body = data.partition(b"\n")
    text = head[1:].decode("latin-1")
    status = STATUSES[head[0] % len(STATUSES)] if head else 200
    check_upstream(status, {"content-type": text, "retry-after": text}, body)


def check_upstream(status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Check that reading never raises, and that its result is bounded and can be stored."""
    created = wire.read_create(status, headers, body)
    task = wire.read_poll(status, headers, body)
    callback = wire.read_callback(body)
    assert isinstance(created, wire.Answer)
    assert isinstance(task, wire.Answer)
    for report in (created, task, callback):
        if isinstance(report, wire.Report):
            _check_report(report, body)
    for answer in (created, task):
        if isinstance(answer, wire.NoReport):
            assert len(msgspec.json.encode(answer)) < 8_000
            assert len(answer.retry_after or "") <= 100
    if isinstance(task, wire.NoReport):
        assert task.outcome in {"absent", "throttled", "unwell"}
    if isinstance(created, wire.Report):
        assert created.task_id or created.state != "processing"
    if isinstance(created, wire.NoReport) and created.outcome != "lost":
        assert created.outcome in {"refused", "put_off"}
        known = vocabulary.CODES_AGAIN | vocabulary.CODES_NEVER | {301, 302, 307, 308}
        is_proof = created.status in known or 400 <= (created.status or 0) < 600
        is_bounded = created.repeats_max is not None
        assert is_proof or is_bounded, "only an error proves that upstream did not take it"


def _check_report(report: wire.Report, body: bytes) -> None:
    assert report.state == "succeeded" or not report.files
    assert report.possible is None or report.state == "processing"
    assert len(report.files) <= results.MAX_FILES
    assert len(report.word or "") <= vocabulary.WORD_CHARS_MAX
    assert len(report.error_code or "") <= scalars.MAX_TEXT_CHARS
    assert len(report.error_message or "") <= scalars.MAX_TEXT_CHARS
    if report.task_id is not None:
        assert 0 < len(report.task_id) <= scalars.MAX_ID_CHARS
        assert report.task_id not in {".", ".."}
    for file in report.files:
        url = file.url or "/"
        schemes = ("http://", "https://", "gs://", "s3://", "/", "data:audio/")
        assert url.startswith(schemes) or links.read_path(url), "it is relative to upstream"
        # A space becomes three characters.
        assert url.startswith("data:") or len(url) <= 3 * links.MAX_URL_CHARS
        assert file.expires_at is None or clock.rfc3339(file.expires_at)
    assert len(msgspec.json.encode(report.raw)) <= 8 * len(body) + 8
    _check_redaction(report.raw)


def _check_redaction(raw: Any) -> None:
    """Check that any text of the document can be removed from it everywhere."""
    needles = [text for text in _texts(msgspec.json.encode(raw)) if _is_needle(text)]
    for needle in needles[:3]:
        redacted = _texts(msgspec.json.encode(Redactor([needle]).json(raw)))
        assert not any(needle in text for text in redacted)


def _is_needle(text: str) -> bool:
    """Return whether the text is as long as a secret and no part of the replacement."""
    return len(text) >= 8 and "[" not in text and "]" not in text and text not in "redacted"


def _texts(document: bytes) -> list[str]:
    """Return every text in a JSON document, keys included."""
    texts: list[str] = []
    level = [msgspec.json.decode(document)]
    while level:
        value = level.pop()
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, list):
            level += value
        elif isinstance(value, dict):
            level += [*value.keys(), *value.values()]
    return texts


# What a subscriber answers


def read_answer(data: bytes) -> None:
    """Read a byte for the places to split, then the bytes of the answer."""
    step = data[0] if data else 1
    whole = data[1:]
    cuts = list(range(1 + step % 7, len(whole), 1 + step))
    answers.check_answer(whole, cuts)


def read_response(data: bytes) -> None:
    """Read upstream's side of a connection in pieces; the first byte sets their size."""
    size = 1 + 16 * data[0] if data else 1
    whole = data[1:]
    answers.check_response([whole[at : at + size] for at in range(0, len(whole), size)])


def read_retry_after(data: bytes) -> None:
    """Read the value of a `Retry-After` header."""
    wait_ms = retry.parse_retry_after(data.decode("latin-1"), NOW)
    assert wait_ms is None or 0 <= wait_ms <= clock.DAY


# Tokens

OLD_KEY, NEW_KEY, OTHER_KEY = "o" * 32, "n" * 32, "x" * 32
NONCE = "bm9uY2Vub25jZW5vbmNlbm"


@cache
def token_reader() -> tuple[CallbackTokens, frozenset[str]]:
    """Return a reader with an older and a newer key, and every token that it may accept."""
    old, new = CallbackTokens([OLD_KEY], "apiinone"), CallbackTokens([OLD_KEY, NEW_KEY], "apiinone")
    minted = [each.mint(f"gen_{n:032x}", NONCE, LATER) for each in (old, new) for n in (1, 2)]
    for token in minted[:2]:
        new.read(token, NOW)  # One of each generation is in the cache.
    return new, frozenset(minted)


def foreign_tokens() -> list[str]:
    """Return well-formed tokens of another key, upstream or key derivation."""
    others = [CallbackTokens([OTHER_KEY], "apiinone"), CallbackTokens([NEW_KEY], "kie")]
    return [other.mint(f"gen_{1:032x}", NONCE, LATER) for other in others]


def read_token(data: bytes) -> None:
    """Read a token as it is in a path."""
    check_token(data.decode("utf-8", "surrogateescape"))


def check_token(text: str) -> None:
    """Check that only minted tokens are accepted, to the letter."""
    reader, genuine = token_reader()
    if isinstance(reader.read(text, NOW), str):
        assert text not in genuine
    else:
        assert text in genuine, "a token that was not minted was accepted"


# Settings

SECRET = {
    "GENHOOK_SECRET_KEYS",
    "GENHOOK_ADMIN_KEY",
    "GENHOOK_UPSTREAM_API_KEY",
    "GENHOOK_UPSTREAM_SIGNATURE_SECRET",
}
NAMES = tuple(VARIABLES)


def read_setting(data: bytes) -> None:
    """Read a byte for the variable, then its value in the environment."""
    name = NAMES[data[0] % len(NAMES)] if data else NAMES[0]
    check_setting(name, data[1:].decode("utf-8", "surrogateescape").replace("\0", ""))


def check_setting(name: str, text: str) -> None:
    """Check that a value is usable, or refused in a short sentence that quotes no secret."""
    environ = {"GENHOOK_SECRET_KEYS": "0123456789abcdef" * 2, name: text}
    if name == "GENHOOK_UPSTREAM_SIGNATURE_SECRET":
        environ["GENHOOK_UPSTREAM_SIGNATURE"] = "kie"
    if name == "GENHOOK_UPSTREAM_SIGNATURE":
        environ["GENHOOK_UPSTREAM_SIGNATURE_SECRET"] = "a secret"
    try:
        settings = read_settings(environ)
    except SettingsError as error:
        message = str(error)
        assert name in message
        assert re.search("must|is not set|go together", message), message
        assert message.isprintable(), "terminals and logs print this sentence"
        assert len(message) < 400
        for part in _secret_parts(name, text):
            assert part not in message, f"{name} was quoted"
    else:
        _use(settings)


def _secret_parts(name: str, text: str) -> list[str]:
    """Return what a message must not quote: secrets, and the user information of a URL."""
    if name in SECRET:
        return [part for part in (text, *text.split(",")) if len(part) > 8]
    userinfo, at, _ = text.partition("://")[2].partition("@")
    return [part for part in userinfo.split(":") if at and len(part) > 8]


def _use(settings: Settings) -> None:
    """Use the settings as a start does."""
    tokens = CallbackTokens(settings.secret_keys, "apiinone")
    token = tokens.mint("gen_1", NONCE, LATER)
    claim = tokens.read(token, NOW)
    assert isinstance(claim, Claim)
    assert claim.nonce == NONCE
    vault = Vault(settings.secret_keys)
    assert vault.open(vault.seal(b"plain", "c"), "c") == b"plain"
    if settings.upstream_signature and settings.upstream_signature_secret:
        settings.upstream_signature_secret.encode()
    for text in (settings.host, settings.database_path, settings.ca_file or ""):
        assert text.isprintable()
    for url in (settings.public_url, settings.upstream_url, settings.http_proxy):
        if url:
            answers.check_url(url)


# Signatures

SCHEME_SECRETS: dict[str, str] = {
    "standard": signing.SECRET_PREFIX + base64.b64encode(b"k" * 32).decode(),
    "wavespeed": signing.SECRET_PREFIX + "plain-text-of-a-key",
    "kie": "hmac-key-of-an-account",
}
SIGNED_HEADERS = (
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "x-webhook-timestamp",
    "x-webhook-signature",
)


def read_signed(data: bytes) -> bool:
    """Read a byte for the scheme, a line for each of three headers, then the body."""
    lines = data[1:].split(b"\n", 3)
    lines += [b""] * (4 - len(lines))
    values = [line.decode("latin-1") for line in lines[:3]]
    headers = dict(zip(SIGNED_HEADERS[:3], values, strict=True))
    headers |= dict(zip(SIGNED_HEADERS[3:], values[1:], strict=True))
    return check_signed(list(SCHEME_SECRETS)[data[0] % 3] if data else "kie", headers, lines[3])


def check_signed(scheme: str, headers: Mapping[str, str], body: bytes) -> bool:
    """Check that an accepted signature is the one that this module computes; True if accepted."""
    secret = SCHEME_SECRETS[scheme]
    try:
        SCHEMES[scheme].verify(body, headers, SCHEMES[scheme].read_secret(secret), NOW)
    except SignatureError as error:
        assert error.reason in {"missing", "malformed", "stale", "wrong"}  # noqa: PT017
        return False
    stamp = "x-webhook-timestamp" if scheme == "kie" else "webhook-timestamp"
    assert abs(NOW - int(headers[stamp]) * clock.SECOND) <= signatures.TOLERANCE_MS
    presented = headers["x-webhook-signature" if scheme == "kie" else "webhook-signature"]
    assert valid_signature(scheme, headers, body) in presented.split(" ") or scheme == "wavespeed"
    assert valid_signature(scheme, headers, body).lower() in presented.lower().split(" ")
    return True


def valid_signature(scheme: str, headers: Mapping[str, str], body: bytes) -> str:
    """Compute the one valid signature without the service's code."""
    if scheme == "kie":
        content = f"{_kie_id(body)}.{headers['x-webhook-timestamp']}".encode()
        mac = hmac.new(SCHEME_SECRETS["kie"].encode(), content, hashlib.sha256)
        return base64.b64encode(mac.digest()).decode()
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    if scheme == "wavespeed":
        mac = hmac.new(b"plain-text-of-a-key", content, hashlib.sha256)
        return "v3," + mac.hexdigest()
    return "v1," + base64.b64encode(hmac.new(b"k" * 32, content, hashlib.sha256).digest()).decode()


def _kie_id(body: bytes) -> Any:
    outer = msgspec.json.decode(body)
    inner = outer.get("data")
    places = [place for place in (inner, outer) if isinstance(place, dict)]
    ids = [place.get(name) for place in places for name in ("taskId", "task_id")]
    return next(each for each in ids if isinstance(each, str) and each)


# Logs

KEYS = tuple(prefix + "0123456789abcdefQX" for prefix in ("ghk_", "aio_", "whsec_", "whsk_"))
SECRETS = (*KEYS, "/callbacks/apiinone/WyJnZW4iXQ.c2lnbmF0dXJl-_x", "Bearer 0123456789abcdefQX")
HUSH = ("0123456789abcdefQX", "WyJnZW4iXQ", "c2lnbmF0dXJl")


def read_log(data: bytes) -> None:
    """Read a byte for the secret, then the text around it."""
    secret = SECRETS[data[0] % len(SECRETS)] if data else SECRETS[0]
    before, _, after = data[1:].decode("utf-8", "replace").partition("|")
    check_log(before, secret, after)


def check_log(before: str, secret: str, after: str) -> None:
    """Check that a log line about a text with a secret does not contain it."""
    text = before + secret + after
    event = {"event": text, "nested": {text: [text, {"deep": text}]}, "error": ValueError(text)}
    line = logs.render(event)
    msgspec.json.decode(line)
    for hush in HUSH:
        # Without its mark it is no secret; its first digits may be those of an escape (`\u0000`).
        is_open = hush[4:] in before + after
        assert hush not in secret or is_open or hush not in line


# The service

TARGETS: Mapping[str, Target] = {
    "upstream": read_upstream,
    "response": read_response,
    "answer": read_answer,
    "retry-after": read_retry_after,
    "token": read_token,
    "setting": read_setting,
    "signature": read_signed,
    "log": read_log,
    "callback": world.read_callback,
    "request": world.read_request,
}
