"""Calls of a running service's API: the connection, the requests, and what the answers mean."""

import argparse
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from service.cli import answers, output, streams
from service.cli.deadline import LateError, deadline
from service.model.errors import CommandError, MissingError, UsageError
from service.settings import ENVIRONMENT, is_loopback, is_visible, read_variable

if TYPE_CHECKING:
    import httpx  # It takes a fifth of a second to import.

Wait = Callable[[float], object]
pause: Wait = threading.Event().wait  # It is never set: this sleeps.

RETRY_SECONDS = 60.0  # How long a read that gets no answer is repeated: a restart takes less.
RETRY_PAUSE_SECONDS = 1.0
REQUEST_SECONDS = 75.0  # For a request and its whole answer: the longest `?wait`, and a margin.
ANSWER_BYTES_MAX = 16 << 20  # Of the body of an answer: the server may not be genhook.
KEY_VARIABLES = ("GENHOOK_API_KEY", "GENHOOK_ADMIN_KEY")
NEVER_IN_HOSTS = frozenset(' %\\"<>^`{|}')  # httpx would look up such a host.
EXAMPLE_URL = "http://127.0.0.1:8000"


class UnreachableError(CommandError):
    """The service did not answer, or cannot answer now; another try may succeed."""

    status = 3


class UnsentError(UnreachableError):
    """No connection was opened, so the service has not got the request."""


class KeyRefusedError(CommandError):
    """The key is unknown or revoked, or it lacks the scope."""

    status = 5


_ERROR_OF = {401: KeyRefusedError, 403: KeyRefusedError, 404: MissingError}
_UNAVAILABLE = (502, 503, 504)  # Also what a proxy in front of the service answers.


def connect(options: argparse.Namespace) -> "httpx.Client":
    """Return a client of the service that the options name.

    UsageError if there is no key, or if the URL or the key cannot be used; CommandError, before
    anything is sent, if nobody would see the answer.
    """
    streams.require_output("the answer")
    url = find_url(options.url)
    key = find_key(options.key)
    headers = {"authorization": f"Bearer {key}", "user-agent": "genhook"}
    return open_client(url, base_url=url, headers=headers, timeout=REQUEST_SECONDS)


def open_client(url: str, **options: Any) -> "httpx.Client":
    """Return a client for requests to this URL, through the proxy of the environment if it has one.

    CommandError if the environment names a proxy or certificates that cannot be used.
    """
    import ssl

    import httpx

    is_own = is_loopback(url)
    is_https = urlsplit(url).scheme == "https"
    try:
        return httpx.Client(
            trust_env=not is_own,  # No proxy leads to this machine.
            # This context reads SSL_CERT_FILE, as httpx does if it trusts the environment.
            verify=ssl.create_default_context() if is_own and is_https else True,
            **options,
        )
    except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:
        names = "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE or SSL_CERT_DIR"
        reason = output.plain(error)
        raise CommandError(f"{names} has a value that cannot be used: {reason}.") from error


def _first_set(flag: str, option: str | None, variables: Sequence[str]) -> tuple[str, str]:
    """Return the name and the value of what is set: the option, or else the first variable."""
    values = {flag: option} | {name: ENVIRONMENT.get(name) for name in variables}
    return next(((name, value) for name, value in values.items() if value), ("", ""))


def find_key(option: str | None) -> str:
    """Return the key of a client, without spaces and line ends around it.

    UsageError if there is no key, or if it cannot be sent. The error does not quote the key, as
    that of httpx would.
    """
    name, key = _first_set("--key", option, KEY_VARIABLES)
    if not key.strip():
        raise UsageError("a key is needed: give --key, or set GENHOOK_API_KEY.")
    if not is_visible(key.strip()):
        raise UsageError(f"{name} must be visible ASCII characters, without spaces.")
    return key.strip()


def find_url(option: str | None) -> str:
    """Return the URL of the service: that of `--url`, of the environment, or of this machine.

    UsageError if it cannot be used. The error does not quote the URL: it may hold a password.
    """
    name, url = _first_set("--url", option, ("GENHOOK_URL", "GENHOOK_PUBLIC_URL"))
    if not url:
        return f"http://127.0.0.1:{read_variable('PORT') or 8000}"
    if not is_sendable(url) or "?" in url or "#" in url:  # Paths are added to it.
        raise UsageError(f"{name} must be the URL of a service, such as {EXAMPLE_URL}.")
    if "@" in urlsplit(url).netloc:
        raise UsageError(f"{name} must have no user and no password: genhook takes an API key.")
    if urlsplit(url).path.rstrip("/").endswith("/v1"):
        raise UsageError(f"{name} must be given without /v1, such as {EXAMPLE_URL}.")
    return url


