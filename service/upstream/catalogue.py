"""The catalogue of upstream's models: their paths, parameters and credits."""

import functools
import itertools
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import msgspec

from service.model.errors import json_pointer

MAX_PROBLEMS = 50

_SET_BY_GENHOOK = "is set by genhook; use notify_url or a subscriber to receive the result"
# Parameters that an input may not have, each with the message that says why.
RESERVED = {
    "model": "belongs beside input, not in it",
    "callback_url": _SET_BY_GENHOOK,
    "callBackUrl": _SET_BY_GENHOOK,
    "webhook": _SET_BY_GENHOOK,
    "webhook_url": _SET_BY_GENHOOK,
}


class Price(msgspec.Struct, frozen=True):
    """How credits depend on the input; catalogue.toml explains the fields."""

    by: tuple[str, ...] = ()
    credits: dict[str, int] = {}
    times: str | None = None
    doubled_by: str | None = None
    per_1000_characters: int | None = None


class Model(msgspec.Struct, frozen=True):
    """One value that `model` may take.

    family: the id of the model's page.
    path, status_path: where to create a task and where to poll it, below the base URL.
    credits: the price of an input that has only defaults.
    parameters: a JSON Schema (2020-12) of the input.
    usual_seconds, p95_seconds: the shortest and the longest duration that the model's page gives.
    sent_as: the request's `model` field; None if the route has no such field.
    """

    id: str
    family: str
    provider: str
    path: str
    status_path: str
    credits: int
    parameters: dict[str, Any]
    callbacks: bool
    usual_seconds: float
    p95_seconds: float
    sent_as: str | None
    notes: str
    price: Price


class Catalogue(msgspec.Struct, frozen=True):
    """Every model, sorted by id. `names` maps each model id and, as an alias, each page id."""

    models: tuple[Model, ...]
    names: dict[str, Model]

    def get(self, model_id: str) -> Model | None:
        """Return the model with this id or page id; None if there is none."""
        return self.names.get(model_id)


class _Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    credits: int
    required: list[str] | None = None
    parameters: dict[str, str | dict[str, Any]] = {}


