"""Values as pages write them: times in UTC, numbers, durations, JSON."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from markupsafe import Markup

from service.model.clock import MINUTE, SECOND, parse_rfc3339, rfc3339

NONE = "\N{EN DASH}"


def write_time(text: str | None) -> Markup:
    """Write a time of the API as a `time` element, in UTC to the second."""
    if text is None:
        return Markup.escape(NONE)
    shown = f"{text[:10]} {text[11:19]} UTC"
    return Markup('<time datetime="{}">{}</time>').format(text, shown)


def write_number(number: float | None) -> str:
    """Write a number with commas between thousands."""
    if number is None:
        return NONE
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:,.2f}"


def write_seconds(seconds: float | None) -> str:
    """Write a duration by its greatest two units."""
    if seconds is None:
        return NONE
    if seconds < 1:
        return f"{seconds * 1_000:,.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    for size, unit, part_size, part in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part_size} {part}"
    return f"{whole // 60} min {whole % 60} s"


def seconds_since(at: str, start: str) -> float:
    """Return the seconds between two times of the API."""
    return (parse_rfc3339(at) - parse_rfc3339(start)) / SECOND


def write_delay(seconds: int) -> str:
    """Write a configured delay in seconds, without a second unit that is 0."""
    if seconds < 60:
        return f"{seconds} s"
    return re.sub(r" 0 \w+$", "", write_seconds(seconds))


def write_ms(ms: float | None) -> str:
    """Write a duration of milliseconds."""
    return NONE if ms is None else write_seconds(ms / 1_000)


def write_share(share: float | None) -> str:
    """Write a share of 1 in percent."""
    return NONE if share is None else f"{share:.1%}"


def write_spans(numbers: Iterable[int]) -> str:
    """Write ascending whole numbers, with successive ones as a span: 0 to 3, 7."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1][1:] = [number]
        else:
            spans.append([number])
    return ", ".join(" to ".join(map(str, span)) for span in spans)


def write_json(value: Any) -> str:
    """Write JSON with line ends."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def write_field_time(text: str) -> str:
    """Write a time as the value of a `datetime-local` field, rounded down to the minute."""
    return text[:16]


def write_next_minute(text: str) -> str:
    """Write a time as the value of a `datetime-local` field, in the next minute."""
    return rfc3339(parse_rfc3339(text) + MINUTE)[:16]


def read_visible(text: str) -> str:
    """Return a text, or an empty one if it has no visible character."""
    return text if any(each.isprintable() and not each.isspace() for each in text) else ""


FILTERS: dict[str, Callable[..., Any]] = {
    "time": write_time,
    "number": write_number,
    "seconds": write_seconds,
    "delay": write_delay,
    "ms": write_ms,
    "share": write_share,
    "spans": write_spans,
    "json_text": write_json,
    "visible": read_visible,
    "seconds_since": seconds_since,
}
