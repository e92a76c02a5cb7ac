"""Settings, read once from environment variables and validated."""

import ipaddress
import os
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from service.model.errors import SettingsError
from service.model.number import read_decimal, read_whole
from service.model.server_url import split_hosts

ENVIRONMENT: Mapping[str, str] = os.environ  # noqa: TID251  the only module that reads it
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
KEY_CHARACTERS_MIN = 32
SECRET_CHARACTERS_MIN = 8  # Of secrets that are redacted: a shorter one may be ordinary text.
DISTINCT_CHARACTERS_MIN = 8  # A random key of 32 hexadecimal digits has more.
_BODY_BYTES = (1_024, 67_108_864)
_QUOTED_CHARACTERS_MAX = 200
SIGNATURE_SCHEMES = ("standard", "wavespeed", "kie")
POSTGRES = ("postgresql://", "postgres://")


def _require(condition: bool, rule: str) -> None:  # noqa: FBT001  it reads like `assert`
    if not condition:
        raise ValueError(rule)


def _text(value: str) -> str:
    # Bytes that are not UTF-8 are not printable either.
    _require(value.isprintable(), "must be printable text in UTF-8")
    return value


def is_visible(value: str) -> bool:
    """Whether the value is of visible ASCII characters, or empty."""
    return value.isascii() and value.isprintable() and " " not in value


def _secret(value: str) -> str:
    _require(is_visible(value), "must be visible ASCII characters, without spaces or line ends")
    return _text_secret(value)


def _text_secret(value: str) -> str:
    is_long = len(value) >= SECRET_CHARACTERS_MIN
    rule = f"must have at least {SECRET_CHARACTERS_MIN} characters, as it is cut out of all texts"
    _require(is_long, rule)
    return _text(value)


def _is_varied(key: str) -> bool:
    return len(set(key)) >= DISTINCT_CHARACTERS_MIN


