"""Checks of request fields that are shared, or that a type cannot express.

Each check looks at the length of a list first: the items of a list that is too long get no errors.
"""

import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Annotated, Any

import msgspec

from service.api.problem import FieldError, Problem
from service.context import Context
from service.delivery import signing
from service.delivery.webhook import egress
from service.delivery.webhook.request import refuse_header
from service.model.errors import json_pointer
from service.model.event import EVENT_TYPES
from service.model.subscriber import REDACTED, Filter

MODEL_ID = r"[!-~]{1,128}"
MODEL_ID_RULE = "must be 1 to 128 visible ASCII characters"
# These end in `\Z`, since `$` also matches before a line end at the end of a text.
NO_NUL = r"^[^\x00]*\Z"  # Databases and terminals end a text at NUL.
NO_CONTROLS = r"^[^\x00-\x1f\x7f-\x9f]*\Z"  # They could steer a terminal that shows a name.
METADATA_MAX = 20
METADATA_VALUE_MAX = 500
METADATA_NAME = r"[A-Za-z0-9_.-]{1,64}"
METADATA_RULE = (
    "needs a name of 1 to 64 characters of [A-Za-z0-9_.-], "
    f"and a value of at most {METADATA_VALUE_MAX} characters"
)
FILTER_MODELS_MAX = 100
INPUT_DEPTH_MAX = 64
HEADERS_MAX = 20
HEADER_RULE = (
    "needs a name of 1 to 64 characters of [A-Za-z0-9_-], "
    "and a value of at most 1000 printable ASCII characters"
)
EventTypes = Annotated[list[str], msgspec.Meta(max_length=len(EVENT_TYPES))]
Headers = Annotated[dict[str, str], msgspec.Meta(max_length=HEADERS_MAX)]
Rate = Annotated[float, msgspec.Meta(ge=0.01, le=1_000)]


def check_url(context: Context, url: str, pointer: str) -> None:
    """Problem 422 if webhooks can never be delivered to `url`, which stands at `pointer`."""
    policy = egress.Policy(context.settings.allow_http, context.settings.allow_networks)
    if reason := egress.refuse_url(url, policy):
        raise Problem(422, "address_refused", reason, [FieldError(pointer, reason)])


def metadata_errors(metadata: Mapping[str, str], *steps: str) -> list[FieldError]:
    """Return what is wrong with metadata; `steps` lead to it in the body, for `json_pointer`."""
    if len(metadata) > METADATA_MAX:
        return [FieldError(json_pointer(*steps), f"must have at most {METADATA_MAX} entries")]
    return [
        FieldError(json_pointer(*steps, name), METADATA_RULE)
        for name, value in metadata.items()
        if not re.fullmatch(METADATA_NAME, name) or len(value) > METADATA_VALUE_MAX or "\0" in value
    ]


def depth_errors(value: Any, pointer: str) -> list[FieldError]:
    """Return an error if JSON is too deep for the events that will hold it."""
    level = [value]
    for _ in range(INPUT_DEPTH_MAX):
        children = (c.values() if isinstance(c, dict) else c for c in level)
        level = [v for group in children for v in group if isinstance(v, dict | list)]
        if not level:
            return []
    return [FieldError(pointer, f"is nested deeper than {INPUT_DEPTH_MAX} levels")]


def filter_errors(filter_: Filter) -> list[FieldError]:
    """Return what is wrong with a subscriber's filter."""
    errors = metadata_errors(filter_.metadata, "filter", "metadata")
    models = filter_.models
    if len(models) > FILTER_MODELS_MAX or len(set(models)) != len(models):
        message = f"must be at most {FILTER_MODELS_MAX} models, each once"
        return [*errors, FieldError("/filter/models", message)]
    wrong = [index for index, model in enumerate(models) if not re.fullmatch(MODEL_ID, model)]
    return errors + [FieldError(f"/filter/models/{index}", MODEL_ID_RULE) for index in wrong]


def type_errors(types: Sequence[str]) -> list[FieldError]:
    """Return what is wrong with a list of event types."""
    message = f"must be one of: {', '.join(EVENT_TYPES)}"
    wrong = [index for index, type_ in enumerate(types) if type_ not in EVENT_TYPES]
    errors = [FieldError(f"/event_types/{index}", message) for index in wrong]
    if len(set(types)) != len(types):
        errors.append(FieldError("/event_types", "contains a type twice"))
    return errors


def header_errors(headers: Mapping[str, str]) -> list[FieldError]:
    """Return what is wrong with a subscriber's headers."""
    errors = [
        FieldError(json_pointer("headers", name), reason)
        for name, value in headers.items()
        if (reason := _refuse_header(name, value))
    ]
    if len({name.lower() for name in headers}) != len(headers):
        errors.append(FieldError("/headers", "contains a header twice"))
    return errors


def _refuse_header(name: str, value: str) -> str | None:
    lower = name.lower()
    if not re.fullmatch("[A-Za-z0-9_-]{1,64}", name) or not re.fullmatch("[ -~]{0,1000}", value):
        return HEADER_RULE
    if lower.startswith(("webhook-", "ce-", "content-")) or lower == "user-agent":
        return "is set by genhook"
    return refuse_header(name)


def redacted_errors(headers: Mapping[str, str], stored: AbstractSet[str]) -> list[FieldError]:
    """Return an error for each `[redacted]` header that is not in `stored` (lower-case names)."""
    message = f"{REDACTED} keeps the stored value, and none is stored"
    names = [n for n, value in headers.items() if value == REDACTED and n.lower() not in stored]
    return [FieldError(json_pointer("headers", name), message) for name in names]


def secret_errors(secret: str | None) -> list[FieldError]:
    """Return what is wrong with a signing secret, if one is given."""
    try:
        if secret is not None:
            signing.decode_secret(secret)
    except ValueError as error:
        return [FieldError("/secret", str(error))]
    return []
