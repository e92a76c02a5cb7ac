"""The catalogue agrees with the pages that it was copied from, and checks inputs."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.upstream import catalogue
from service.upstream.catalogue import Model

IMAGES = "/images/generations"
EVERY_MODEL = catalogue.models()
URL = "https://example.com/a.png"

# page id, value in the page's example, provider, base credits, callbacks
PAGES = [
    ("cogview-4", "cogview-4", "Zhipu AI / WaveSpeed", 4, False),
    ("flux-2", "flux-2", "Black Forest Labs", 5, True),
    ("grok-imagine", "grok-imagine/text-to-image", "xAI", 5, True),
    ("kling-image-o1", "kling-image-o1", "Kuaishou / WaveSpeed", 6, False),
    ("ideogram-v3", "ideogram-v3-turbo", "Ideogram", 8, False),
    ("imagen-4", "imagen4", "Google", 8, True),
    ("gpt-image-1.5-official", "gpt-image-1-5", "OpenAI", 10, True),
    ("recraft-v4", "recraft-v4-text-to-image", "Recraft", 10, False),
    ("ideogram-v4", "ideogram-v4", "Ideogram", 12, False),
    ("seedream-4-5", "seedream/4.5-text-to-image", "ByteDance / KIE", 12, True),
    ("hunyuan-image-3", "hunyuan-image-3", "Tencent / WaveSpeed", 25, False),
]

# For every value of `model`: an accepted input, minimal or the page's example, and its credits.
EXAMPLES: dict[str, tuple[dict[str, Any], int]] = {
    "bg-remover": ({"image": URL}, 1),
    "chirp-v3-5": ({"gpt_description_prompt": "a cheerful song"}, 5),
    "chirp-v4-0": ({"prompt": "la la", "title": "La"}, 8),
    "chirp-v4-5": ({"prompt": "la" * 2500, "style": "pop" * 300}, 10),
    "chirp-v4-5-plus": ({"prompt": "la", "gender": "female"}, 10),
    "chirp-v5": ({"prompt": "la", "tags": "drums"}, 12),
    "chirp-v5-5": ({"prompt": "la", "style_weight": 0.5}, 12),
    "cogview-4": ({"prompt": "A robot", "size": "1024*1024", "quality": "hd"}, 4),
    "elevenlabs-v3": ({"dialogue": [{"text": "Hello.", "voice": "narrator"}]}, 1),
    "face-swap": ({"image": URL, "face_image": URL, "target_index": 10}, 4),
    "flux-2": ({"prompt": "A garden", "type": "pro", "input_urls": [URL] * 8}, 5),
    "gpt-image-1-5": ({"prompt": "A logo", "quality": "medium", "aspect_ratio": "3:2"}, 10),
    "grok-imagine/text-to-image": ({"prompt": "An astronaut"}, 5),
    "grok-imagine/upscale": ({"task_id": "n31abcd_grok"}, 12),
    "hunyuan-image-3": ({"prompt": "A pond", "size": "1024*1024", "seed": -1}, 25),
    "ideogram-v3-balanced": ({"prompt": "A poster", "style": "Design"}, 13),
    "ideogram-v3-quality": ({"prompt": "A poster", "reference_images": [URL]}, 20),
    "ideogram-v3-turbo": ({"prompt": "A poster", "aspect_ratio": "3:4"}, 8),
    "ideogram-v4": ({"prompt": "A poster", "rendering_speed": "BALANCED"}, 12),
    "image-upscale": ({"image": URL}, 1),
    "imagen4": ({"prompt": "A bowl of ramen", "aspect_ratio": "1:1"}, 8),
    "imagen4-fast": ({"prompt": "A bowl of ramen", "negative_prompt": "spoon"}, 4),
    "imagen4-ultra": ({"prompt": "A bowl of ramen", "seed": 7}, 12),
    "kling-3": ({"prompt": "A retriever", "mode": "std", "duration": 5, "sound": True}, 300),
    "kling-image-o1": ({"prompt": "A city", "images": [URL], "resolution": "1k"}, 6),
    "pixverse-5-6": ({"prompt": "A dragon", "resolution": "720p", "duration": 5}, 90),
    "recraft-v4-pro-text-to-image": ({"prompt": "A mountain"}, 60),
    "recraft-v4-pro-text-to-vector": ({"prompt": "A mountain"}, 70),
    "recraft-v4-text-to-image": ({"prompt": "A mountain", "image_size": "1024x1024"}, 10),
    "recraft-v4-text-to-vector": ({"prompt": "A mountain"}, 20),
    "seedance-1-5-pro": ({"prompt": "A dancer", "resolution": "720p", "duration": "8"}, 28),
    "seedream/4.5-edit": ({"prompt": "Add snow", "image_urls": [URL]}, 12),
    "seedream/4.5-text-to-image": ({"prompt": "A lake", "quality": "high"}, 12),
    "suno-cover": ({"task_id": "gen123bksv"}, 1),
    "suno-extend": ({"origin_task_id": "gen1ksv", "extend_audio_index": 0}, 5),
    "suno-timestamped-lyrics": ({"task_id": "gen1ksv", "audio_id": "song_a"}, 2),
    "suno-upload-cover": ({"audio_id": "aud1"}, 8),
}


def find_model(name: str) -> Model:
    entry = catalogue.load().get(name)
    assert entry is not None
    return entry


def problems(name: str, **input_: Any) -> list[tuple[str, str]]:
    return catalogue.problems(find_model(name), input_)


def test_the_images_endpoint_has_eleven_models_and_five_with_callbacks() -> None:
    families = {model.family: model.callbacks for model in EVERY_MODEL if model.path == IMAGES}
    assert len(families) == 11
    assert sum(families.values()) == 5


def test_imagen_4_is_the_sixth_by_base_credits() -> None:
    families = {model.family for model in EVERY_MODEL if model.path == IMAGES}
    ranked = sorted(families, key=lambda page: (find_model(page).credits, page))
    assert ranked.index("imagen-4") + 1 == 6


@pytest.mark.parametrize(("page", "example", "provider", "base", "callbacks"), PAGES)
def test_a_page_id_stands_for_the_value_in_its_example(
    page: str,
    example: str,
    provider: str,
    base: int,
    callbacks: bool,  # noqa: FBT001  a column of the table
) -> None:
    entry = find_model(page)
    assert (entry.id, entry.sent_as, entry.family) == (example, example, page)
    assert (entry.provider, entry.credits, entry.callbacks) == (provider, base, callbacks)
    assert (entry.path, entry.status_path) == (IMAGES, "/tasks/{task_id}")


def test_every_value_of_model_has_an_example_here() -> None:
    assert sorted(EXAMPLES) == [model.id for model in EVERY_MODEL]


@pytest.mark.parametrize("model", EVERY_MODEL, ids=lambda model: model.id)
def test_an_example_is_accepted_and_priced(model: Model) -> None:
    example, cost = EXAMPLES[model.id]
    assert catalogue.problems(model, example) == []
    assert catalogue.credits(model, example) == cost


@pytest.mark.parametrize("model", EVERY_MODEL, ids=lambda model: model.id)
def test_the_base_price_is_what_the_defaults_cost(model: Model) -> None:
    assert catalogue.credits(model, {}) == model.credits


@pytest.mark.parametrize("model", EVERY_MODEL, ids=lambda model: model.id)
def test_a_model_is_described_completely(model: Model) -> None:
    usual_seconds, p95_seconds = model.seconds
    assert 0 < usual_seconds < p95_seconds
    assert model.path.startswith("/")
    assert "{task_id}" in model.status_path
    assert model.parameters["type"] == "object"
    assert set(model.parameters["required"]) <= set(model.parameters["properties"])
    assert set(model.price.by) <= set(model.parameters["properties"])
    assert msgspec.json.decode(msgspec.json.encode(model), type=Model) == model


@pytest.mark.parametrize("model", EVERY_MODEL, ids=lambda model: model.id)
def test_every_default_is_a_value_that_is_accepted(model: Model) -> None:
    example, _ = EXAMPLES[model.id]
    schemas = model.parameters["properties"].items()
    defaults = {name: schema["default"] for name, schema in schemas if "default" in schema}
    assert catalogue.problems(model, defaults | example) == []


@pytest.mark.parametrize("model", EVERY_MODEL, ids=lambda model: model.id)
def test_an_empty_input_is_refused(model: Model) -> None:
    assert catalogue.problems(model, {}) != []


@pytest.mark.parametrize("model", EVERY_MODEL, ids=lambda model: model.id)
def test_a_misspelt_parameter_is_refused_where_the_page_lists_them_all(model: Model) -> None:
    example, _ = EXAMPLES[model.id]
    errors = catalogue.problems(model, example | {"aspect_ration": "1:1"})
    if model.family in {"grok-imagine", "bg-remover", "suno"}:
        assert errors == []
    else:
        ((pointer, message),) = errors
        assert pointer == "/aspect_ration"
        assert message.startswith(f"is not a parameter of {model.id}")


def test_a_misspelt_parameter_gets_a_suggestion() -> None:
    assert problems("imagen4", prompt="ramen", sed=1) == [
        ("/sed", "is not a parameter of imagen4; did you mean seed?")
    ]


@pytest.mark.parametrize("name", ["model", "callback_url", "callBackUrl", "webhook_url"])
@pytest.mark.parametrize("page", ["imagen4", "suno"])
def test_a_parameter_that_genhook_sets_is_refused_in_input(page: str, name: str) -> None:
    ((pointer, message),) = problems(page, prompt="some words", **{name: "x"})
    assert pointer == f"/{name}"
    assert message == catalogue.RESERVED[name]


@pytest.mark.parametrize(
    ("name", "input_", "pointer", "message"),
    [
        ("imagen4", {"prompt": "hi"}, "/prompt", "must have at least 3 characters"),
        ("imagen4", {"prompt": "x" * 5001}, "/prompt", "must have at most 5000 characters"),
        ("cogview-4", {"prompt": "x" * 1001}, "/prompt", "must have at most 1000 characters"),
        ("hunyuan-image-3", {"prompt": "x" * 2001}, "/prompt", "must have at most 2000 characters"),
        ("kling-3", {"prompt": "x" * 2501}, "/prompt", "must have at most 2500 characters"),
        ("chirp-v4-0", {"prompt": "x" * 3001}, "/prompt", "must have at most 3000 characters"),
        ("chirp-v5", {"prompt": "x" * 5001}, "/prompt", "must have at most 5000 characters"),
        ("suno", {"prompt": "x", "title": "x" * 81}, "/title", "must have at most 80 characters"),
        (
            "suno",
            {"gpt_description_prompt": "x" * 401},
            "/gpt_description_prompt",
            "must have at most 400 characters",
        ),
        (
            "gpt-image-1-5",
            {"prompt": "ramen", "aspect_ratio": "16:9"},
            "/aspect_ratio",
            'must be one of "1:1", "2:3", "3:2"',
        ),
        (
            "seedance-1-5-pro",
            {"prompt": "ramen", "duration": 8},
            "/duration",
            'must be one of "4", "8", "12"',
        ),
        ("imagen4", {"prompt": "ramen", "num_images": 0}, "/num_images", "must be at least 1"),
        (
            "kling-image-o1",
            {"prompt": "ramen", "num_images": 10},
            "/num_images",
            "must be at most 9",
        ),
        ("kling-3", {"prompt": "x", "duration": 16}, "/duration", "must be at most 15"),
        ("imagen4", {"prompt": "ramen", "seed": "7"}, "/seed", "must be an integer"),
        (
            "flux-2",
            {"prompt": "ramen", "input_urls": [URL] * 9},
            "/input_urls",
            "must have at most 8 items",
        ),
        (
            "flux-2",
            {"prompt": "ramen", "input_urls": [URL, "file:///a.png"]},
            "/input_urls/1",
            "must look like https://example.com/picture.png",
        ),
        (
            "cogview-4",
            {"prompt": "ramen", "size": "1024x1024"},
            "/size",
            "must look like 1024*1024",
        ),
        ("seedream/4.5-edit", {"prompt": "ramen"}, "/image_urls", "is required"),
        ("grok-imagine/upscale", {}, "/task_id", "is required"),
        ("hunyuan-image-3", {"prompt": "ramen", "type": "edit"}, "/images", "is required"),
        ("kling-3", {"multi_shots": True}, "/multi_prompt", "is required"),
        ("kling-3", {"multi_shots": False}, "/prompt", "is required"),
        (
            "suno-extend",
            {"origin_task_id": "a", "extend_audio_index": 1, "custom_mode": True},
            "/prompt",
            "is required",
        ),
        (
            "suno",
            {"title": "Nothing"},
            "",
            "needs gpt_description_prompt (inspiration mode) or prompt (custom mode)",
        ),
        (
            "elevenlabs-v3",
            {"dialogue": [{"text": "a"}, {"voice": "b"}]},
            "/dialogue/1/text",
            "is required",
        ),
        (
            "suno-extend",
            {"origin_task_id": "a", "extend_audio_index": 1, "extensionStartTime": 0},
            "/extensionStartTime",
            "must be more than 0",
        ),
    ],
)
def test_a_wrong_parameter_is_reported_with_its_pointer(
    name: str, input_: dict[str, Any], pointer: str, message: str
) -> None:
    assert problems(name, **input_) == [(pointer, message)]


def test_a_pointer_escapes_slashes_and_tildes() -> None:
    assert problems("imagen4", prompt="ramen", **{"a/b~c": 1})[0][0] == "/a~1b~0c"


def test_an_input_nested_too_deeply_to_check_is_refused() -> None:
    nested: list[Any] = []
    for _ in range(900):
        nested = [nested]
    ((pointer, message),) = problems("imagen4", prompt="ramen", seed=nested)
    assert pointer == ""
    assert message.startswith("cannot be checked")


def test_the_number_of_problems_is_bounded() -> None:
    unknown = {f"p{number}": 1 for number in range(900)}
    assert len(problems("imagen4", **unknown)) == catalogue.MAX_PROBLEMS


@pytest.mark.parametrize(
    ("name", "input_", "cost"),
    [
        ("imagen4", {"num_images": 3}, 24),
        ("imagen4-ultra", {"num_images": 2}, 24),
        ("flux-2", {"resolution": "2K"}, 7),
        ("flux-2", {"type": "flex"}, 14),
        ("flux-2", {"type": "flex", "resolution": "2K"}, 24),
        ("gpt-image-1-5", {"quality": "high"}, 28),
        ("kling-image-o1", {"type": "ai-multi-shot"}, 16),
        ("kling-image-o1", {"num_images": 9}, 54),
        ("kling-3", {"duration": 3, "sound": False}, 120),
        ("kling-3", {"duration": 15, "mode": "pro"}, 1200),
        ("kling-3", {"duration": 5.0}, 300),
        ("pixverse-5-6", {"resolution": "360p"}, 70),
        ("pixverse-5-6", {"duration": 8.0}, 180),
        (
            "pixverse-5-6",
            {"resolution": "1080p", "duration": 8, "generate_audio_switch": True},
            600,
        ),
        ("seedance-1-5-pro", {"resolution": "480p", "duration": "4"}, 8),
        ("seedance-1-5-pro", {"duration": "12", "generateAudio": True}, 84),
        ("elevenlabs-v3", {"dialogue": [{"text": "x" * 1000}]}, 28),
        ("elevenlabs-v3", {"dialogue": [{"text": "x" * 500}, {"text": "x" * 501}]}, 29),
        ("flux-2", {"type": "unheard of"}, 5),
        ("imagen4", {"num_images": "three"}, 8),
        ("imagen4", {"num_images": True}, 8),
    ],
)
def test_credits_follow_the_parameters_that_upstream_bills_by(
    name: str, input_: dict[str, Any], cost: int
) -> None:
    assert catalogue.credits(find_model(name), input_) == cost


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(st.sampled_from(EVERY_MODEL), st.data())
def test_no_input_makes_validation_or_pricing_raise(model: Model, data: st.DataObject) -> None:
    names = st.sampled_from([*model.parameters["properties"], "callback_url", "other"])
    input_ = data.draw(st.dictionaries(names, JSON))
    errors = catalogue.problems(model, input_)
    assert all(message for _, message in errors)
    assert catalogue.credits(model, input_) >= 1


@pytest.mark.parametrize(
    ("name", "status_path"),
    [
        ("suno", "/audio/music/feed?task_id={task_id}"),
        ("suno-extend", "/audio/music/feed?task_id={task_id}"),
        ("suno-cover", "/audio/music/cover/status?task_id={task_id}"),
        ("suno-upload-cover", "/audio/music/upload-cover/status?task_id={task_id}"),
        ("kling-3", "/tasks/{task_id}"),
    ],
)
def test_suno_has_its_own_status_paths(name: str, status_path: str) -> None:
    assert find_model(name).status_path == status_path


def test_some_suno_routes_have_no_model_field() -> None:
    assert {model.id for model in EVERY_MODEL if model.sent_as is None} == {
        "suno-cover",
        "suno-extend",
        "suno-timestamped-lyrics",
        "suno-upload-cover",
    }


def test_an_unknown_model_or_a_chat_model_is_none() -> None:
    assert catalogue.load().get("imagen-5") is None
    assert catalogue.load().get("gemini") is None


def test_the_catalogue_is_sorted_and_read_once() -> None:
    assert [model.id for model in EVERY_MODEL] == sorted(model.id for model in EVERY_MODEL)
    assert catalogue.load() is catalogue.load()
