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


@dataclasses.dataclass(frozen=True, slots=True)
class SandboxModel:
    """One value that `model` may have on one route.

    path: below /api/v1. task_id_pattern: for `str.format`; {} is the random part.
    required: names of fields; of names joined by `|`, one suffices.
    prices: exceptions to `credits`; the first whose fields all equal the request's applies.
    """

    name: str
    path: str
    task_id_pattern: str
    credits: int
    callbacks: bool
    extension: str = "png"
    files: int = 1
    required: tuple[str, ...] = ("prompt",)
    prompt_length_max: int = 5000
    choices: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    ranges: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    prices: tuple[tuple[Mapping[str, str], int], ...] = ()


_IMAGE_MODELS = (
    SandboxModel(
        "cogview-4",
        IMAGES,
        "n48{}_cv4",
        4,
        callbacks=False,
        prompt_length_max=1000,
        choices={"quality": ("standard", "hd")},
    ),
    SandboxModel(
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
    SandboxModel("grok-imagine/text-to-image", IMAGES, "n31{}_grok", 5, callbacks=True),
    SandboxModel(
        "grok-imagine/upscale", IMAGES, "n31{}_grok", 12, callbacks=True, required=("task_id",)
    ),
    SandboxModel(
        "kling-image-o1",
        IMAGES,
        "n49{}_kio1",
        6,
        callbacks=False,
        choices={"type": ("image-to-image", "ai-multi-shot"), "resolution": ("1k", "2k")},
        prices=(({"type": "ai-multi-shot"}, 16),),
    ),
    *(
        SandboxModel(
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
        SandboxModel(
            name,
            IMAGES,
            "n47{}_imagen4",
            price,
            callbacks=True,
            choices={"aspect_ratio": ("1:1", "4:3", "3:4", "16:9", "9:16")},
        )
        for name, price in {
            "imagen4-fast": 4,
            "imagen4": 8,
            "imagen4-ultra": 12,
            "imagen-4": 8,
        }.items()
    ),
    SandboxModel(
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
        SandboxModel(
            f"recraft-{name}", IMAGES, "n64{}_recraft", price, callbacks=False, extension=kind
        )
        for name, price, kind in (
            ("v4-text-to-image", 10, "png"),
            ("v4-text-to-vector", 20, "svg"),
            ("v4-pro-text-to-image", 60, "png"),
            ("v4-pro-text-to-vector", 70, "svg"),
        )
    ),
    SandboxModel(
        "ideogram-v4",
        IMAGES,
        "n65{}_ideogram4",
        12,
        callbacks=False,
        choices={"rendering_speed": ("TURBO", "BALANCED", "QUALITY")},
    ),
    SandboxModel(
        "hunyuan-image-3",
        IMAGES,
        "n66{}_hunyuan",
        25,
        callbacks=False,
        prompt_length_max=2000,
        choices={"type": ("text-to-image", "edit")},
    ),
    *(
        SandboxModel(
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
    SandboxModel(
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
    SandboxModel("pixverse-5-6", VIDEOS, "n76{}_pixverse", 90, callbacks=False, extension="gif"),
    SandboxModel(
        "seedance-1-5-pro",
        VIDEOS,
        "n38{}_seedance",
        60,
        callbacks=True,
        extension="gif",
        choices={"duration": ("4", "8", "12")},
    ),
    SandboxModel(
        "elevenlabs-v3",
        SPEECH,
        "n58{}_tts",
        28,
        callbacks=True,
        extension="wav",
        required=("dialogue",),
    ),
    *(
        SandboxModel(
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
            (EXTEND, "gen{}bksv", ("origin_task_id|audio_id",)),
            (UPLOAD_COVER, "upl{}", ("audio_id",)),
        )
        for version in ("v5", "v5-5", "v4-5", "v4-5-plus", "v4-0", "v3-5")
    ),
    SandboxModel(
        "suno-cover", COVER, "cover{}", 1, callbacks=False, files=2, required=("task_id|taskId",)
    ),
    SandboxModel("image-upscale", UPSCALE, "n32{}_upscale", 1, callbacks=True, required=("image",)),
    SandboxModel("bg-remover", REMOVE_BG, "n33{}_bgrm", 1, callbacks=False, required=("image",)),
    SandboxModel(
        "face-swap",
        FACE_SWAP,
        "n34{}_faceswap",
        4,
        callbacks=False,
        required=("image", "face_image"),
        ranges={"target_index": (0, 10)},
    ),
)

MODELS = {(model.path, model.name): model for model in (*_IMAGE_MODELS, *_OTHER_MODELS)}
PATHS = tuple(dict.fromkeys(model.path for model in MODELS.values()))
_PATHS_REQUIRING_MODEL = (IMAGES, VIDEOS)


def of_route(path: str) -> list[SandboxModel]:
    """Return the models of one route, its default first."""
    return [model for model in MODELS.values() if model.path == path]


def find(path: str, name: object) -> SandboxModel:
    """Return the model that a request names; ValueError if the route has no such model."""
    if name is None and path not in _PATHS_REQUIRING_MODEL:
        return of_route(path)[0]
    model = MODELS.get((path, name)) if isinstance(name, str) else None
    if model is None:
        known = ", ".join(model.name for model in of_route(path))
        raise ValueError(f"model {name!r} is not one of {known}" if name else "model is required")
    return model