def is_sendable(url: str) -> bool:
    """Whether httpx can send a request to this URL; it would find out only while it sends it."""
    import httpx

    try:
        parts = httpx.URL(url)
        host = parts.raw_host.decode()
        host.encode("idna")  # As Python's sockets do.
        split = urlsplit(url)
        _ = split.port  # ValueError above 65535, where sockets would take the rest of a division.
        is_absolute = bool(parts.host and split.hostname) and not set(host) & NEVER_IN_HOSTS
    except (httpx.InvalidURL, ValueError):
        return False
    return is_absolute and parts.scheme in ("http", "https")


def call(client: "httpx.Client", method: str, path: str, **options: Any) -> "httpx.Response":
    """Send a request; return a 2xx answer, whose body is read.

    CommandError for any other answer, and for one that is too long; UnreachableError if a retry
    may help; UnsentError, one of these, if the request was not sent.
    """
    import httpx

    try:
        with deadline(REQUEST_SECONDS), client.stream(method, path, **options) as streamed:
            answer = _read(streamed)
    except (httpx.RequestError, LateError) as error:
        reason = give_reason(error)
        is_unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
        kind = UnsentError if is_unsent else UnreachableError
        raise kind(f"no answer from {client.base_url}: {reason}.") from error
    except (UnicodeError, RecursionError) as error:
        raise CommandError("the request cannot be encoded as JSON.") from error
    if answer.is_success:
        return answer
    raise _to_error(answer)


def give_reason(error: Exception) -> str:
    """Return why a server gave no answer, on one line; h11 quotes what is no HTTP as Python."""
    reason = re.sub(r"^\[Errno -?\d+\] ", "", output.plain(error)) or type(error).__name__
    return "what it sends is not HTTP" if "bytearray(" in reason else reason


def _read(answer: "httpx.Response") -> "httpx.Response":
    """Return the answer with its body; CommandError if that is too long."""
    import httpx

    body = bytearray()
    for chunk in answer.iter_bytes():
        body += chunk
        if len(body) > ANSWER_BYTES_MAX:
            limit = f"{ANSWER_BYTES_MAX >> 20} MiB"
            raise CommandError(f"{answer.url} answered with more than {limit}, which is too much.")
    where = {k: v for k, v in answer.headers.items() if k == "location"}
    return httpx.Response(
        answer.status_code, headers=where, content=bytes(body), request=answer.request
    )


def ask(client: "httpx.Client", method: str, path: str, shape: Any, **options: Any) -> Any:
    """Send a request as `call` does; return the decoded body, with all its fields.

    CommandError unless it has the shape, since the server is not genhook then.
    """
    body = call(client, method, path, **options).content
    decode(client, body, shape)
    return decode(client, body, Any)


def ask_again(
    client: "httpx.Client",
    path: str,
    shape: Any,
    goes_on: str,
    wait: Wait = pause,
    query: Mapping[str, int] | None = None,
) -> Any:
    """Return what a GET shows; repeat it for RETRY_SECONDS if it gets no answer.

    UnreachableError after that. goes_on: the sentence that it ends with, since what is watched goes
    on.
    """
    ends_at: float | None = None
    while True:
        try:
            return ask(client, "GET", path, shape, params=query)
        except UnreachableError as error:
            reason = str(error).rstrip(".")
            if ends_at is None:
                streams.note(f"genhook: {reason}. Trying again for {RETRY_SECONDS:g} s.")
                ends_at = monotonic() + RETRY_SECONDS
            elif monotonic() >= ends_at:
                raise UnreachableError(f"{reason}. {goes_on}") from error
        wait(RETRY_PAUSE_SECONDS)


def decode(client: "httpx.Client", body: bytes, shape: Any) -> Any:
    """Return the body as this type; CommandError if it does not have that type."""
    try:
        return msgspec.json.decode(body, type=shape)
    except (ValueError, RecursionError) as error:
        raise not_genhook(client) from error


def not_genhook(client: "httpx.Client") -> CommandError:
    """Return the error for an answer that genhook would not give."""
    return CommandError(f"the server at {client.base_url} is not genhook.")


def _to_error(answer: "httpx.Response") -> CommandError:
    """Return the problem in an answer as one sentence, with its code.

    An answer of another server says nothing about an id or a key of genhook.
    """
    kind = UnreachableError if answer.status_code in _UNAVAILABLE else CommandError
    try:
        problem = msgspec.json.decode(answer.content, type=answers.Problem)
        errors = [e for e in problem.errors if e["message"] not in problem.detail]
        fields = "; ".join(f"{e['pointer']} {e['message']}" for e in errors)
        detail = problem.detail.rstrip(".") + (f": {fields}" if fields else "")
        # Named, since it may be another service than the user means.
        service = answer.url.copy_with(raw_path=b"")
        message = output.plain(f"{detail} ({problem.code}), says {service}.")
        kind = _ERROR_OF.get(answer.status_code, kind)
    except (ValueError, RecursionError):
        message = f"{answer.url} answered {answer.status_code}, but not with a problem of genhook."
        if answer.has_redirect_location:
            message = f"{message[:-1]}: it redirects to {output.plain(answer.headers['location'])}."
    return kind(message)
