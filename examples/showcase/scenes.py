"""Scenes: what is in a picture, the caption that says it, and which combinations training never sees."""

import hashlib
import random
from dataclasses import dataclass

from examples.showcase.objects import NAMES

BACKGROUNDS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "grey")
SIZES = ("small", "medium", "large")  # "medium" goes unsaid in a caption
RELATIONS = {"beside": ("to the left of", "to the right of"), "stacked": ("above", "below")}
SINGLE_SHARE = 0.4  # of all scenes
SMALL_SHARE_IN_PAIRS = 0.25
HELD_OUT_PAIRS = 10  # one pair of objects in so many is held out


@dataclass(frozen=True)
class Scene:
    """What a picture shows, in the order of the picture and not of its caption.

    Attributes:
        layout: "single", "beside" (the first object is on the left) or "stacked" (the first object is above).
        first: name of the first or only object.
        first_size: one of `SIZES`.
        second: name of the second object, or "none".
        second_size: "small", "medium" or "none".
        background: one of `BACKGROUNDS`.
    """

    layout: str
    first: str
    first_size: str
    second: str
    second_size: str
    background: str

    @property
    def objects(self) -> tuple[str, ...]:
        """The names of the objects, one or two."""
        return (self.first,) if self.layout == "single" else (self.first, self.second)


def stable_hash(*words: str) -> int:
    """A number that depends on `words` alone, in every process and on every machine."""
    return int.from_bytes(hashlib.sha256("|".join(words).encode()).digest()[:8], "big")


def is_held_out(scene: Scene) -> bool:
    """Whether training never sees this combination.

    One background colour of each object is held out, and one pair of objects in `HELD_OUT_PAIRS`, whichever their
    order and relation.
    """
    backgrounds = [BACKGROUNDS[stable_hash("background", name) % len(BACKGROUNDS)] for name in scene.objects]
    if scene.background in backgrounds:
        return True
    return scene.layout != "single" and stable_hash("pair", *sorted(scene.objects)) % HELD_OUT_PAIRS == 0


def draw_scene(rng: random.Random) -> Scene:
    """A scene of one object, of any size, or of two different ones that are not large."""
    background = rng.choice(BACKGROUNDS)
    if rng.random() < SINGLE_SHARE:
        return Scene("single", rng.choice(NAMES), rng.choice(SIZES), "none", "none", background)
    first, second = rng.sample(NAMES, 2)
    sizes = ["small" if rng.random() < SMALL_SHARE_IN_PAIRS else "medium" for _ in range(2)]
    return Scene(rng.choice(tuple(RELATIONS)), first, sizes[0], second, sizes[1], background)


def draw_scene_of(held_out: bool, rng: random.Random) -> Scene:
    """A scene that is or is not one of the held-out combinations."""
    while is_held_out(scene := draw_scene(rng)) != held_out:
        pass
    return scene


def noun_phrase(name: str, size: str) -> str:
    """The object with its article and size: "a small red apple", "an eggplant"."""
    words = name if size == "medium" else f"{size} {name}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def describe(scene: Scene, rng: random.Random) -> str:
    """The caption. Which of two objects is named first is drawn from `rng`; the relation follows."""
    background = f"on {noun_phrase(scene.background, 'medium')} background"
    first = noun_phrase(scene.first, scene.first_size)
    if scene.layout == "single":
        return f"{first} {background}"
    second = noun_phrase(scene.second, scene.second_size)
    forward, backward = RELATIONS[scene.layout]
    if rng.random() < 0.5:
        return f"{first} {forward} {second} {background}"
    return f"{second} {backward} {first} {background}"
