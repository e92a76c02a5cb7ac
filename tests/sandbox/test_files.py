"""The files that results link to."""

import io
import random  # noqa: TID251  one landscape for two prompts
import sys
import wave
from xml.etree import ElementTree as ET

import pytest
from PIL import Image, ImageChops

from service.sandbox import files, pictures, sounds
from service.sandbox.scene import Scene
from tests.sandbox.harness import PROMPT, SandboxHarness

SMALL = Scene(PROMPT, 7, "imagen4", 1, 256, 256)


def open_image(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


async def read(harness: SandboxHarness, url: str) -> tuple[bytes, str]:
    response = await harness.client.get(url)
    assert response.status_code == 200
    return response.content, response.headers["content-type"]


def scene_with(**fields: object) -> Scene:
    values = {name: getattr(SMALL, name) for name in SMALL.__slots__}
    return Scene(**{**values, **fields})


def test_equal_scenes_give_equal_bytes() -> None:
    assert pictures.png(SMALL) == pictures.png(scene_with())


@pytest.mark.parametrize(
    "other", [{"prompt": "A boat"}, {"seed": 8}, {"model": "imagen4-fast"}, {"number": 2}]
)
def test_another_prompt_seed_model_or_number_gives_another_picture(
    other: dict[str, object],
) -> None:
    first, second = (open_image(pictures.png(scene)) for scene in (SMALL, scene_with(**other)))
    assert first.tobytes() != second.tobytes()


def test_the_prompt_is_written_on_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scene, "rng", lambda _: random.Random(1))
    first = open_image(pictures.png(scene_with(prompt="iiii iiii iiii")))
    second = open_image(pictures.png(scene_with(prompt="MMMM MMMM MMMM")))
    box = ImageChops.difference(first, second).getbbox()
    assert box is not None
    assert box[1] > SMALL.height / 2
    assert count_white_pixels(second) > count_white_pixels(first) > 0


def count_white_pixels(image: Image.Image) -> int:
    panel = image.crop((0, image.height // 2, image.width, image.height)).convert("L")
    return sum(panel.histogram()[250:])


@pytest.mark.parametrize(("width", "height"), [(256, 2048), (2048, 256), (640, 480)])
@pytest.mark.parametrize("prompt", ["", "word " * 999, "W" * 400, "夕暮れの灯台"])
def test_any_prompt_fits_on_any_size(width: int, height: int, prompt: str) -> None:
    image = open_image(pictures.png(scene_with(prompt=prompt, width=width, height=height)))
    assert image.size == (width, height)


async def test_pictures_have_the_requested_size(harness: SandboxHarness) -> None:
    task = await harness.finish(aspect_ratio="16:9")
    content, media_type = await read(harness, task.file_urls[0])
    image = open_image(content)
    assert (image.format, image.size, media_type) == ("PNG", (1280, 720), "image/png")


async def test_each_of_several_pictures_is_another(harness: SandboxHarness) -> None:
    task = await harness.finish(num_images=3)
    contents = [(await read(harness, url))[0] for url in task.file_urls]
    assert len(set(contents)) == 3


async def test_another_task_with_the_same_request_has_the_same_picture(
    harness: SandboxHarness,
) -> None:
    first, second = (
        await harness.finish(seed=4),
        await harness.finish(seed=4, directives="duplicate=2"),
    )
    assert first.id != second.id
    assert await read(harness, first.file_urls[0]) == await read(harness, second.file_urls[0])


async def test_a_vector_model_gives_a_vector(harness: SandboxHarness) -> None:
    task = await harness.finish(model="recraft-v4-text-to-vector", prompt="Fish & <chips>")
    content, media_type = await read(harness, task.file_urls[0])
    assert media_type == "image/svg+xml"
    assert "".join(ET.fromstring(content).itertext()) == "Fish & <chips>"  # noqa: S314  our own


async def test_a_video_is_an_animation_in_the_requested_proportions(
    harness: SandboxHarness,
) -> None:
    task = await harness.finish(path="/videos/generations", model="kling-3", aspect_ratio="9:16")
    content, media_type = await read(harness, task.file_urls[0])
    image = open_image(content)
    assert (image.format, image.size, media_type) == ("GIF", (270, 480), "image/gif")
    assert getattr(image, "n_frames", 1) > 10


async def test_a_song_is_two_different_sounds_of_two_seconds(harness: SandboxHarness) -> None:
    task = await harness.finish(path="/audio/music", model=None)
    tunes = []
    for url in task.file_urls:
        content, media_type = await read(harness, url)
        assert media_type == "audio/wav"
        with wave.open(io.BytesIO(content)) as tune:
            assert tune.getnframes() / tune.getframerate() == 2.0
            tunes.append(tune.readframes(tune.getnframes()))
    assert tunes[0] != tunes[1]
    assert max(memoryview(tunes[0]).cast("h")) > 5000


def test_a_sound_is_the_same_for_equal_scenes() -> None:
    assert sounds.wav(SMALL) == sounds.wav(scene_with())
    assert sounds.wav(SMALL) != sounds.wav(scene_with(prompt="A boat"))


@pytest.mark.parametrize("name", ["0.png", "2.png", "1.gif", "1.svg"])
async def test_a_file_that_no_task_made_is_not_found(harness: SandboxHarness, name: str) -> None:
    task = await harness.finish()
    response = await harness.client.get(f"/files/{task.id}/{name}")
    assert (response.status_code, response.json()["error"]["type"]) == (404, "not_found")


async def test_a_file_of_an_unknown_task_is_not_found(harness: SandboxHarness) -> None:
    assert (await harness.client.get("/files/n47_imagen4/1.png")).status_code == 404


async def test_without_pillow_a_picture_says_what_to_install(
    harness: SandboxHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "service.sandbox.pictures", None)
    monkeypatch.delattr("service.sandbox.pictures")
    task = await harness.finish(prompt="A picture that no other test has drawn")
    response = await harness.client.get(task.file_urls[0])
    assert response.status_code == 501
    assert "pip install 'genhook[demo]'" in response.json()["error"]["message"]


def test_the_cache_of_drawn_files_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sounds, "wav", lambda _: b"quick")
    files.draw.cache_clear()
    for number in range(files.FILES_CACHED + 5):
        files.draw("wav", scene_with(number=number))
    assert files.draw.cache_info().currsize == files.FILES_CACHED
    files.draw.cache_clear()
