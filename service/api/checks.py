"""What is wrong with what a client gave: names, metadata, URLs, headers, filters, secrets."""

import re
from collections.abc import Mapping

from service.api.problem import FieldError, Problem
from service.context import Context
from service.delivery import signing
from service.delivery.webhook import egress
from service.delivery.webhook.request import refuse_header
from service.model.event import EVENT_TYPES
from service.model.subscriber import Filter

NO_NUL = r"^[^\x00]*$"  # Databases and terminals end a text there.
METADATA_MAX = 20
METADATA_VALUE_MAX = 500
METADATA_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
METADATA_RULE = "needs a name of 1 to 64 of [A-Za-z0-9_.-], and a value of at most 500 characters"
MODEL_ID = re.compile(r"[!-~]{1,128}")
MODEL_ID_RULE = "must be 1 to 128 visible ASCII characters"
FILTER_MODELS_MAX = 100
HEADERS_MAX = 20
REDACTED = "[redacted]"  # Stands for a header's value, which is never shown.
_HEADER_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HEADER_VALUE = re.compile(r"[ -~]{0,1000}")


def escape(name: str) -> str:
    """A name as a step of a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


def check_url(context: Context, url: str, pointer: str) -> None:
    """Problem 422 if a delivery to `url` could never pass."""
    policy = egress.Policy(context.settings.allow_http, context.settings.allow_networks)
    if reason := egress.refuse_url(url, policy):
        raise Problem(422, "address_refused", reason, errors=(FieldError(pointer, reason),))


def metadata_errors(metadata: Mapping[str, str], pointer: str) -> list[FieldError]:
    """Metadata, or what a filter wants of it."""
    if len(metadata) > METADATA_MAX:
        return [FieldError(pointer, f"must have at most {METADATA_MAX} entries")]
    return [
        FieldError(f"{pointer}/{escape(name)}", METADATA_RULE)
        for name, value in metadata.items()
        if not METADATA_NAME.fullmatch(name) or len(value) > METADATA_VALUE_MAX or "\0" in value
    ]


def filter_errors(given: Filter) -> list[FieldError]:
    """A subscriber's filter."""
    errors = metadata_errors(given.metadata, "/filter/metadata")
    if len(given.models) > FILTER_MODELS_MAX or len(set(given.models)) != len(given.models):
        message = f"must be at most {FILTER_MODELS_MAX} models, each once"
        errors.append(FieldError("/filter/models", message))
    return errors + [
        FieldError(f"/filter/models/{index}", MODEL_ID_RULE)
        for index, model in enumerate(given.models)
        if not MODEL_ID.fullmatch(model)
    ]


def type_errors(types: list[str]) -> list[FieldError]:
    """The types of event that somebody wants."""
    known = ", ".join(EVENT_TYPES)
    errors = [
        FieldError(f"/event_types/{index}", f"must be one of: {known}")
        for index, type_ in enumerate(types)
        if type_ not in EVENT_TYPES
    ]
    if len(set(types)) != len(types):
        errors.append(FieldError("/event_types", "names a type twice"))
    return errors


def header_errors(headers: dict[str, str]) -> list[FieldError]:
    """A subscriber's own headers."""
    if len(headers) > HEADERS_MAX:
        return [FieldError("/headers", f"must have at most {HEADERS_MAX} entries")]
    errors = [
        FieldError(f"/headers/{escape(name)}", reason)
        for name, value in headers.items()
        if (reason := _refuse_header(name, value))
    ]
    if len({name.lower() for name in headers}) != len(headers):
        errors.append(FieldError("/headers", "names a header twice"))
    return errors


def _refuse_header(name: str, value: str) -> str | None:
    lower = name.lower()
    if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
        return "needs a name of 1 to 64 of [A-Za-z0-9_-], and a value of up to 1000 of ASCII"
    if lower.startswith(("webhook-", "ce-", "content-")) or lower == "user-agent":
        return f"The header {lower} is set by the sender."
    return refuse_header(name, value)


def no_value(name: str) -> FieldError:
    """A header given as `[redacted]` where no value is stored."""
    return FieldError(
        f"/headers/{escape(name)}", f"{REDACTED} stands for a value, and none is stored"
    )


def secret_errors(secret: str) -> list[FieldError]:
    """A signing secret of the client's own."""
    try:
        signing.decode_secret(secret)
    except ValueError as error:
        return [FieldError("/secret", str(error))]
    return []
