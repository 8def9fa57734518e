"""A scene as a picture. What its caption leaves open is drawn at random: place, angle, exact size, shade and light."""

import colorsys
import random

import numpy as np
from PIL import Image, ImageFilter

from examples.showcase.objects import load_sprite
from examples.showcase.scenes import Scene

SIZE = 64  # pixels a side
# The longest side of an object, in pixels of 64. There are gaps between the ranges, so that a size can be read.
SINGLE_EXTENT = {"small": (22, 27), "medium": (32, 38), "large": (46, 53)}
PAIR_EXTENT = {"small": (19, 22), "medium": (27, 31)}
MAX_ANGLE = 20.0  # degrees, either way
MARGIN = 1  # pixels between an object and the edge
# Hue (a part of the colour circle), saturation and value; each picture's own differ a little.
COLOURS = {
    "red": (0.99, 0.72, 0.80),
    "orange": (0.075, 0.78, 0.95),
    "yellow": (0.145, 0.62, 0.96),
    "green": (0.36, 0.55, 0.68),
    "blue": (0.58, 0.62, 0.82),
    "purple": (0.75, 0.50, 0.66),
    "pink": (0.93, 0.30, 0.96),
    "grey": (0.60, 0.04, 0.66),
}
JITTER = (0.012, 0.06, 0.05)  # of hue, saturation and value, either way
SHADOW = (1.5, 0.35)  # pixels of blur and of offset downwards; opacity


def shade(colour: str, rng: random.Random) -> np.ndarray:
    """One shade of a background colour, `(3,)` in [0, 1]."""
    base = COLOURS[colour]
    jitter = [width * (0.5 if colour == "grey" else 1) for width in JITTER]
    hue, saturation, value = (x + rng.uniform(-w, w) for x, w in zip(base, jitter))
    return np.array(colorsys.hsv_to_rgb(hue % 1, max(saturation, 0), min(value, 1)))


def draw_background(colour: str, rng: random.Random) -> Image.Image:
    """A shade of `colour` that grows lighter towards a random direction, RGB."""
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.02, 0.14)
    y, x = np.mgrid[:SIZE, :SIZE] / (SIZE - 1) * 2 - 1
    light = 1 + strength * (np.cos(angle) * x + np.sin(angle) * y)
    pixels = shade(colour, rng) * light[..., None]
    return Image.fromarray(np.round(pixels.clip(0, 1) * 255).astype(np.uint8))


def pose(name: str, extent: float, angle: float) -> Image.Image:
    """The artwork of `name`, turned by `angle` degrees, its longest side before turning `extent` pixels. RGBA."""
    sprite = load_sprite(name)
    # Twice as large while turning; premultiplied alpha, so that the colour of clear pixels does not bleed in.
    scale = 2 * extent / max(sprite.size)
    sprite = sprite.resize([max(1, round(side * scale)) for side in sprite.size], Image.Resampling.LANCZOS)
    sprite = sprite.convert("RGBa").rotate(angle, Image.Resampling.BICUBIC, expand=True)
    small = sprite.resize([max(1, round(side / 2)) for side in sprite.size], Image.Resampling.BOX).convert("RGBA")
    return small.crop(small.getchannel("A").getbbox())


def regions(layout: str, extents: list[float]) -> list[tuple[float, float, float, float]]:
    """For each object the part of the picture that it is placed in: left, top, right, bottom, in pixels.

    Two objects share the picture in the proportion of their extents.
    """
    if layout == "single":
        return [(0, 0, SIZE, SIZE)]
    border = SIZE * extents[0] / sum(extents)
    if layout == "beside":
        return [(0, 0, border, SIZE), (border, 0, SIZE, SIZE)]
    return [(0, 0, SIZE, border), (0, border, SIZE, SIZE)]


def place(low: float, high: float, length: int, rng: random.Random) -> int:
    """Where something of `length` pixels begins, anywhere between `low` and `high` if it fits, centred otherwise."""
    first, last = low + MARGIN, high - MARGIN - length
    start = rng.uniform(first, last) if first < last else (low + high - length) / 2
    return round(min(max(start, 0), SIZE - length))


def paste(picture: Image.Image, sprite: Image.Image, left: int, top: int) -> None:
    """Put `sprite` on `picture` with a soft shadow below it."""
    blur, opacity = SHADOW
    mask = Image.new("L", picture.size)
    mask.paste(sprite.getchannel("A"), (left, top + round(blur)))
    mask = mask.filter(ImageFilter.GaussianBlur(blur)).point([round(alpha * opacity) for alpha in range(256)])
    picture.paste((0, 0, 0), (0, 0), mask)
    picture.paste(sprite, (left, top), sprite)


def render(scene: Scene, rng: random.Random) -> Image.Image:
    """The picture of `scene`, RGB, `SIZE` pixels square."""
    picture = draw_background(scene.background, rng)
    ranges = SINGLE_EXTENT if scene.layout == "single" else PAIR_EXTENT
    sizes = (scene.first_size, scene.second_size)[: len(scene.objects)]
    extents = [rng.uniform(*ranges[size]) for size in sizes]
    for name, extent, (left, top, right, bottom) in zip(scene.objects, extents, regions(scene.layout, extents)):
        sprite = pose(name, extent, rng.uniform(-MAX_ANGLE, MAX_ANGLE))
        paste(picture, sprite, place(left, right, sprite.width, rng), place(top, bottom, sprite.height, rng))
    return picture
