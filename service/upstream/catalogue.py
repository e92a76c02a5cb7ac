"""The catalogue of upstream's models: their paths, parameters and credits."""

import functools
import itertools
import math
import operator
import pathlib
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from service.model.errors import json_pointer

MAX_PROBLEMS = 50
# Values in an input that is validated: the validator builds an error for each wrong one before the
# first MAX_PROBLEMS are taken. No model's page asks for a hundredth of that.
MAX_VALUES = 1_000
_HINT_CHARACTERS = 64  # Comparing longer names takes long, and none is close to a parameter's.
STATUS_PATH = "/tasks/{task_id}"  # Where to poll a task, below the base URL.
CREDITS_MAX = 1_000_000_000  # Of one generation: sums of it fit in every column, too.

# Parameters that an input may not have, each with the message that says why.
RESERVED = {"model": "belongs beside input, not in it"} | dict.fromkeys(
    ("callback_url", "callBackUrl", "webhook", "webhook_url"),
    "is set by genhook; use notify_url or a subscriber to receive the result",
)

Table = dict[str, Any]
Kind = Literal["image", "video", "audio", "tool"]
# By the beginning of the path, the longer one first: a tool changes a picture that is there.
_KINDS: dict[str, Kind] = {
    "/images/tools/": "tool",
    "/images/": "image",
    "/videos/": "video",
    "/audio/": "audio",
}
# Messages about limits by JSON Schema's keyword; a limit of 1 takes their last "s".
_LIMITS = {
    "minLength": "must have at least {} characters",
    "minItems": "must have at least {} items",
    "maxLength": "must have at most {} characters",
    "maxItems": "must have at most {} items",
    "minimum": "must be at least {}",
    "maximum": "must be at most {}",
    "exclusiveMinimum": "must be more than {}",
}


class Price(msgspec.Struct, frozen=True):
    """How credits depend on the input; catalogue.toml explains the fields."""

    by: tuple[str, ...] = ()
    credits: dict[str, int] = {}
    times: str | None = None
    doubled_by: str | None = None
    per_1000_characters: int | None = None


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One value that `model` may take."""

    id: str
    family: str  # The id of the model's page.
    provider: str
    path: str  # Where to create a task, below the base URL.
    credits: int  # The price of an input that has only defaults.
    parameters: dict[str, Any]  # A JSON Schema (2020-12) of the input.
    callbacks: bool
    # The shortest and the longest that the page gives: taken for the usual duration and the p95.
    seconds: tuple[float, float]
    sent_as: str | None  # The request's `model` field; None if it has none.
    status_path: str = STATUS_PATH
    notes: str = ""
    price: Price = Price()

    @property
    def kind(self) -> Kind:
        """What the model makes, by its path."""
        return next(kind for prefix, kind in _KINDS.items() if self.path.startswith(prefix))


@functools.cache
def load() -> dict[str, Model]:
    """Return the catalogue that ships with genhook: models by id and, as an alias, by page id."""
    import tomllib  # noqa: PLC0415  cold start

    text = pathlib.Path(__file__).with_name("catalogue.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    shared = tables.pop("shared")
    by_name: dict[str, Model] = {}
    for page, family in tables.items():
        entries, default = family.pop("models"), family.pop("default", page)
        models = {id_: _model(page, id_, family, entries[id_], shared) for id_ in entries}
        by_name |= models | {page: models[default]}
    return by_name


def models() -> list[Model]:
    """Return every model, sorted by id."""
    return [model for name, model in sorted(load().items()) if name == model.id]


def _model(
    page: str, id_: str, family: Table, entry: int | Table, shared: dict[str, Table]
) -> Model:
    """Return the model of an entry of `models`, which may add to its family or replace a part."""
    own = {"credits": entry} if isinstance(entry, int) else entry
    properties = family["parameters"] | own.get("parameters", {})
    fields = {"required": [], "model_field": True, "allow_unknown": False, **family, **own}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {name: _parameter(use, shared) for name, use in properties.items()},
        "required": fields.pop("required"),
        "additionalProperties": fields.pop("allow_unknown"),
    }
    if "rules" in fields:
        schema["allOf"] = fields.pop("rules")
    fields["sent_as"] = id_ if fields.pop("model_field") else None
    return msgspec.convert({**fields, "id": id_, "family": page, "parameters": schema}, Model)


def _parameter(entry: str | Table, shared: dict[str, Table]) -> Table:
    own = {"use": entry} if isinstance(entry, str) else {**entry}
    return (shared[own.pop("use")] if "use" in own else {}) | own


def credits(model: Model, input_: dict[str, Any]) -> int:  # noqa: A001  the glossary's word
    """Return what upstream bills for a success with this input: the base price if unknown.

    At most CREDITS_MAX: the client's numbers have no limit, those of a column do.
    """
    return min(_credits(model, input_), CREDITS_MAX)


def _credits(model: Model, input_: dict[str, Any]) -> int:
    price, schemas = model.price, model.parameters["properties"]
    defaults = {name: schema.get("default") for name, schema in schemas.items()}
    values: dict[Any, Any] = defaults | input_
    if price.per_1000_characters is not None:
        amount = math.ceil(_count_characters(values) * price.per_1000_characters / 1000)
        return max(model.credits, amount)
    key = " ".join(_price_key_part(values[name]) for name in price.by)
    if price.by and key not in price.credits:
        return model.credits
    amount = price.credits.get(key, model.credits)
    count = values.get(price.times)
    if isinstance(count, int | float) and 1 < count < math.inf:
        amount *= int(count)
    return amount * 2 if values.get(price.doubled_by) is True else amount


def _price_key_part(value: Any) -> str:
    """Write a value as in the keys of a price table: "std true", "720p 5"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _count_characters(values: dict[Any, Any]) -> int:
    lines = values.get("dialogue")
    texts = [e.get("text") for e in lines if isinstance(e, dict)] if isinstance(lines, list) else []
    return sum(len(text) for text in texts if isinstance(text, str))


