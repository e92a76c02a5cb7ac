"""The parameters that models accept, and their credits."""

from typing import Any

import pytest

from service.sandbox import models
from service.sandbox.models import IMAGES, MODELS, MUSIC, SPEECH, UPSCALE, VIDEOS, SandboxModel
from service.sandbox.parameters import check, count_of, credits_of, prompt_of, size_of


def model(name: str, path: str = IMAGES) -> SandboxModel:
    return MODELS[path, name]


def test_the_image_models_that_send_callbacks_are_those_whose_pages_say_so() -> None:
    suffixes = {
        each.task_id_pattern.partition("{}")[2]
        for each in models.of_route(IMAGES)
        if each.callbacks
    }
    assert suffixes == {"_flux2", "_grok", "_imagen4", "_gptimg", "_seed"}


def test_the_image_route_has_eleven_families() -> None:
    assert len({each.task_id_pattern for each in models.of_route(IMAGES)}) == 11


@pytest.mark.parametrize(
    ("name", "body", "price"),
    [
        ("imagen4-fast", {}, 4),
        ("imagen4", {}, 8),
        ("imagen4-ultra", {"num_images": 3}, 36),
        ("flux-2", {}, 5),
        ("flux-2", {"resolution": "2K"}, 7),
        ("flux-2", {"type": "flex"}, 14),
        ("flux-2", {"type": "flex", "resolution": "2K"}, 24),
        ("kling-image-o1", {"type": "ai-multi-shot"}, 16),
        ("gpt-image-1-5", {"quality": "high"}, 28),
        ("recraft-v4-pro-text-to-vector", {}, 70),
    ],
)
def test_images_cost_what_the_pages_say(name: str, body: dict[str, Any], price: int) -> None:
    assert credits_of(model(name), {"prompt": "abc", **body}) == price


def test_speech_costs_by_each_thousand_characters_begun() -> None:
    lines = [{"text": "x" * 600}, {"text": "y" * 600, "voice": "Ann"}]
    assert credits_of(model("elevenlabs-v3", SPEECH), {"dialogue": lines}) == 56


def test_a_song_costs_the_same_though_it_comes_as_two_files() -> None:
    song = model("chirp-v5", MUSIC)
    assert (count_of(song, {}), credits_of(song, {"prompt": "la"})) == (2, 12)


@pytest.mark.parametrize(
    ("body", "size"),
    [
        ({}, (1024, 1024)),
        ({"aspect_ratio": "16:9"}, (1280, 720)),
        ({"aspect_ratio": "9:16"}, (720, 1280)),
        ({"aspect_ratio": "4:3"}, (1152, 864)),
        ({"size": "3:4"}, (864, 1152)),
        ({"size": "512*768"}, (512, 768)),
        ({"image_size": "1024x512"}, (1024, 512)),
    ],
)
def test_a_size_has_several_names_and_spellings(
    body: dict[str, Any], size: tuple[int, int]
) -> None:
    assert size_of(body) == size


@pytest.mark.parametrize("size", ["7:1", "100x100", "4096x4096", "big", 5, ["1:1"]])
def test_an_unknown_size_is_refused(size: object) -> None:
    with pytest.raises(ValueError, match="size must be one of 1:1, 16:9"):
        size_of({"size": size})


def test_every_text_of_a_request_is_its_prompt() -> None:
    body = {
        "prompt": "a",
        "dialogue": [{"text": "b"}, 7, {}],
        "multi_prompt": ["c", {"prompt": "d"}],
    }
    assert prompt_of(body) == "a\nb\nc\nd"


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("imagen4", {"prompt": None}, "prompt is required"),
        ("imagen4", {"prompt": "ab"}, "prompt must have 3 to 5000 characters"),
        ("imagen4", {"prompt": 5}, "prompt must be a string"),
        ("cogview-4", {"prompt": "x" * 1001}, "prompt must have 3 to 1000 characters"),
        ("imagen4", {"aspect_ratio": "3:2"}, "aspect_ratio must be one of 1:1, 4:3"),
        ("imagen4", {"num_images": 10}, "num_images must be a whole number from 1 to 9"),
        ("imagen4", {"num_images": True}, "num_images must be a whole number"),
        ("imagen4", {"num_images": "2"}, "num_images must be a whole number"),
        ("imagen4", {"seed": "lucky"}, "seed must be a whole number"),
        ("flux-2", {"type": "turbo"}, "type must be one of pro, flex"),
        ("seedream/4.5-edit", {}, "image_urls is required"),
        ("imagen4", {"callback_url": "/callbacks"}, "callback_url must be an absolute"),
        ("imagen4", {"callback_url": "ftp://a.example/"}, "callback_url must be an absolute"),
        ("imagen4", {"callback_url": 5}, "callback_url must be an absolute"),
    ],
)
def test_a_bad_parameter_is_refused_by_name(name: str, body: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(model(name), {"prompt": "A boat", **body})


def test_models_without_callbacks_ignore_even_a_bad_callback_url() -> None:
    check(model("ideogram-v4"), {"prompt": "A boat", "callback_url": "nonsense"})


@pytest.mark.parametrize("duration", [2, 16, "5"])
def test_a_duration_out_of_range_is_refused(duration: object) -> None:
    with pytest.raises(ValueError, match="duration must be a whole number from 3 to 15"):
        check(model("kling-3", VIDEOS), {"prompt": "A boat", "duration": duration})


def test_one_model_takes_its_duration_as_a_string() -> None:
    body = {"prompt": "A boat", "duration": 8}
    with pytest.raises(ValueError, match="duration must be one of 4, 8, 12"):
        check(model("seedance-1-5-pro", VIDEOS), body)
    check(model("seedance-1-5-pro", VIDEOS), {**body, "duration": "8"})


def test_a_route_that_has_one_model_needs_no_name() -> None:
    assert models.find(UPSCALE, None).name == "image-upscale"


@pytest.mark.parametrize("name", ["dall-e", 5, ["imagen4"], "chirp-v5"])
def test_an_unknown_model_or_one_of_another_route_is_refused(name: object) -> None:
    with pytest.raises(ValueError, match="is not one of cogview-4, flux-2"):
        models.find(IMAGES, name)


def test_the_image_route_requires_a_model() -> None:
    with pytest.raises(ValueError, match="model is required"):
        models.find(IMAGES, None)
