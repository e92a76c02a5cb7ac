"""Models: list the catalogue by kind, callbacks or credits; get a model."""

import re
from operator import attrgetter
from typing import Any, get_args

from service.api.call import AFTER_RULE, Answer, Call, answer, answer_list
from service.api.problem import require
from service.upstream import catalogue

_FIELDS = ("id", "family", "provider", "kind", "path", "credits", "parameters", "callbacks")


async def list_(call: Call) -> Answer:
    """GET /v1/models: the models that pass the filters; by id, or the cheapest first."""
    kind = call.query_choice("kind", get_args(catalogue.Kind))
    callbacks = call.query_choice("callbacks", ("true", "false"))
    models, limit = catalogue.models(), call.query_limit()
    if call.query_choice("sort", ("credits",)):
        models.sort(key=attrgetter("credits", "id"))
    ids = [model.id for model in models]
    # The cursor is a place in the whole catalogue, so it holds for any filters.
    after = call.query_text("after", "|".join(map(re.escape, ids)), AFTER_RULE)
    matches = [
        model
        for model in models[ids.index(after) + 1 if after else 0 :]
        if kind in (None, model.kind) and callbacks in (None, str(model.callbacks).lower())
    ]
    page = matches[:limit]
    return answer_list([_view(m) for m in page], page[-1].id if len(matches) > limit else None)


async def get(call: Call) -> Answer:
    """GET /v1/models/{id}; a page id such as `imagen-4` is an alias of one of its models."""
    return answer(_view(require("model", call.context.catalogue.get(call.path["id"]))))


def _view(model: catalogue.Model) -> dict[str, Any]:
    return {name: getattr(model, name) for name in _FIELDS}