def problems(model: Model | None, input_: dict[str, Any]) -> list[tuple[str, str]]:
    """Return why upstream would refuse this input: at most 50 pairs (JSON pointer, message).

    Without a model, only what no model may have in its input is refused.
    """
    if model is None:
        return _reserved(input_)
    if not _has_few_values(input_):
        return [("", f"must have at most {MAX_VALUES} values for this model, at all levels")]
    errors = _reserved(input_)
    rest = {name: value for name, value in input_.items() if name not in RESERVED}
    try:
        for error in itertools.islice(_validator(model.id).iter_errors(rest), MAX_PROBLEMS):
            errors.extend(_explain(model, error))
    except ValueError as error:
        errors.append(("", f"cannot be checked: {error}"))
    return list(dict.fromkeys(errors))[:MAX_PROBLEMS]


def _reserved(input_: dict[str, Any]) -> list[tuple[str, str]]:
    return [(f"/{name}", message) for name, message in RESERVED.items() if name in input_]


def _has_few_values(input_: dict[str, Any]) -> bool:
    """Whether there are at most MAX_VALUES values; stops counting at the first one over it."""
    count, unseen = 0, list[Any]([input_])
    while unseen:
        group = unseen.pop()
        count += len(group)
        if count > MAX_VALUES:
            return False
        children = group.values() if isinstance(group, dict) else group
        unseen += [child for child in children if isinstance(child, dict | list)]
    return True


@functools.cache
def _validator(model_id: str) -> Any:
    # Imported late: it takes 30 ms and 6 MB, and only some processes check inputs.
    import jsonschema_rs  # noqa: PLC0415

    return jsonschema_rs.Draft202012Validator(load()[model_id].parameters)


def _explain(model: Model, error: Any) -> Iterator[tuple[str, str]]:
    path, name, kind = error.instance_path, error.kind.name, error.kind.as_dict()
    rule = functools.reduce(operator.getitem, error.schema_path[:-1], model.parameters)
    if name == "required":
        yield json_pointer(*path, kind["property"]), "is required"
    elif name == "additionalProperties":
        for unknown in kind["unexpected"][:MAX_PROBLEMS]:
            hint = _hint(unknown, rule["properties"])
            yield json_pointer(*path, unknown), f"is not a parameter of {model.id}{hint}"
    else:
        yield json_pointer(*path), _message(name, kind, rule)


def _hint(unknown: str, known: Table) -> str:
    import difflib  # noqa: PLC0415  only for an unknown name

    is_short = len(unknown) <= _HINT_CHARACTERS
    matches = difflib.get_close_matches(unknown, known, n=1) if is_short else []
    return f"; did you mean {matches[0]}?" if matches else ""


def _message(name: str, kind: dict[str, Any], rule: dict[str, Any]) -> str:
    match name:
        case "enum":
            options = [msgspec.json.encode(option).decode() for option in kind["options"]]
            return f"must be one of {', '.join(options)}"
        case "type":
            types = " or ".join(kind["types"])
            return f"must be {'an' if types[0] in 'aeio' else 'a'} {types}"
        case "pattern":
            return f"must look like {rule.get('examples', [kind['pattern']])[0]}"
        case name if name in _LIMITS:
            message = _LIMITS[name].format(kind["limit"])
            return message.removesuffix("s") if kind["limit"] == 1 else message
        case _:
            return str(rule.get("description", f"breaks the rule {name}"))
