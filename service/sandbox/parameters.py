"""Reads the body of a create request: its prompt, how many files, which size, what it costs."""

import re
from typing import Any
from urllib.parse import urlsplit

from service.sandbox.models import SPEECH, Model

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
_LEAST_PIXELS = 256
_MOST_PIXELS = 2048
_MOST_IMAGES = 9
_LEAST_PROMPT = 3


def prompt_of(body: Body) -> str:
    """Every text a person wrote for the model, in one string; empty if there is none."""
    texts = [body.get("prompt"), body.get("gpt_description_prompt")]
    for field in ("dialogue", "multi_prompt"):
        parts = body.get(field)
        texts += [
            part.get("text", part.get("prompt")) if isinstance(part, dict) else part
            for part in (parts if isinstance(parts, list) else ())
        ]
    return "\n".join(text for text in texts if isinstance(text, str))


def check(model: Model, body: Body) -> None:
    """ValueError, in words for the caller, at the first parameter that upstream would refuse."""
    for need in model.needs:
        if not any(body.get(field) for field in need.split("|")):
            raise ValueError(f"{need.replace('|', ' or ')} is required")
    _check_prompt(model, body)
    for field, allowed in model.choices.items():
        if field in body and body[field] not in allowed:
            raise ValueError(f"{field} must be one of {', '.join(allowed)}")
    for field, (least, most) in {"num_images": (1, _MOST_IMAGES), **model.ranges}.items():
        if field in body and not (_is_whole(body[field]) and least <= body[field] <= most):
            raise ValueError(f"{field} must be a whole number from {least} to {most}")
    if body.get("seed") is not None and not _is_whole(body["seed"]):
        raise ValueError("seed must be a whole number")
    size_of(body)
    if model.callbacks:
        _check_callback_url(body.get("callback_url"))


def count_of(model: Model, body: Body) -> int:
    """How many files the request makes."""
    return body.get("num_images", 1) if model.files == 1 and model.makes == "png" else model.files


def size_of(body: Body) -> tuple[int, int]:
    """Width and height in pixels; ValueError if the request names a size that nobody offers."""
    asked = body.get("image_size") or body.get("size") or body.get("aspect_ratio") or "1:1"
    if isinstance(asked, str) and asked in _SIZES:
        return _SIZES[asked]
    pixels = _PIXELS.fullmatch(asked) if isinstance(asked, str) else None
    size = (int(pixels[1]), int(pixels[2])) if pixels else (0, 0)
    if min(size) < _LEAST_PIXELS or max(size) > _MOST_PIXELS:
        raise ValueError(f"size must be one of {', '.join(_SIZES)} or from 256x256 to 2048x2048")
    return size


def credits_of(model: Model, body: Body) -> int:
    """What a success costs. Upstream bills each image, and speech by each thousand characters."""
    rows = (price for fields, price in model.prices if fields.items() <= _texts(body).items())
    if model.path == SPEECH:
        units = -(-max(len(prompt_of(body)), 1) // 1000)
    else:
        units = 1 if model.files > 1 else count_of(model, body)
    return next(rows, model.credits) * units


def _check_prompt(model: Model, body: Body) -> None:
    if not isinstance(body.get("prompt", ""), str):
        raise ValueError("prompt must be a string")  # noqa: TRY004  it is told to a client
    length = len(prompt_of(body))
    if "prompt" in model.needs and not _LEAST_PROMPT <= length <= model.prompt_most:
        raise ValueError(f"prompt must have {_LEAST_PROMPT} to {model.prompt_most} characters")


def _check_callback_url(url: object) -> None:
    if url is None:
        return
    parts = urlsplit(url) if isinstance(url, str) else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("callback_url must be an absolute http or https URL")


def _texts(body: Body) -> dict[str, str]:
    return {field: value for field, value in body.items() if isinstance(value, str)}


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
