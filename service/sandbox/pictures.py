"""Pictures for image and video models: a random landscape with the prompt written on it."""

import colorsys
import io
import math
import textwrap
from html import escape

from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from service.sandbox.scene import Scene

Colour = tuple[int, int, int]

_SUN = (255, 246, 220)
_HILLS = 5
_FRAMES = 16
_FRAME_MS = 90
_FRAME_PIXELS = 480
_SMALLEST_FONT = 12
_PANEL_SHARE = 0.45


def png(scene: Scene) -> bytes:
    """Draw a PNG of the scene's size."""
    image = _landscape(scene, scene.width, scene.height, 0.0)
    _write_prompt(image, scene)
    return _encode_image(image, "PNG", compress_level=4)


def gif(scene: Scene) -> bytes:
    """Draw an endless animation in the scene's proportions, at most 480 pixels wide and high."""
    scale = _FRAME_PIXELS / max(scene.width, scene.height)
    width, height = int(scene.width * scale), int(scene.height * scale)
    frames = []
    for number in range(_FRAMES):
        frame = _landscape(scene, width, height, number / _FRAMES)
        _write_prompt(frame, scene)
        frames.append(frame.quantize(128))
    return _encode_image(
        frames[0], "GIF", save_all=True, append_images=frames[1:], duration=_FRAME_MS, loop=0
    )


def svg(scene: Scene) -> bytes:
    """Draw a simpler landscape as SVG."""
    rng = scene.rng()
    top, bottom = (_hex(colour) for colour in _sky(rng.random()))
    x, y = int(scene.width * rng.random()), int(scene.height * (0.2 + 0.3 * rng.random()))
    lines = "".join(
        f'<tspan x="40" dy="44">{escape(line)}</tspan>' for line in textwrap.wrap(scene.prompt, 44)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {scene.width} {scene.height}">'
        f'<linearGradient id="sky" x2="0" y2="1"><stop stop-color="{top}"/>'
        f'<stop offset="1" stop-color="{bottom}"/></linearGradient>'
        f'<rect width="100%" height="100%" fill="url(#sky)"/>'
        f'<circle cx="{x}" cy="{y}" r="{scene.height // 10}" fill="#fff8e0"/>'
        f'<text y="{scene.height // 2}" font-family="sans-serif" font-size="36">{lines}</text>'
        "</svg>"
    ).encode()


def _landscape(scene: Scene, width: int, height: int, phase: float) -> Image.Image:
    """Draw sky, sun and hills; `phase` goes from 0 to 1 in one loop of the animation."""
    rng = scene.rng()
    hue = rng.random()
    top, bottom = _sky(hue)
    grey = Image.linear_gradient("L").resize((width, height), Image.Resampling.BICUBIC)
    image = ImageOps.colorize(grey, top, bottom)
    _draw_sun(image, rng.random(), 0.2 + 0.25 * rng.random(), phase)
    mask = Image.new("L", (width * 2, height * 2))  # Twice the size, for smooth edges.
    for number in range(_HILLS):
        waves = [(rng.uniform(1, 3 + number), rng.random()) for _ in range(3)]
        ridge = _ridge(width * 2, height * 2, number, waves, phase)
        mask.paste(0, (0, 0, *mask.size))
        ImageDraw.Draw(mask).polygon(ridge, fill=255)
        image.paste(
            _hill_colour(hue, number), mask=mask.resize((width, height), Image.Resampling.BOX)
        )
    return image


def _draw_sun(image: Image.Image, x_share: float, y_share: float, phase: float) -> None:
    x = 0.15 + 0.7 * x_share
    y = y_share + 0.04 * math.sin(math.tau * phase)
    # The glow is a blurred disc. A quarter of the size is enough, and much faster to blur.
    glow = _disc(image.width // 4, image.height // 4, x, y).filter(
        ImageFilter.GaussianBlur(min(image.size) / 36)
    )
    image.paste(_SUN, mask=glow.resize(image.size, Image.Resampling.BICUBIC))
    disc = _disc(image.width * 2, image.height * 2, x, y)
    image.paste(_SUN, mask=disc.resize(image.size, Image.Resampling.BOX))


def _disc(width: int, height: int, x: float, y: float) -> Image.Image:
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).circle((x * width, y * height), min(width, height) / 11, fill=255)
    return mask


def _ridge(
    width: int, height: int, number: int, waves: list[tuple[float, float]], phase: float
) -> list[tuple[float, float]]:
    base = height * (0.48 + 0.11 * number)
    wave_height = height * 0.05
    points = [(0.0, float(height))]
    for x in range(0, width + 8, 8):
        elevation = sum(
            math.sin(math.tau * (frequency * x / width + shift + phase)) / frequency
            for frequency, shift in waves
        )
        points.append((float(x), base - wave_height * elevation))
    return [*points, (float(width), float(height))]


def _write_prompt(image: Image.Image, scene: Scene) -> None:
    """Write the prompt on a dark panel in the largest font that fits; shorten it if none does."""
    margin = image.width // 24
    space = (image.width - 4 * margin, int(image.height * _PANEL_SHARE))
    font, lines = _fit_text(scene.prompt or "(no prompt)", *space)
    small = _font(max(_SMALLEST_FONT, image.height // 56))
    line_height = int(font.size * 1.3)
    panel_height = line_height * len(lines) + int(small.size * 2) + margin
    top = image.height - panel_height - margin
    panel = Image.new("L", image.size)
    ImageDraw.Draw(panel).rounded_rectangle(
        (margin, top, image.width - margin, image.height - margin), margin // 2, fill=150
    )
    image.paste((12, 14, 24), mask=panel)
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        draw.text((2 * margin, top + margin // 2 + number * line_height), line, "white", font)
    draw.text(
        (2 * margin, image.height - margin * 1.5 - small.size), scene.caption, "#c8ccd8", small
    )


def _fit_text(text: str, width: int, height: int) -> tuple[ImageFont.FreeTypeFont, list[str]]:
    size = max(_SMALLEST_FONT, height // 7)
    while True:
        font = _font(size)
        columns = max(1, int(width / font.getlength("abcdefghijklmno") * 15))
        lines = textwrap.wrap(text, columns)
        lines_max = max(1, int(height / (size * 1.3)))
        if len(lines) <= lines_max:
            return font, lines
        if size == _SMALLEST_FONT:
            return font, [*lines[: lines_max - 1], lines[lines_max - 1] + " ..."]
        size = max(_SMALLEST_FONT, int(size * 0.85))


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Every wheel of Pillow has FreeType.
    return font


def _sky(hue: float) -> tuple[Colour, Colour]:
    return _rgb(hue, 0.65, 0.55), _rgb(hue + 0.12, 0.35, 1.0)


def _hill_colour(hue: float, number: int) -> Colour:
    nearness = number / (_HILLS - 1)
    return _rgb(hue + 0.1 - 0.12 * nearness, 0.4 + 0.3 * nearness, 0.8 - 0.6 * nearness)


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return int(red * 255), int(green * 255), int(blue * 255)


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _encode_image(image: Image.Image, file_format: str, **options: object) -> bytes:
    target = io.BytesIO()
    image.save(target, file_format, **options)
    return target.getvalue()
