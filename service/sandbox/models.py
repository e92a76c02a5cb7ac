"""The models of the sandbox: their routes, credits, parameters, and whether they call back."""

import dataclasses
from collections.abc import Mapping

IMAGES = "/images/generations"
VIDEOS = "/videos/generations"
SPEECH = "/audio/speech"
MUSIC = "/audio/music"
EXTEND = "/audio/music/extend"
COVER = "/audio/music/cover/generate"
UPLOAD_COVER = "/audio/music/upload-cover/generate"
LYRICS = "/audio/music/timestamped-lyrics"
REMOVE_BG = "/images/tools/remove-bg"
FACE_SWAP = "/images/tools/face-swap"
UPSCALE = "/images/tools/upscale"

Choices = Mapping[str, tuple[str, ...]]
Prices = tuple[tuple[Mapping[str, str], int], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """One value that `model` may take on one route.

    path: below /api/v1. task_id: a pattern for `str.format`.
    required: names of fields; of names joined by `|`, one is enough.
    prices: exceptions from `credits`; the first whose fields all equal the request's applies.
    """

    value: str
    path: str
    task_id: str
    credits: int
    callbacks: bool
    extension: str = "png"
    files: int = 1
    required: tuple[str, ...] = ("prompt",)
    prompt_length_max: int = 5000
    choices: Choices = dataclasses.field(default_factory=dict)
    ranges: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    prices: Prices = ()


_IMAGE_MODELS = (
    Model(
        "cogview-4",
        IMAGES,
        "n48{}_cv4",
        4,
        callbacks=False,
        prompt_length_max=1000,
        choices={"quality": ("standard", "hd")},
    ),
    Model(
        "flux-2",
        IMAGES,
        "n41{}_flux2",
        5,
        callbacks=True,
        choices={"type": ("pro", "flex"), "resolution": ("1K", "2K")},
        prices=(
            ({"type": "flex", "resolution": "2K"}, 24),
            ({"type": "flex"}, 14),
            ({"resolution": "2K"}, 7),
        ),
    ),
    Model("grok-imagine/text-to-image", IMAGES, "n31{}_grok", 5, callbacks=True),
    Model("grok-imagine/upscale", IMAGES, "n31{}_grok", 12, callbacks=True, required=("task_id",)),
    Model(
        "kling-image-o1",
        IMAGES,
        "n49{}_kio1",
        6,
        callbacks=False,
        choices={"type": ("image-to-image", "ai-multi-shot"), "resolution": ("1k", "2k")},
        prices=(({"type": "ai-multi-shot"}, 16),),
    ),
    *(
        Model(
            f"ideogram-v3-{tier}",
            IMAGES,
            "n63{}_ideogram",
            price,
            callbacks=False,
            choices={"style": ("Auto", "General", "Realistic", "Design")},
        )
        for tier, price in {"turbo": 8, "balanced": 13, "quality": 20}.items()
    ),
    # The page of imagen-4 says "send imagen-4", its example sends imagen4: both are accepted.
    *(
        Model(
            value,
            IMAGES,
            "n47{}_imagen4",
            price,
            callbacks=True,
            choices={"aspect_ratio": ("1:1", "4:3", "3:4", "16:9", "9:16")},
        )
        for value, price in {
            "imagen4-fast": 4,
            "imagen4": 8,
            "imagen4-ultra": 12,
            "imagen-4": 8,
        }.items()
    ),
    Model(
        "gpt-image-1-5",
        IMAGES,
        "n42{}_gptimg",
        10,
        callbacks=True,
        choices={"aspect_ratio": ("1:1", "2:3", "3:2"), "quality": ("medium", "high")},
        prices=(({"quality": "high"}, 28),),
    ),
    # The task ids of the next three families are not public: these are invented.
    *(
        Model(f"recraft-{value}", IMAGES, "n64{}_recraft", price, callbacks=False, extension=kind)
        for value, price, kind in (
            ("v4-text-to-image", 10, "png"),
            ("v4-text-to-vector", 20, "svg"),
            ("v4-pro-text-to-image", 60, "png"),
            ("v4-pro-text-to-vector", 70, "svg"),
        )
    ),
    Model(
        "ideogram-v4",
        IMAGES,
        "n65{}_ideogram4",
        12,
        callbacks=False,
        choices={"rendering_speed": ("TURBO", "BALANCED", "QUALITY")},
    ),
    Model(
        "hunyuan-image-3",
        IMAGES,
        "n66{}_hunyuan",
        25,
        callbacks=False,
        prompt_length_max=2000,
        choices={"type": ("text-to-image", "edit")},
    ),
    *(
        Model(
            f"seedream/4.5-{verb}",
            IMAGES,
            "n30{}_seed",
            12,
            callbacks=True,
            required=names,
            choices={"quality": ("basic", "high")},
        )
        for verb, names in {"text-to-image": ("prompt",), "edit": ("prompt", "image_urls")}.items()
    ),
)

# The task ids of videos and tools and the credits of songs are not public: these are invented.
_OTHER_MODELS = (
    Model(
        "kling-3",
        VIDEOS,
        "n75{}_kling3",
        300,
        callbacks=True,
        extension="gif",
        prompt_length_max=2500,
        required=("prompt|multi_prompt",),
        choices={"mode": ("std", "pro")},
        ranges={"duration": (3, 15)},
    ),
    Model("pixverse-5-6", VIDEOS, "n76{}_pixverse", 90, callbacks=False, extension="gif"),
    Model(
        "seedance-1-5-pro",
        VIDEOS,
        "n38{}_seedance",
        60,
        callbacks=False,
        extension="gif",
        choices={"duration": ("4", "8", "12")},
    ),
    Model(
        "elevenlabs-v3",
        SPEECH,
        "n58{}_tts",
        28,
        callbacks=True,
        extension="wav",
        required=("dialogue",),
    ),
    *(
        Model(
            f"chirp-{version}",
            path,
            task_id,
            12,
            callbacks=True,
            extension="wav",
            files=2,
            required=names,
        )
        for path, task_id, names in (
            (MUSIC, "gen{}ksv", ("gpt_description_prompt|prompt",)),
            (EXTEND, "gen{}bksv", ("audio_id",)),
            (UPLOAD_COVER, "upl{}", ("audio_id",)),
        )
        for version in ("v5", "v5-5", "v4-5", "v4", "v3-5")
    ),
    Model(
        "suno-cover", COVER, "cover{}", 1, callbacks=False, files=2, required=("task_id|taskId",)
    ),
    Model("image-upscale", UPSCALE, "n32{}_upscale", 1, callbacks=True, required=("image",)),
    Model("bg-remover", REMOVE_BG, "n33{}_bgrm", 1, callbacks=False, required=("image",)),
    Model(
        "face-swap",
        FACE_SWAP,
        "n34{}_faceswap",
        4,
        callbacks=False,
        required=("image", "face_image"),
        ranges={"target_index": (0, 10)},
    ),
)

MODELS = {(model.path, model.value): model for model in (*_IMAGE_MODELS, *_OTHER_MODELS)}
PATHS = tuple(dict.fromkeys(model.path for model in MODELS.values()))
_NEED_MODEL = (IMAGES, VIDEOS)


def of_route(path: str) -> list[Model]:
    """Return the models of one route, its default first."""
    return [model for model in MODELS.values() if model.path == path]


def find(path: str, value: object) -> Model:
    """Return the model that a request names; ValueError if the route has no such model."""
    if value is None and path not in _NEED_MODEL:
        return of_route(path)[0]
    model = MODELS.get((path, value)) if isinstance(value, str) else None
    if model is None:
        known = ", ".join(model.value for model in of_route(path))
        raise ValueError(f"model {value!r} is not one of {known}" if value else "model is required")
    return model
