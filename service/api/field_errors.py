"""Translates msgspec's message about a wrong field into a JSON pointer and a sentence."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args, get_origin

import msgspec

from service.api.problem import FieldError
from service.model.errors import json_pointer

# "Expected `int`, got `str` - at `$.filter.models[0]`"; `[...]` stands for any entry of an object.
_MESSAGE = re.compile(r"(?P<message>.*?)(?: - at `(?P<path>[^`]*)`)?", re.DOTALL)
_FIELD = re.compile(r"Object (?:missing required|contains unknown) field `(?P<name>[^`]*)`")
_STEP = re.compile(r"\.([^.\[]+)|\[([^\]]*)\]")
_ANY_ENTRY = "..."
_NOT_A_CHOICE = "Invalid enum value "
_REQUIRED, _UNKNOWN = "is required", "is not a field of this request"

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
        re.compile(r"Expected `([^`]*\bint\b[^`]*)`, got `float`"),
        lambda match: f"must be {_to_nouns(match[1])}, written without a fraction or an exponent",
    ),
    (re.compile(r"(?:Number|Integer value) out of range"), lambda _: "is a number out of range"),
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
)


def field_errors(text: str, document: Any, type_: type[msgspec.Struct]) -> list[FieldError]:
    """Translate a message of msgspec, and look for more wrong fields: it names one at a time.

    Each field that it names is left out, and the rest of the document is looked at again. Of what a
    field holds, only the first fault is named.
    """
    if not isinstance(document, dict):
        return [field_error(text, type_)]
    is_required = {field.encode_name: field.required for field in msgspec.structs.fields(type_)}
    rest = {name: value for name, value in document.items() if name in is_required}
    errors = [FieldError(json_pointer(name), _UNKNOWN) for name in document if name not in rest]
    missing = [name for name in is_required if is_required[name] and name not in rest]
    errors += [FieldError(json_pointer(name), _REQUIRED) for name in missing]
    while (error := _first_error(rest, type_)) and (name := _top_name(error)) in rest:
        errors.append(error)
        del rest[name]
    return errors or [field_error(text, type_)]


def _first_error(document: dict[str, Any], type_: type[msgspec.Struct]) -> FieldError | None:
    try:
        msgspec.convert(document, type_)
    except msgspec.ValidationError as error:
        return field_error(str(error), type_, document)
    return None


def _top_name(error: FieldError) -> str:
    name = error.pointer.partition("/")[2].partition("/")[0]
    return name.replace("~1", "/").replace("~0", "~")


def field_error(text: str, type_: type[msgspec.Struct], document: Any = None) -> FieldError:
    """Translate a message of msgspec about the document, which is None if it is not known."""
    match = _MESSAGE.fullmatch(text)
    assert match is not None
    message, path = match["message"], match["path"] or ""
    steps = [name or index for name, index in _STEP.findall(path)]
    if field := _FIELD.match(message):
        steps.append(field["name"])
        message = _REQUIRED if "missing" in message else _UNKNOWN
        return FieldError(json_pointer(*steps), message)
    if message.startswith(_NOT_A_CHOICE):
        message = f"must be one of: {', '.join(_choices(type_, steps[0]))}"
    for pattern, translate in _RULES:
        if rule_match := pattern.fullmatch(message):
            message = translate(rule_match)
    if _ANY_ENTRY in steps:
        steps = steps[: steps.index(_ANY_ENTRY)]
        name = _find_entry(document, steps)
        if name is None:
            message = f"has an entry that {message}"
        else:
            steps.append(name)
    return FieldError(json_pointer(*steps), message)


def _choices(type_: type[msgspec.Struct], name: str) -> list[str]:
    """Return the values that a field, or an entry of it, may have."""
    [field] = [each for each in msgspec.structs.fields(type_) if each.encode_name == name]
    return _literals(field.type)


def _literals(hint: Any) -> list[str]:
    values = get_args(hint)
    is_literal = get_origin(hint) is Literal
    return [*values] if is_literal else [each for inner in values for each in _literals(inner)]


def _find_entry(document: Any, steps: Sequence[str]) -> str | None:
    """Return the name of the first entry that is no string, of an object that has only strings."""
    for step in steps:
        document = document[step] if isinstance(document, dict) else None
    entries = document.items() if isinstance(document, dict) else ()
    return next((name for name, value in entries if not isinstance(value, str)), None)


def _to_nouns(types: str) -> str:
    return " or ".join(_NOUNS.get(each, each) for each in types.split(" | "))


def _to_count(number: int, type_: str) -> str:
    unit = _UNITS.get(type_, "item")
    plural = unit.removesuffix("y") + "ies" if unit.endswith("y") else f"{unit}s"
    return f"{number} {unit if number == 1 else plural}"
