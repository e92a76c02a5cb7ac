"""Misbehaviour on request: `[sandbox: fail, delay=5]` written in a prompt."""

import dataclasses
import re
from typing import Any

_MARK = re.compile(r"\[sandbox:([^\]]*)(\]?)", re.IGNORECASE)
_WITHOUT_COLON = re.compile(r"\[sandbox\b(?!:)", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]{1,6}(\.[0-9]{1,3})?")


@dataclasses.dataclass(frozen=True, slots=True)
class Misbehaviour:
    """The misbehaviour that a prompt requests; by default none. Times are in seconds."""

    fail: bool = False
    lose_callback: bool = False
    duplicate: int = 1  # How many times each callback is sent.
    early: bool = False
    delay: float | None = None
    late: float = 0.0
    forge: bool = False
    partial: bool = False
    unreadable: bool = False
    rate_limit: bool = False
    lose_answer: bool = False
    sync: bool = False
    error: int = 0  # A status code.
    body_error: int = 0  # A code in the body.
    polls_fail: int = 0  # How many polls fail.
    unknown_word: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Directive:
    """The effect of a directive and the range of its value; it takes no value without a minimum."""

    effect: str
    minimum: int | None = None
    maximum: int = 0


DIRECTIVES = {
    "fail": Directive("the task fails and costs nothing"),
    "lose-callback": Directive("the callback is never sent"),
    "duplicate": Directive("the callback is sent this many times in all", 1, 20),
    "early": Directive("the callback is sent before the create request is answered"),
    "delay": Directive("the work takes this many seconds", 0, 3600),
    "late": Directive("the callback is sent this many seconds after completion", 0, 3600),
    "forge": Directive(
        "while the task runs, two false callbacks are sent: wrong token, false content"
    ),
    "partial": Directive("while the task runs, a callback with the first result is sent"),
    "unreadable": Directive("the callback's body is not JSON"),
    "rate-limit": Directive("the first create request and the first poll are answered with 429"),
    "lose-answer": Directive("the task is accepted, then the connection closes amid the answer"),
    "sync": Directive("the answer to the create request has the results and no task"),
    "error": Directive("the create request is answered with this status code", 300, 599),
    "body-error": Directive(
        "the create request is answered with 200 and this code in the body", 300, 599
    ),
    "polls-fail": Directive("this many polls are answered with 500", 1, 100),
    "unknown-word": Directive("for two polls the status is an unknown word"),
}
_FRACTIONAL = {"delay", "late"}


def parse(prompt: str) -> Misbehaviour:
    """Read the marks in `prompt`; ValueError for an unknown or wrong directive."""
    fields: dict[str, Any] = {}
    if _WITHOUT_COLON.search(prompt):
        raise ValueError("[sandbox needs a colon behind it, for example [sandbox: fail]")
    for mark in _MARK.finditer(prompt):
        if not mark[2]:
            raise ValueError("[sandbox: is not closed by ]")
        for item in mark[1].split(","):
            name, equals, value = (part.strip() for part in item.lower().partition("="))
            field = name.replace("-", "_")
            if field in fields:
                raise ValueError(f"sandbox directive {name} is given twice")
            fields[field] = _value(name, value if equals else None)
    return Misbehaviour(**fields)


def without_marks(prompt: str) -> str:
    """Return `prompt` without its marks."""
    return " ".join(_MARK.sub(" ", prompt).split())


def _value(name: str, value: str | None) -> bool | int | float:
    directive = DIRECTIVES.get(name)
    if directive is None:
        raise ValueError(f"unknown sandbox directive {name!r}; known: {', '.join(DIRECTIVES)}")
    if directive.minimum is None:
        if value is not None:
            raise ValueError(f"sandbox directive {name} takes no value")
        return True
    if value is None or not _NUMBER.fullmatch(value):
        raise ValueError(f"sandbox directive {name} needs a number, for example {name}=3")
    if "." in value and name not in _FRACTIONAL:
        raise ValueError(f"sandbox directive {name} needs a whole number")
    number = float(value) if name in _FRACTIONAL else int(value)
    if not directive.minimum <= number <= directive.maximum:
        raise ValueError(
            f"sandbox directive {name} goes from {directive.minimum} to {directive.maximum}"
        )
    return number