def _boolean(value: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    _require(value.lower() in words, "must be true or false")
    return words[value.lower()]


def _number(value: str, low: float, high: float) -> float:
    number = read_decimal(value)
    if number is None or not low <= number <= high:
        raise ValueError(f"must be a number from {low:g} to {high:g}")
    return number


def _integer(value: str, low: int, high: int) -> int:
    number = read_whole(value)
    if number is None or not low <= number <= high:
        raise ValueError(f"must be a whole number from {low} to {high}")
    return number


def _choice(value: str, *words: str) -> str:
    _require(value in words, f"must be one of: {', '.join(words)}")
    return value


def _database_path(value: str) -> str:
    if value.startswith(POSTGRES):
        split_hosts(_text(value))  # ValueError for a wrong URL.
        return value
    path = value.removeprefix("sqlite:///")
    rule = "must look like sqlite:///genhook.db or postgresql://genhook@db.internal/genhook"
    _require(path not in (value, ""), rule)
    _require(path != ":memory:", "must be a file: a database in memory ends with the process")
    return _text(path)


def _passwords(url: str) -> list[str]:
    """Return the passwords in a URL of PostgreSQL, which may be among its options."""
    parts = urlsplit(url)
    options = parse_qs(parts.query)
    own = unquote(parts.password or "")
    return [own, *options.get("password", ()), *options.get("sslpassword", ())]


def _ca_file(value: str) -> str:
    import ssl  # noqa: PLC0415  cold start

    try:
        ssl.create_default_context(cafile=_text(value))
    except OSError:  # Includes ssl.SSLError.
        raise ValueError("must be a readable file of certificates in PEM") from None
    return value


def _url(value: str) -> str:
    _require(is_visible(value), "must be ASCII without spaces")
    try:
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")  # As Python's sockets do: it limits the length of labels.
    except ValueError:  # Its message could quote a password.
        raise ValueError("must be a URL whose host and port are well-formed") from None
    is_absolute = parts.scheme in ("http", "https") and bool(host) and "@" not in parts.netloc
    _require(is_absolute, "must be an absolute http(s) URL without user information")
    _require(port != 0, "must have a port from 1 to 65535")
    _require(not (parts.query or parts.fragment), "must have neither a query nor a fragment")
    return value.rstrip("/")


def _upstream_url(value: str) -> str:
    url = _url(value)
    return url if urlsplit(url).path else f"{url}/api/v1"


def _secret_keys(value: str) -> tuple[str, ...]:
    keys = tuple(_text(key.strip()) for key in value.split(","))
    is_long = min(map(len, keys)) >= KEY_CHARACTERS_MIN
    _require(is_long, f"must be keys of at least {KEY_CHARACTERS_MIN} characters each")
    _require(
        all(map(_is_varied, keys)),
        "must not have a key that repeats itself: use `openssl rand -hex 32`",
    )
    return keys


def _admin_key(value: str) -> str:
    is_key = value.startswith("ghk_") and len(value) >= KEY_CHARACTERS_MIN
    _require(is_key, f"must start with ghk_ and have at least {KEY_CHARACTERS_MIN} characters")
    is_varied = _is_varied(value.removeprefix("ghk_"))
    _require(is_varied, "must not repeat itself: use `openssl rand -hex 32`, after ghk_")
    return _secret(value)


def _networks(value: str) -> tuple[Network, ...]:
    try:
        return tuple(ipaddress.ip_network(part.strip()) for part in value.split(","))
    except ValueError as error:
        is_quotable = len(value) <= _QUOTED_CHARACTERS_MAX and value.isprintable()
        detail = f": {error}" if is_quotable else ""
        raise ValueError(f"must be networks such as 10.0.0.0/8, comma separated{detail}") from None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings: type, parser and its limits, default. The `repr` shows no secret."""

    database_path: Annotated[str, _database_path] = "genhook.db"
    public_url: Annotated[str | None, _url] = None
    secret_keys: Annotated[tuple[str, ...], _secret_keys] = ()
    admin_key: Annotated[str | None, _admin_key] = None
    upstream_url: Annotated[str, _upstream_url] = "https://apiin.one/api/v1"
    upstream_api_key: Annotated[str | None, _secret] = None
    upstream_signature: Annotated[str | None, _choice, *SIGNATURE_SCHEMES] = None
    upstream_signature_secret: Annotated[str | None, _text_secret] = None
    callback_trust: Annotated[Literal["confirm", "body"], _choice, "confirm", "body"] = "confirm"
    safety_poll_seconds: Annotated[float | None, _number, 0.05, 86_400] = None
    worker: Annotated[Literal["embedded", "off"], _choice, "embedded", "off"] = "embedded"
    allow_http: Annotated[bool, _boolean] = False
    allow_networks: Annotated[tuple[Network, ...], _networks] = ()
    http_proxy: Annotated[str | None, _url] = None
    ca_file: Annotated[str | None, _ca_file] = None
    host: Annotated[str, _text] = "127.0.0.1"
    port: Annotated[int, _integer, 0, 65_535] = 8000
    work_port: Annotated[int | None, _integer, 0, 65_535] = None
    log_level: Annotated[str, _choice, "debug", "info", "warning", "error"] = "info"
    open_docs: Annotated[bool, _boolean] = True
    open_metrics: Annotated[bool, _boolean] = True
    callback_body_bytes: Annotated[int, _integer, *_BODY_BYTES] = 1_048_576
    request_body_bytes: Annotated[int, _integer, *_BODY_BYTES] = 1_048_576
    upstream_body_bytes: Annotated[int, _integer, *_BODY_BYTES] = 8_388_608
    upstream_timeout_seconds: Annotated[float, _number, 0.1, 600] = 60.0
    submit_wait_seconds: Annotated[float, _number, 0, 600] = 10.0
    write_queue: Annotated[int, _integer, 1, 1_000_000] = 10_000
    database_connections: Annotated[int, _integer, 5, 1_000] = 10
    poll_rate_per_second: Annotated[float, _number, 0.01, 10_000] = 10.0
    deadline_seconds: Annotated[int, _integer, 1, 604_800] = 3_600
    attempt_timeout_seconds: Annotated[float, _number, 0.1, 120] = 15.0
    max_in_flight: Annotated[int, _integer, 1, 10_000] = 1_000
    connections_max: Annotated[int, _integer, 16, 100_000] = 4_096
    head_seconds: Annotated[float, _number, 0.1, 600] = 10.0
    body_seconds: Annotated[float, _number, 0.1, 600] = 30.0
    drive_seconds: Annotated[float, _number, 0, 60] = 2.0
    shutdown_seconds: Annotated[float, _number, 0, 600] = 20.0
    retention_days: Annotated[int, _integer, 1, 3_650] = 30

    @property
    def is_postgres(self) -> bool:
        """Whether the database is PostgreSQL, and `database_path` its URL."""
        return self.database_path.startswith(POSTGRES)

    @property
    def database_name(self) -> str:
        """The database as it may be shown: without user, password and options."""
        if not self.is_postgres:
            return self.database_path
        parts = urlsplit(self.database_path)
        return f"postgresql://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @property
    def secrets(self) -> list[str]:
        """Every secret that is redacted in logs, rows and answers: it has SECRET_CHARACTERS_MIN."""
        keys = (self.upstream_api_key, self.upstream_signature_secret, self.admin_key)
        passwords = _passwords(self.database_path) if self.is_postgres else ()
        # No parser refuses a short password. Cut out of all texts, `test` would break the URLs of
        # results, for good: they are stored and signed without it.
        long = [each for each in passwords if len(each) >= SECRET_CHARACTERS_MIN]
        return [secret for secret in (*keys, *self.secret_keys, *long) if secret]

    def __repr__(self) -> str:
        return f"Settings(database={self.database_name!r}, public_url={self.public_url!r})"


_OTHER_NAMES = {"database_path": "GENHOOK_DATABASE_URL", "port": "PORT"}
# The field of each variable: GENHOOK_ and the field's name, but for these two.
VARIABLES = {
    _OTHER_NAMES.get(field, f"GENHOOK_{field.upper()}"): field for field in Settings.__annotations__
}
DATABASE_VARIABLES = ("GENHOOK_DATABASE_URL", "GENHOOK_DATABASE_CONNECTIONS")
# The command line reads these as a client of a running service. They are not its settings.
CLIENT_VARIABLES = ("GENHOOK_URL", "GENHOOK_API_KEY")


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
    if settings.admin_key in settings.secret_keys:
        raise SettingsError(
            "GENHOOK_ADMIN_KEY is also one of GENHOOK_SECRET_KEYS: "
            "a client of the API could sign callbacks."
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
        is_plain = urlsplit(url or "").scheme == "http"  # In lower case, however it is written.
        if url and is_plain and not (settings.allow_http or is_loopback(url)):
            raise SettingsError(
                f"{name} must be https, since secrets are sent to it. "
                "GENHOOK_ALLOW_HTTP=true allows http on a network that you trust."
            )


def read_variable(name: str, environ: Mapping[str, str] = ENVIRONMENT) -> Any:
    """Read the setting of one variable; None if it is not set, SettingsError if it is wrong."""
    text = environ.get(name)
    if not text:
        return None
    parse, *limits = Settings.__annotations__[VARIABLES[name]].__metadata__
    try:
        return parse(text, *limits)
    except ValueError as error:
        raise SettingsError(f"{name} {error}.") from None


def read_settings(environ: Mapping[str, str] = ENVIRONMENT, **overrides: object) -> Settings:
    """Read the settings from `environ`; `overrides` take precedence.

    Raises SettingsError, which names every variable that is wrong, or else one that is missing.
    """
    settings = Settings(**{**_read_variables(environ, VARIABLES), **overrides})
    _check(settings)
    return settings


def read_database_settings(environ: Mapping[str, str] = ENVIRONMENT) -> Settings:
    """Read only what the database needs, with a default for all else; SettingsError.

    For commands that need no secret: who makes backups does not have to know the keys.
    """
    return Settings(**_read_variables(environ, DATABASE_VARIABLES))


def _read_variables(environ: Mapping[str, str], names: Iterable[str]) -> dict[str, Any]:
    """Return the settings of these variables that are set; SettingsError names all wrong ones."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name in names:
        try:
            value = read_variable(name, environ)
        except SettingsError as error:
            problems += error.problems
        else:
            values |= {} if value is None else {VARIABLES[name]: value}
    if problems:
        raise SettingsError(*problems)
    return values


def unknown_variables(environ: Mapping[str, str] = ENVIRONMENT) -> list[str]:
    """Return the variables that start with `GENHOOK_` but are no settings: likely misspelled."""
    known = {*VARIABLES, *CLIENT_VARIABLES}
    return sorted(name for name in environ.keys() - known if name.startswith("GENHOOK_"))
