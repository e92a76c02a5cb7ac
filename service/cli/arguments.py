"""What the commands' parsers share: examples, common options and how values are read."""

import argparse
import contextlib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from service.model.number import read_decimal, read_whole

Run = Callable[[argparse.Namespace], int]  # A command; it returns the exit status.
NUMBER_SHOWN = 40  # So many characters of a wrong number.
NULL = object()  # JSON's `null`; None means that the option is not given.


class StoreOnce(argparse.Action):
    """Keep the value of an argument; argparse itself would take the last of several unnoticed."""

    is_given = False

    def __call__(self, _parser: object, options: Any, value: Any, _flag: object = None) -> None:
        """Keep the value; ArgumentError if there was one before."""
        if self.is_given:
            raise argparse.ArgumentError(self, "is given twice: give it once")
        self.is_given = True
        setattr(options, self.dest, self.const if self.nargs == 0 else value)


class StoreTrueOnce(StoreOnce):
    """A flag without a value, which is refused if it is given twice, as every option."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, const=True, default=False, **options)


def to_sentence(text: str) -> str:
    """Return a text with a capital letter and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def define(parser: argparse.ArgumentParser, run: Run, example: str) -> None:
    """Let the parser's command run this function, and end its help with this example."""
    parser.set_defaults(run=run)
    parser.epilog = f"example:\n  {example}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def check(condition: bool, message: str) -> None:  # noqa: FBT001  it reads like `assert`
    """Refuse an option's value unless the condition holds; argparse prints the message."""
    if not condition:
        raise argparse.ArgumentTypeError(message)


def parse_number(text: str, low: float, high: float) -> float:
    """Read a number from `low` to `high`."""
    value = read_decimal(text)
    if value is None or not low <= value <= high:
        raise argparse.ArgumentTypeError(f"must be a number from {low:g} to {high:g}, in digits")
    return value


def parse_whole(text: str, low: int = 0) -> int:
    """Read a whole number from `low` on."""
    value = read_whole(text)
    if value is None or value < low:
        message = f"must be a whole number, at least {low}, of up to 20 digits"
        raise argparse.ArgumentTypeError(message)
    return value


def parse_count(text: str) -> int:
    """Read how many there may be: at least one."""
    return parse_whole(text, low=1)


def parse_size(text: str) -> int:
    """Read a number of bytes, at least 1."""
    value = read_whole(text)
    if not value:
        raise argparse.ArgumentTypeError("must be a whole number of bytes, at least 1")
    return value


def split_commas(text: str) -> list[str]:
    """Split a text at its commas."""
    return [part.strip() for part in text.split(",")]


def parse_name(text: str) -> str:
    """Read the name of a key."""
    check(1 <= len(text) <= 100 and text.isprintable(), "must be 1 to 100 printable characters")
    return text


def parse_idempotency_key(text: str) -> str:
    """Read an idempotency key, which becomes a header."""
    check(bool(re.fullmatch(r"[!-~]{1,255}", text)), "must be 1 to 255 visible ASCII characters")
    return text


def parse_scopes(text: str) -> list[str]:
    """Read scopes that are separated by commas."""
    from service.model.key import SCOPES

    unique = list(dict.fromkeys(split_commas(text)))
    check(set(unique) <= {*SCOPES}, f"must be one or more of {', '.join(SCOPES)}, with commas")
    return unique


def parse_model(text: str) -> str:
    """Read the id of a model, which becomes the end of a URL's path: it may have slashes."""
    is_plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*", text)
    check(bool(is_plain) and len(text) <= 100, "must be the id of a model, such as imagen4-fast")
    return text


def parse_pair(text: str) -> tuple[str, str]:
    """Read a name and a value with a `=` between them."""
    name, equals, value = text.partition("=")
    check(bool(name and equals), "must be a name and a value, such as order=1042")
    return name, value


def parse_pair_or_none(text: str) -> tuple[str, ...]:
    """Read a name and a value as `parse_pair` does, or `none`, which is no pair."""
    return () if text == "none" else parse_pair(text)


def parse_list(text: str) -> list[str]:
    """Split a text at its commas; `all` is the empty list, which the API takes for all."""
    parts = split_commas(text)
    check(parts == ["all"] or not {"all", ""} & {*parts}, "must be names with commas, or all")
    return [] if parts == ["all"] else parts


def parse_seconds(text: str) -> list[int]:
    """Read whole seconds that are separated by commas."""
    values = [value for part in split_commas(text) if (value := read_whole(part)) is not None]
    rule = "must be whole numbers, at least 0 each, with single commas, such as 0,5,300"
    check(len(values) == text.count(",") + 1, rule)
    return values


def parse_flag(text: str) -> bool:
    """Read `true` or `false`."""
    check(text in ("true", "false"), "must be true or false")
    return text == "true"


def parse_limit(text: str) -> object:
    """Read a positive number, or `none` for no limit, which is NULL."""
    if text == "none":
        return NULL
    value = read_decimal(text)
    is_limit = value is not None and 0 < value < math.inf
    check(is_limit, "must be a positive number in digits, such as 0.5, or none")
    return value


def parse_json_object(text: str) -> dict[str, Any]:
    """Read a JSON object, in which no object has a name twice."""
    import msgspec

    from service.model.json_names import find_repeated

    value: Any = None
    name: str | None = None
    try:
        decoded = msgspec.json.decode(text)
        name, value = find_repeated(text.encode(), decoded), decoded
    except (ValueError, RecursionError):  # No JSON, or nested too deeply.
        number = _find_wrong_number(text)
        check(number is None, f"must be a JSON object, and {number} is no number that it can have")
    check(isinstance(value, dict), "must be a JSON object, such as '{\"num_images\": 2}'")
    check(name is None, "must be a JSON object with every name once")
    return dict(value)


def _find_wrong_number(text: str) -> str | None:
    """Return the first number of a JSON text that is none for JSON, as NaN, or is out of range."""
    import json

    import msgspec

    wrong: list[str] = []

    def look(number: str) -> None:
        try:
            msgspec.json.decode(number)
        except msgspec.DecodeError:
            wrong.append(number if len(number) <= NUMBER_SHOWN else f"{number[:NUMBER_SHOWN]}…")

    with contextlib.suppress(ValueError, RecursionError):
        json.loads(text, parse_float=look, parse_int=look, parse_constant=look)
    return next(iter(wrong), None)
