"""Settings, read once from environment variables and validated."""

import ipaddress
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import msgspec

from service.model.errors import SettingsError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
KEY_CHARACTERS_MIN = 32
_DIGITS_MAX = 20
_QUOTED_CHARACTERS_MAX = 200
SIGNATURE_SCHEMES = ("standard", "wavespeed", "kie")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings. The `repr` shows no secret."""

    database_path: str = "genhook.db"
    public_url: str | None = None
    secret_keys: tuple[str, ...] = ()
    admin_key: str | None = None
    upstream_url: str = "https://apiin.one/api/v1"
    upstream_api_key: str | None = None
    upstream_signature: str | None = None
    upstream_signature_secret: str | None = None
    callback_trust: Literal["confirm", "body"] = "confirm"
    safety_poll_seconds: float | None = None
    worker: Literal["embedded", "off"] = "embedded"
    allow_http: bool = False
    allow_networks: tuple[Network, ...] = ()
    http_proxy: str | None = None
    ca_file: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    log_level: str = "info"
    open_docs: bool = True
    open_metrics: bool = True
    callback_body_bytes: int = 1_048_576
    request_body_bytes: int = 1_048_576
    upstream_body_bytes: int = 8_388_608
    upstream_timeout_seconds: float = 60.0
    write_queue: int = 10_000
    poll_rate_per_second: float = 10.0
    deadline_seconds: int = 3_600
    attempt_timeout_seconds: float = 15.0
    max_in_flight: int = 1_000
    shutdown_seconds: float = 20.0
    retention_days: int = 30

    @property
    def secrets(self) -> list[str]:
        """Return every secret in the settings: they are redacted in logs and answers."""
        secrets = (
            self.upstream_api_key,
            self.upstream_signature_secret,
            self.admin_key,
            *self.secret_keys,
        )
        return [secret for secret in secrets if secret]

    def __repr__(self) -> str:
        return f"Settings(database_path={self.database_path!r}, public_url={self.public_url!r})"


def _text(value: str) -> str:
    if not value.isprintable():  # Bytes that are not UTF-8 are not printable either.
        raise ValueError("must be printable text in UTF-8")
    return value


def _secret(value: str) -> str:
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("must be visible ASCII characters, without spaces or line ends")
    return value


def _boolean(value: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if value.lower() not in words:
        raise ValueError("must be true or false")
    return words[value.lower()]


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            raise ValueError(f"must be a number from {low:g} to {high:g}")
        return number

    return parse


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        is_whole = value.isascii() and value.isdigit() and len(value) <= _DIGITS_MAX
        if not is_whole or not low <= int(value) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(value)

    return parse


def _choice(*words: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in words:
            raise ValueError(f"must be one of: {', '.join(words)}")
        return value

    return parse


def _database_path(value: str) -> str:
    prefix = "sqlite:///"
    if not value.startswith(prefix) or len(value) == len(prefix):
        raise ValueError("must look like sqlite:///genhook.db or sqlite:////var/lib/genhook.db")
    if value == prefix + ":memory:":
        raise ValueError("must be a file: a database in memory ends with the process")
    return _text(value[len(prefix) :])


def _ca_file(value: str) -> str:
    import ssl  # noqa: PLC0415  cold start

    try:
        ssl.create_default_context(cafile=_text(value))
    except OSError:  # Includes ssl.SSLError.
        raise ValueError("must be a readable file of certificates in PEM") from None
    return value


def _url(value: str) -> str:
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("must be ASCII without spaces")
    try:
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
    except ValueError:  # Its message could quote a password.
        raise ValueError("must be a URL whose host and port are well-formed") from None
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc:
        raise ValueError("must be an absolute http(s) URL without user information")
    if port == 0:
        raise ValueError("must have a port from 1 to 65535")
    if parts.query or parts.fragment:
        raise ValueError("must have neither a query nor a fragment")
    return value.rstrip("/")


def _upstream_url(value: str) -> str:
    url = _url(value)
    return url if urlsplit(url).path else f"{url}/api/v1"


def _secret_keys(value: str) -> tuple[str, ...]:
    keys = tuple(_text(key.strip()) for key in value.split(","))
    if any(len(key) < KEY_CHARACTERS_MIN for key in keys):
        raise ValueError(f"each key must have at least {KEY_CHARACTERS_MIN} characters")
    return keys


def _admin_key(value: str) -> str:
    if not value.startswith("ghk_") or len(value) < KEY_CHARACTERS_MIN:
        raise ValueError(f"must start with ghk_ and have at least {KEY_CHARACTERS_MIN} characters")
    return _secret(value)


def _networks(value: str) -> tuple[Network, ...]:
    try:
        return tuple(ipaddress.ip_network(part.strip()) for part in value.split(","))
    except ValueError as error:
        detail = (
            f": {error}" if len(value) <= _QUOTED_CHARACTERS_MAX and value.isprintable() else ""
        )
        raise ValueError(f"must be networks such as 10.0.0.0/8, comma separated{detail}") from None


class Variable(NamedTuple):
    """An environment variable, the field that it sets, and the parser of its value."""

    name: str
    field: str
    parse: Callable[[str], Any]


VARIABLES = (
    Variable("GENHOOK_DATABASE_URL", "database_path", _database_path),
    Variable("GENHOOK_PUBLIC_URL", "public_url", _url),
    Variable("GENHOOK_SECRET_KEYS", "secret_keys", _secret_keys),
    Variable("GENHOOK_ADMIN_KEY", "admin_key", _admin_key),
    Variable("GENHOOK_UPSTREAM_URL", "upstream_url", _upstream_url),
    Variable("GENHOOK_UPSTREAM_API_KEY", "upstream_api_key", _secret),
    Variable("GENHOOK_UPSTREAM_SIGNATURE", "upstream_signature", _choice(*SIGNATURE_SCHEMES)),
    Variable("GENHOOK_UPSTREAM_SIGNATURE_SECRET", "upstream_signature_secret", _text),
    Variable("GENHOOK_CALLBACK_TRUST", "callback_trust", _choice("confirm", "body")),
    Variable("GENHOOK_SAFETY_POLL_SECONDS", "safety_poll_seconds", _number(0.05, 86_400)),
    Variable("GENHOOK_WORKER", "worker", _choice("embedded", "off")),
    Variable("GENHOOK_ALLOW_HTTP", "allow_http", _boolean),
    Variable("GENHOOK_ALLOW_NETWORKS", "allow_networks", _networks),
    Variable("GENHOOK_HTTP_PROXY", "http_proxy", _url),
    Variable("GENHOOK_CA_FILE", "ca_file", _ca_file),
    Variable("GENHOOK_HOST", "host", _text),
    Variable("PORT", "port", _integer(0, 65_535)),
    Variable("GENHOOK_LOG_LEVEL", "log_level", _choice("debug", "info", "warning", "error")),
    Variable("GENHOOK_OPEN_DOCS", "open_docs", _boolean),
    Variable("GENHOOK_OPEN_METRICS", "open_metrics", _boolean),
    Variable("GENHOOK_CALLBACK_BODY_BYTES", "callback_body_bytes", _integer(1_024, 67_108_864)),
    Variable("GENHOOK_REQUEST_BODY_BYTES", "request_body_bytes", _integer(1_024, 67_108_864)),
    Variable("GENHOOK_UPSTREAM_BODY_BYTES", "upstream_body_bytes", _integer(1_024, 67_108_864)),
    Variable("GENHOOK_UPSTREAM_TIMEOUT_SECONDS", "upstream_timeout_seconds", _number(0.1, 600)),
    Variable("GENHOOK_WRITE_QUEUE", "write_queue", _integer(1, 1_000_000)),
    Variable("GENHOOK_POLL_RATE_PER_SECOND", "poll_rate_per_second", _number(0.01, 10_000)),
    Variable("GENHOOK_DEADLINE_SECONDS", "deadline_seconds", _integer(1, 604_800)),
    Variable("GENHOOK_ATTEMPT_TIMEOUT_SECONDS", "attempt_timeout_seconds", _number(0.1, 120)),
    Variable("GENHOOK_MAX_IN_FLIGHT", "max_in_flight", _integer(1, 10_000)),
    Variable("GENHOOK_SHUTDOWN_SECONDS", "shutdown_seconds", _number(0, 600)),
    Variable("GENHOOK_RETENTION_DAYS", "retention_days", _integer(1, 3_650)),
)


def _parse(variable: Variable, text: str) -> Any:
    try:
        return variable.parse(text)
    except ValueError as error:
        raise SettingsError(f"{variable.name} {error}.") from None


def is_loopback(url: str) -> bool:
    """True if the URL's host is a loopback address or `localhost`."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check(settings: Settings) -> None:
    if not settings.secret_keys:
        raise SettingsError(
            "GENHOOK_SECRET_KEYS is not set: it needs at least one key of 32 characters or more, "
            "for example from `openssl rand -hex 32`; or try `genhook serve --dev`."
        )
    if bool(settings.upstream_signature) != bool(settings.upstream_signature_secret):
        raise SettingsError(
            "GENHOOK_UPSTREAM_SIGNATURE and GENHOOK_UPSTREAM_SIGNATURE_SECRET go together: "
            "set both or neither."
        )
    for name, url in (
        ("GENHOOK_PUBLIC_URL", settings.public_url),
        ("GENHOOK_UPSTREAM_URL", settings.upstream_url),
    ):
        if url and url.startswith("http:") and not (settings.allow_http or is_loopback(url)):
            raise SettingsError(
                f"{name} must be https, since secrets are sent to it. "
                "GENHOOK_ALLOW_HTTP=true allows http on a network that you trust."
            )


def read_settings(environ: Mapping[str, str] | None = None, **overrides: object) -> Settings:
    """Read the settings from `environ` (by default `os.environ`); `overrides` take precedence.

    Raises SettingsError, which names the first variable that is missing or wrong.
    """
    environ = os.environ if environ is None else environ  # noqa: TID251  the only module that reads it
    values = {v.field: _parse(v, environ[v.name]) for v in VARIABLES if environ.get(v.name)}
    settings = Settings(**{**values, **overrides})
    _check(settings)
    return settings


def unknown_variables(environ: Mapping[str, str] | None = None) -> list[str]:
    """Return the variables that start with `GENHOOK_` but are not settings: likely misspelled."""
    environ = os.environ if environ is None else environ  # noqa: TID251  the only module that reads it
    known = {variable.name for variable in VARIABLES}
    return sorted(n for n in environ if n.startswith("GENHOOK_") and n not in known)