class _Family(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    provider: str
    path: str
    callbacks: bool
    seconds: tuple[float, float]
    models: dict[str, int | _Variant]
    parameters: dict[str, str | dict[str, Any]]
    required: list[str] = []
    rules: list[dict[str, Any]] = []
    price: Price = Price()
    default: str | None = None
    status_path: str = "/tasks/{task_id}"
    model_field: bool = True
    allow_unknown: bool = False
    notes: str = ""


@functools.cache
def load() -> Catalogue:
    """Return the catalogue that ships with genhook, read once."""
    import tomllib  # noqa: PLC0415  cold start

    text = pathlib.Path(__file__).with_name("catalogue.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    shared = tables.pop("shared")
    names: dict[str, Model] = {}
    for page, family in msgspec.convert(tables, dict[str, _Family]).items():
        models = {value: _model(page, family, value, shared) for value in family.models}
        names |= models
        names[page] = models[family.default or page]
    by_id = {model.id: model for model in names.values()}
    return Catalogue(tuple(by_id[id_] for id_ in sorted(by_id)), names)


def _model(page: str, family: _Family, value: str, shared: dict[str, Any]) -> Model:
    entry = family.models[value]
    variant = _Variant(credits=entry) if isinstance(entry, int) else entry
    return Model(
        id=value,
        family=page,
        provider=family.provider,
        path=family.path,
        status_path=family.status_path,
        credits=variant.credits,
        parameters=_schema(family, variant, shared),
        callbacks=family.callbacks,
        usual_seconds=family.seconds[0],
        p95_seconds=family.seconds[1],
        sent_as=value if family.model_field else None,
        notes=family.notes,
        price=family.price,
    )


def _schema(family: _Family, variant: _Variant, shared: dict[str, Any]) -> dict[str, Any]:
    properties = family.parameters | variant.parameters
    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {name: _parameter(entry, shared) for name, entry in properties.items()},
        "required": family.required if variant.required is None else variant.required,
        "additionalProperties": family.allow_unknown,
    }
    return schema | {"allOf": family.rules} if family.rules else schema


def _parameter(entry: str | dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    own = {"use": entry} if isinstance(entry, str) else entry
    base = shared[own["use"]] if "use" in own else {}
    return base | {key: value for key, value in own.items() if key != "use"}


def credits(model: Model, input_: dict[str, Any]) -> int:  # noqa: A001  the glossary's word
    """Return what upstream bills for a success with this input; never raises.

    An unknown combination of parameters has the model's base price.
    """
    price = model.price
    if price.per_1000_characters is not None:
        return max(
            model.credits, math.ceil(_count_characters(input_) * price.per_1000_characters / 1000)
        )
    key = " ".join(_price_key_part(_parameter_value(model, input_, name)) for name in price.by)
    if price.by and key not in price.credits:
        return model.credits
    amount = price.credits.get(key, model.credits)
    if price.times is not None:
        amount *= _multiplier(_parameter_value(model, input_, price.times))
    if price.doubled_by is not None and _parameter_value(model, input_, price.doubled_by) is True:
        amount *= 2
    return amount


def _parameter_value(model: Model, input_: dict[str, Any], name: str) -> Any:
    return input_.get(name, model.parameters["properties"][name].get("default"))


def _price_key_part(value: Any) -> str:
    """Write a value as in the keys of a price table: "std true", "720p 5"."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _multiplier(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 1
    return max(1, int(value))


def _count_characters(input_: dict[str, Any]) -> int:
    lines = input_.get("dialogue")
    if not isinstance(lines, list):
        return 0
    texts = (line.get("text") for line in lines if isinstance(line, dict))
    return sum(len(text) for text in texts if isinstance(text, str))


def problems(model: Model, input_: dict[str, Any]) -> list[tuple[str, str]]:
    """Return why upstream would refuse this input: at most 50 pairs (JSON pointer, message)."""
    errors = [(f"/{name}", message) for name, message in RESERVED.items() if name in input_]
    rest = {name: value for name, value in input_.items() if name not in RESERVED}
    validator = _validator(msgspec.json.encode(model.parameters))
    try:
        for error in itertools.islice(validator.iter_errors(rest), MAX_PROBLEMS):
            errors.extend(_explain(model, error))
    except ValueError as error:
        errors.append(("", f"cannot be checked: {error}"))
    return list(dict.fromkeys(errors))[:MAX_PROBLEMS]


@functools.lru_cache(maxsize=256)
def _validator(schema: bytes) -> Any:
    # Imported late: it takes 30 ms and 6 MB, and only some processes check inputs.
    import jsonschema_rs  # noqa: PLC0415

    return jsonschema_rs.Draft202012Validator(schema.decode())


def _explain(model: Model, error: Any) -> Iterator[tuple[str, str]]:
    path, kind = error.instance_path, error.kind.as_dict()
    match error.kind.name:
        case "additionalProperties":
            for name in kind["unexpected"]:
                yield json_pointer(*path, name), _unknown_parameter(model, error, name)
        case "required":
            yield json_pointer(*path, kind["property"]), "is required"
        case _:
            yield json_pointer(*path), _message(model, error, kind)


def _unknown_parameter(model: Model, error: Any, name: str) -> str:
    import difflib  # noqa: PLC0415  only for an unknown name

    known_names = _parent_schema(model.parameters, error.schema_path)["properties"]
    matches = difflib.get_close_matches(name, known_names, n=1)
    hint = f"; did you mean {matches[0]}?" if matches else ""
    return f"is not a parameter of {model.id}{hint}"


def _message(model: Model, error: Any, kind: dict[str, Any]) -> str:
    rule = _parent_schema(model.parameters, error.schema_path)
    match error.kind.name:
        case "enum":
            return f"must be one of {', '.join(map(_quote, kind['options']))}"
        case "type":
            return f"must be {_with_article(' or '.join(kind['types']))}"
        case "minLength" | "minItems":
            return f"must have at least {_quantity(error, kind)}"
        case "maxLength" | "maxItems":
            return f"must have at most {_quantity(error, kind)}"
        case "minimum":
            return f"must be at least {kind['limit']}"
        case "maximum":
            return f"must be at most {kind['limit']}"
        case "exclusiveMinimum":
            return f"must be more than {kind['limit']}"
        case "pattern":
            return f"must look like {rule.get('examples', [kind['pattern']])[0]}"
        case name:
            return str(rule.get("description", f"breaks the rule {name}"))


def _quantity(error: Any, kind: dict[str, Any]) -> str:
    noun = "character" if error.kind.name.endswith("Length") else "item"
    return f"{kind['limit']} {noun}{'' if kind['limit'] == 1 else 's'}"


def _quote(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"


def _parent_schema(schema: Any, keyword_path: list[str | int]) -> dict[str, Any]:
    """Return the part of `schema` that contains the keyword at the end of `keyword_path`."""
    for step in keyword_path[:-1]:
        schema = schema[step]
    assert isinstance(schema, dict)
    return schema
