"""The request that submits a generation."""

from typing import Any

from service.context import Context
from service.model.generation import Generation
from service.upstream.callback_url import callback_url

UNKNOWN_MODEL_PATH = "/images/generations"


def request_of(context: Context, generation: Generation) -> tuple[str, dict[str, Any]]:
    """Return the path and the body of the request that submits a generation."""
    model = context.catalogue.get(generation.model)
    url = None
    if model is None or model.callbacks:
        url = callback_url(context.tokens, context.settings.public_url, generation)
    fields = {"model": model.sent_as if model else generation.model, "callback_url": url}
    body = generation.input | {name: value for name, value in fields.items() if value is not None}
    return model.path if model else UNKNOWN_MODEL_PATH, body
