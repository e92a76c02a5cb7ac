"""Translates msgspec's message about a wrong field into a JSON pointer and a sentence."""

import re
from collections.abc import Callable

from service.api.problem import FieldError
from service.model.errors import json_pointer

# "Expected `int`, got `str` - at `$.filter.models[0]`"; `[...]` stands for any entry of an object.
_MESSAGE = re.compile(r"(?P<message>.*?)(?: - at `(?P<path>[^`]*)`)?", re.DOTALL)
_FIELD = re.compile(r"Object (?:missing required|contains unknown) field `(?P<name>[^`]*)`")
_STEP = re.compile(r"\.([^.\[]+)|\[([^\]]*)\]")
_ANY_ENTRY = "..."

_NOUNS = {
    "str": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "object": "an object",
    "array": "an array",
    "null": "null",
}
_UNITS = {"str": "character", "array": "entry", "object": "entry"}
_BOUNDS = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}
_RULES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (
        re.compile(r"Expected `([^`]*)`, got `([^`]*)`"),
        lambda match: f"must be {_to_nouns(match[1])}, not {_to_nouns(match[2])}",
    ),
    (
        re.compile(r"Expected `([^`]*)` of length (>=|<=) (\d+)"),
        lambda match: f"must have {_BOUNDS[match[2]]} {_to_count(int(match[3]), match[1])}",
    ),
    (
        re.compile(r"Expected `[^`]*` (>=|<=|>|<) (\S+)"),
        lambda match: f"must be {_BOUNDS[match[1]]} {match[2]}",
    ),
    (
        re.compile(r"Expected `str` matching regex .*", re.DOTALL),
        lambda _: "contains a character that is not allowed",
    ),
    (
        re.compile(r"Invalid enum value (.*)", re.DOTALL),
        lambda match: f"cannot be {match[1]}; /docs lists the allowed values",
    ),
)


def field_error(text: str) -> FieldError:
    """Translate a message of msgspec."""
    match = _MESSAGE.fullmatch(text)
    assert match is not None
    message, path = match["message"], match["path"] or ""
    steps = [name or index for name, index in _STEP.findall(path)]
    if field := _FIELD.match(message):
        steps.append(field["name"])
        message = "is required" if "missing" in message else "is not a field of this request"
        return FieldError(json_pointer(*steps), message)
    for pattern, translate in _RULES:
        if rule_match := pattern.fullmatch(message):
            message = translate(rule_match)
    if _ANY_ENTRY in steps:
        steps = steps[: steps.index(_ANY_ENTRY)]
        message = f"has an entry that {message}"
    return FieldError(json_pointer(*steps), message)


def _to_nouns(types: str) -> str:
    return " or ".join(_NOUNS.get(each, each) for each in types.split(" | "))


def _to_count(number: int, type_: str) -> str:
    unit = _UNITS.get(type_, "item")
    plural = unit.removesuffix("y") + "ies" if unit.endswith("y") else f"{unit}s"
    return f"{number} {unit if number == 1 else plural}"
