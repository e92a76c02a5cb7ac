"""The models that upstream sells: where each is asked for, what it takes and what it costs."""

import functools
import itertools
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import msgspec

MAX_PROBLEMS = 50

_OURS = "is set by genhook; name a notify_url or a subscriber to be told of the result"
RESERVED = {
    "model": "belongs beside input, not in it",
    "callback_url": _OURS,
    "callBackUrl": _OURS,
    "webhook": _OURS,
    "webhook_url": _OURS,
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

    `credits` is what the parameters' defaults cost. `parameters` is a JSON Schema (2020-12) of the
    input. `sends` is what goes into the `model` field of the request, None where the route has
    none. A result is rarely there before `usual_seconds` and usually by `p95_seconds`: the two ends
    of the speed that the model's page prints. Paths are below the base URL.
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
    sends: str | None
    notes: str
    price: Price


class Catalogue(msgspec.Struct, frozen=True):
    """Every model, sorted by id; `names` also knows the page ids, which are aliases."""

    models: tuple[Model, ...]
    names: dict[str, Model]

    def get(self, model_id: str) -> Model | None:
        """Return the model of that id or page id; None if the catalogue does not know it."""
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
    sends: bool = True
    open: bool = False
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
        own = {value: _model(page, family, value, shared) for value in family.models}
        names |= own
        names[page] = own[family.default or page]
    models = tuple(sorted({model.id: model for model in names.values()}.values(), key=_id))
    return Catalogue(models, names)


def _id(model: Model) -> str:
    return model.id


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
        sends=value if family.sends else None,
        notes=family.notes,
        price=family.price,
    )


def _schema(family: _Family, variant: _Variant, shared: dict[str, Any]) -> dict[str, Any]:
    properties = family.parameters | variant.parameters
    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {name: _parameter(given, shared) for name, given in properties.items()},
        "required": family.required if variant.required is None else variant.required,
        "additionalProperties": family.open,
    }
    return schema | {"allOf": family.rules} if family.rules else schema


def _parameter(given: str | dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    own = {"use": given} if isinstance(given, str) else given
    start = shared[own["use"]] if "use" in own else {}
    return start | {key: value for key, value in own.items() if key != "use"}


def credits(model: Model, given: dict[str, Any]) -> int:  # noqa: A001  the design's word
    """Return what upstream bills if it succeeds with this input; never raises on a strange input.

    Where the price of a combination is not known it is the model's base price.
    """
    price = model.price
    if price.per_1000_characters is not None:
        return max(model.credits, math.ceil(_characters(given) * price.per_1000_characters / 1000))
    key = " ".join(_word(_value(model, given, name)) for name in price.by)
    if price.by and key not in price.credits:
        return model.credits
    amount = price.credits.get(key, model.credits)
    if price.times is not None:
        amount *= _count(_value(model, given, price.times))
    if price.doubled_by is not None and _value(model, given, price.doubled_by) is True:
        amount *= 2
    return amount


def _value(model: Model, given: dict[str, Any], name: str) -> Any:
    return given.get(name, model.parameters["properties"][name].get("default"))


def _word(value: Any) -> str:
    # JSON's spelling: the keys of a price table read "std true" and "720p 5".
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 1
    return max(1, int(value))


def _characters(given: dict[str, Any]) -> int:
    lines = given.get("dialogue")
    if not isinstance(lines, list):
        return 0
    texts = (line.get("text") for line in lines if isinstance(line, dict))
    return sum(len(text) for text in texts if isinstance(text, str))


def problems(model: Model, given: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what upstream would refuse in this input: JSON pointers and messages, at most 50."""
    found = [(f"/{name}", message) for name, message in RESERVED.items() if name in given]
    rest = {name: value for name, value in given.items() if name not in RESERVED}
    validator = _validator(msgspec.json.encode(model.parameters))
    try:
        for error in itertools.islice(validator.iter_errors(rest), MAX_PROBLEMS):
            found.extend(_explain(model, error))
    except ValueError as error:
        found.append(("", f"cannot be checked: {error}"))
    return list(dict.fromkeys(found))[:MAX_PROBLEMS]


@functools.lru_cache(maxsize=256)
def _validator(schema: bytes) -> Any:
    # 30 ms and 6 MB that a process which only receives callbacks never pays.
    import jsonschema_rs  # noqa: PLC0415

    return jsonschema_rs.Draft202012Validator(schema.decode())


def _explain(model: Model, error: Any) -> Iterator[tuple[str, str]]:
    at, kind = _pointer(error.instance_path), error.kind.as_dict()
    match error.kind.name:
        case "additionalProperties":
            for name in kind["unexpected"]:
                yield f"{at}/{_escape(name)}", _unknown(model, error, name)
        case "required":
            yield f"{at}/{_escape(kind['property'])}", "is required"
        case _:
            yield at, _message(model, error, kind)


def _unknown(model: Model, error: Any, name: str) -> str:
    import difflib  # noqa: PLC0415  only a mistake needs it

    known = _schema_at(model.parameters, error.schema_path)["properties"]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"is not a parameter of {model.id}{hint}"


def _message(model: Model, error: Any, kind: dict[str, Any]) -> str:
    rule = _schema_at(model.parameters, error.schema_path)
    match error.kind.name:
        case "enum":
            return f"must be one of {', '.join(map(_quote, kind['options']))}"
        case "type":
            return f"must be {_article(' or '.join(kind['types']))}"
        case "minLength" | "minItems":
            return f"must have at least {_some(error, kind)}"
        case "maxLength" | "maxItems":
            return f"must have at most {_some(error, kind)}"
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


def _some(error: Any, kind: dict[str, Any]) -> str:
    noun = "character" if error.kind.name.endswith("Length") else "item"
    return f"{kind['limit']} {noun}{'' if kind['limit'] == 1 else 's'}"


def _quote(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"


def _schema_at(schema: Any, path: list[str | int]) -> dict[str, Any]:
    # The schema that holds the keyword which failed; the keyword is the path's last step.
    for step in path[:-1]:
        schema = schema[step]
    assert isinstance(schema, dict)
    return schema


def _pointer(path: list[str | int]) -> str:
    return "".join(f"/{_escape(str(step))}" for step in path)


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
