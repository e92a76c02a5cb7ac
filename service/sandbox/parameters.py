"""Reads the body of a create request: its prompt, number of files, size and cost."""

import re
from typing import Any
from urllib.parse import urlsplit

from service.sandbox.models import SPEECH, SandboxModel

Body = dict[str, Any]

_SIZES = {
    "1:1": (1024, 1024),
    "16:9": (1280, 720),
    "9:16": (720, 1280),
    "4:3": (1152, 864),
    "3:4": (864, 1152),
    "3:2": (1248, 832),
    "2:3": (832, 1248),
    "21:9": (1344, 576),
}
_PIXELS = re.compile(r"([0-9]{3,4})[x*]([0-9]{3,4})")
_PIXELS_MIN = 256
_PIXELS_MAX = 2048
_IMAGES_MAX = 9
_PROMPT_LENGTH_MIN = 3


def prompt_of(body: Body) -> str:
    """Return all texts for the model in one string."""
    texts = [body.get("prompt"), body.get("gpt_description_prompt")]
    for field in ("dialogue", "multi_prompt"):
        parts = body.get(field)
        texts += [
            part.get("text", part.get("prompt")) if isinstance(part, dict) else part
            for part in (parts if isinstance(parts, list) else ())
        ]
    return "\n".join(text for text in texts if isinstance(text, str))


def check(model: SandboxModel, body: Body) -> None:
    """Raise ValueError for the first wrong parameter, with a message for the client."""
    for names in model.required:
        if not any(body.get(name) for name in names.split("|")):
            raise ValueError(f"{names.replace('|', ' or ')} is required")
    _check_prompt(model, body)
    for field, allowed in model.choices.items():
        if field in body and body[field] not in allowed:
            raise ValueError(f"{field} must be one of {', '.join(allowed)}")
    for field, (minimum, maximum) in {"num_images": (1, _IMAGES_MAX), **model.ranges}.items():
        if field in body and not (
            _is_whole_number(body[field]) and minimum <= body[field] <= maximum
        ):
            raise ValueError(f"{field} must be a whole number from {minimum} to {maximum}")
    if body.get("seed") is not None and not _is_whole_number(body["seed"]):
        raise ValueError("seed must be a whole number")
    size_of(body)
    if model.callbacks:
        _check_callback_url(body.get("callback_url"))


def count_of(model: SandboxModel, body: Body) -> int:
    """Return how many files the request creates."""
    has_num_images = model.files == 1 and model.extension == "png"
    return body.get("num_images", 1) if has_num_images else model.files


def size_of(body: Body) -> tuple[int, int]:
    """Return width and height in pixels; ValueError for an unknown size."""
    text = body.get("image_size") or body.get("size") or body.get("aspect_ratio") or "1:1"
    if isinstance(text, str) and text in _SIZES:
        return _SIZES[text]
    pixels = _PIXELS.fullmatch(text) if isinstance(text, str) else None
    size = (int(pixels[1]), int(pixels[2])) if pixels else (0, 0)
    if min(size) < _PIXELS_MIN or max(size) > _PIXELS_MAX:
        raise ValueError(f"size must be one of {', '.join(_SIZES)} or from 256x256 to 2048x2048")
    return size


def credits_of(model: SandboxModel, body: Body) -> int:
    """Return what a success costs. Images are billed singly, speech per 1000 characters."""
    prices = (
        price
        for fields, price in model.prices
        if all(body.get(name) == value for name, value in fields.items())
    )
    if model.path == SPEECH:
        units = -(-max(len(prompt_of(body)), 1) // 1000)
    else:
        units = 1 if model.files > 1 else count_of(model, body)
    return next(prices, model.credits) * units


def _check_prompt(model: SandboxModel, body: Body) -> None:
    if not isinstance(body.get("prompt", ""), str):
        raise ValueError("prompt must be a string")  # noqa: TRY004  for the client
    length = len(prompt_of(body))
    if "prompt" in model.required and not _PROMPT_LENGTH_MIN <= length <= model.prompt_length_max:
        raise ValueError(
            f"prompt must have {_PROMPT_LENGTH_MIN} to {model.prompt_length_max} characters"
        )


def _check_callback_url(url: object) -> None:
    if url is None:
        return
    parts = urlsplit(url) if isinstance(url, str) else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("callback_url must be an absolute http or https URL")


def _is_whole_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
