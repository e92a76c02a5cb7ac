"""Models: list the catalogue, get a model."""

from typing import Any

from service.api.call import Answer, Call, answer, answer_list
from service.api.problem import require
from service.upstream import catalogue

_FIELDS = ("id", "family", "provider", "path", "credits", "parameters", "callbacks")


async def list_(_call: Call) -> Answer:
    """GET /v1/models: every model, not paged."""
    return answer_list([_view(model) for model in catalogue.models()])


async def get(call: Call) -> Answer:
    """GET /v1/models/{id}; a page id such as `imagen-4` is an alias of one of its models."""
    return answer(_view(require("model", call.context.catalogue.get(call.path["id"]))))


def _view(model: catalogue.Model) -> dict[str, Any]:
    return {name: getattr(model, name) for name in _FIELDS}
