"""Misbehaviour on request: `[sandbox: fail, delay=5]` written in a prompt."""

import dataclasses
import re
from typing import Any

_MARK = re.compile(r"\[sandbox:([^\]]*)(\]?)", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]{1,6}(\.[0-9]{1,3})?")


@dataclasses.dataclass(frozen=True, slots=True)
class Misbehaviour:
    """What a prompt asked for; the defaults are an upstream that behaves."""

    fail: bool = False
    lose_callback: bool = False
    duplicate: int = 1
    early: bool = False
    delay: float | None = None
    late: float = 0.0
    forge: bool = False
    partial: bool = False
    unreadable: bool = False
    rate_limit: bool = False
    lose_answer: bool = False
    sync: bool = False
    error: int = 0
    body_error: int = 0
    polls_fail: int = 0
    unknown_word: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Directive:
    """What one word does, and between which numbers its value lies, if it takes one."""

    does: str
    least: int | None = None
    most: int = 0


DIRECTIVES = {
    "fail": Directive("the task ends failed and costs nothing"),
    "lose-callback": Directive("the callback is never sent"),
    "duplicate": Directive("the callback is sent this many times in all", 1, 20),
    "early": Directive("the callback is sent before the create request is answered"),
    "delay": Directive("the work takes this many seconds", 0, 3600),
    "late": Directive("the callback comes this many seconds after completion", 0, 3600),
    "forge": Directive(
        "while the task runs, false callbacks come: one to a wrong token, one lying"
    ),
    "partial": Directive("while the task runs, a callback with a first result comes"),
    "unreadable": Directive("the callback's body is not JSON"),
    "rate-limit": Directive("the first create and the first poll are answered 429"),
    "lose-answer": Directive("the task is taken, then the connection closes without an answer"),
    "sync": Directive("the results are in the create answer, which names no task"),
    "error": Directive("the create request is answered with this status code", 300, 599),
    "body-error": Directive(
        "the create request is answered 200 with this code in its body", 300, 599
    ),
    "polls-fail": Directive("this many polls are answered 500", 1, 100),
    "unknown-word": Directive("for two polls the status is a word that nobody knows"),
}
_FRACTIONS = {"delay", "late"}


def parse(prompt: str) -> Misbehaviour:
    """What the marks in `prompt` ask for; ValueError, naming what is known, for any other word."""
    asked: dict[str, Any] = {}
    for mark in _MARK.finditer(prompt):
        if not mark[2]:
            raise ValueError("[sandbox: is not closed by ]")
        for item in mark[1].split(","):
            name, equals, value = (part.strip() for part in item.lower().partition("="))
            asked[name.replace("-", "_")] = _value(name, value if equals else None)
    return Misbehaviour(**asked)


def without_marks(prompt: str) -> str:
    """`prompt` as a person would read it, its marks cut out."""
    return " ".join(_MARK.sub(" ", prompt).split())


def _value(name: str, value: str | None) -> bool | int | float:
    directive = DIRECTIVES.get(name)
    if directive is None:
        raise ValueError(f"unknown sandbox directive {name!r}; known: {', '.join(DIRECTIVES)}")
    if directive.least is None:
        if value is not None:
            raise ValueError(f"sandbox directive {name} takes no value")
        return True
    if value is None or not _NUMBER.fullmatch(value):
        raise ValueError(f"sandbox directive {name} needs a number, for example {name}=3")
    number = float(value) if name in _FRACTIONS else _whole(name, value)
    if not directive.least <= number <= directive.most:
        raise ValueError(
            f"sandbox directive {name} goes from {directive.least} to {directive.most}"
        )
    return number


def _whole(name: str, value: str) -> int:
    if "." in value:
        raise ValueError(f"sandbox directive {name} needs a whole number")
    return int(value)
