"""The fields of answers that commands use: a server whose answers lack them is not genhook.

The shapes are only checked. Commands get, and print with `--json`, answers with all their fields.
"""

from datetime import datetime
from typing import Annotated, Any, TypedDict

import msgspec


class Reason(TypedDict):
    """Why something failed."""

    code: str
    message: str


class File(TypedDict):
    """A file of a result; without a URL, it is inside of `output.raw`."""

    url: str | None


class Output(TypedDict):
    """The result of a generation."""

    files: list[File]


class Generation(TypedDict):
    """A generation."""

    id: str
    model: str
    status: str
    route: str
    task_id: str | None
    credits: float | None
    notify_url: str | None
    output: Output | None
    error: Reason | None
    created_at: str
    completed_at: str | None


class Attempt(TypedDict):
    """An attempt of a delivery."""

    status_code: int | None
    duration_ms: int
    error: Reason | None


class Test(TypedDict):
    """The answer to a test of a subscriber."""

    attempt: Attempt


class Filtered(TypedDict):
    """A subscriber, as far as its filter goes."""

    filter: dict[str, Any]


class Entry(TypedDict):
    """An entry of a timeline."""

    at: Annotated[datetime, msgspec.Meta(tz=True)]
    type: str
    summary: str
    detail: dict[str, Any]


class Timeline(TypedDict):
    """The timeline of a generation; it begins with the row that was stored."""

    data: Annotated[list[Entry], msgspec.Meta(min_length=1)]


class Replay(TypedDict):
    """A replay."""

    id: str
    status: str
    done: int
    total: int


class Page(TypedDict):
    """A page of a list, of any noun."""

    data: list[dict[str, Any]]
    next: str | None


class Delivery(TypedDict):
    """A delivery with its attempts."""

    id: str
    attempts: list[dict[str, Any]]


class Callback(TypedDict):
    """A callback as it was received."""

    id: str
    headers: dict[str, str]
    body: str


class Schema(TypedDict, total=False):
    """The JSON Schema of a model's input, as far as it is shown."""

    properties: dict[str, dict[str, Any]]
    required: list[str]


class Model(TypedDict):
    """A model of the catalogue."""

    id: str
    parameters: Schema


class EventPage(msgspec.Struct):
    """A page of events, each as the bytes that came."""

    data: list[msgspec.Raw]
    next: str | None


class Event(msgspec.Struct):
    """An event."""

    id: Annotated[str, msgspec.Meta(pattern=r"^[!-~]{1,128}\Z")]  # A header of its webhook.
    type: str
    timestamp: str
    data: dict[str, Any]


class WrongField(TypedDict):
    """A field of a request that is wrong."""

    pointer: str
    message: str


class Problem(msgspec.Struct):
    """The answer to a request that was refused."""

    code: str
    detail: str
    errors: list[WrongField] = []
