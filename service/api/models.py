"""The catalogue of models, as clients see it."""

from typing import Any

from service.api.call import Answer, Call
from service.api.problem import not_found
from service.upstream.catalogue import Model


async def list_(call: Call) -> Answer:
    """GET /v1/models: every value that `model` may take."""
    return Answer(content={"data": [_view(m) for m in call.context.catalogue.models], "next": None})


async def get(call: Call) -> Answer:
    """GET /v1/models/{id}; a page id such as `imagen-4` finds the model that it stands for."""
    model = call.context.catalogue.get(call.path["id"])
    if model is None:
        raise not_found("model")
    return Answer(content=_view(model))


def _view(model: Model) -> dict[str, Any]:
    return {
        "id": model.id,
        "family": model.family,
        "provider": model.provider,
        "path": model.path,
        "credits": model.credits,
        "parameters": model.parameters,
        "callbacks": model.callbacks,
    }
