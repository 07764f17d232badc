"""The concepts that the small model knows and the icon that draws each of them in each style, and the named background
colours. A plain table: knows nothing of rendering, captions or models.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Concept:
    """A thing with a name. `icon` is its usual name in the icon sets, `aliases` what single sets call it."""

    name: str
    icon: str
    article: str = "a"
    plural: str = ""
    aliases: dict[str, str] = field(default_factory=dict)

    def icon_in(self, style: str) -> str:
        return self.aliases.get(style, self.icon)

    @property
    def phrase(self) -> str:
        return f"{self.article} {self.name}".strip()


def _concept(
    name: str, icon: str = "", fxemoji: str = "", streamline: str = "", article: str = "a", plural: str = ""
) -> Concept:
    aliases = {"fxemoji": fxemoji, "streamline-emojis": streamline}
    return Concept(name, icon or name, article, plural or name + "s", {k: v for k, v in aliases.items() if v})


CONCEPTS: tuple[Concept, ...] = (
    _concept("apple", "red-apple", "redapple", "", "an"),
    _concept("heart", "red-heart", "redheart", "heart-suit"),
    _concept("tree", "deciduous-tree", "deciduoustree"),
    _concept("car", "automobile"),
    _concept("cat", "cat-face", "cat"),
    _concept("dog", "dog-face", "dog"),
    _concept("house", "house", "housebuilding"),
    _concept("star"),
    _concept("sun", "sun", "whitesun", article="the"),
    _concept("moon", "crescent-moon", "crescentmoon", article="the"),
    _concept("fish", "tropical-fish", "tropicalfish", plural="fish"),
    _concept("banana"),
    _concept("tulip"),
    _concept("umbrella", "umbrella-with-rain-drops", "umbrellawithraindrops", "", "an"),
    _concept("cactus", streamline="cactus-1", plural="cactuses"),
    _concept("strawberry", streamline="strawberry-1", plural="strawberries"),
    _concept("mushroom"),
    _concept("balloon"),
    _concept("key"),
    _concept("cloud", streamline="cloud-1"),
    _concept("watermelon", streamline="watermelon-1"),
    _concept("hamburger", streamline="hamburger-1"),
    _concept("penguin", streamline="penguin-1"),
    _concept("frog", streamline="frog-face"),
    _concept("pineapple"),
    _concept("grapes", article="", plural="grapes"),
    _concept("lemon"),
    _concept("cherries", article="", plural="cherries"),
    _concept("pear"),
    _concept("doughnut", streamline="doughnut-1"),
    _concept("bicycle"),
    _concept("plane", "airplane"),
    _concept("rocket"),
    _concept("anchor", article="an"),
    _concept("fire"),
    _concept("snowflake"),
    _concept("drop", "droplet"),
    _concept("sunflower", streamline="sunflower-1"),
    _concept("clover", "four-leaf-clover", "fourleafclover"),
    _concept("leaf", "maple-leaf", "mapleleaf", plural="leaves"),
    _concept("bell"),
    _concept("bulb", "light-bulb", "lightbulb"),
    _concept("guitar"),
    _concept("clock", "alarm-clock", "alarmclock"),
    _concept("pencil"),
    _concept("crown"),
    _concept("trophy", plural="trophies"),
    _concept("football", "american-football", "americanfootball"),
    _concept("ball", "soccer-ball", "soccerball"),
    _concept("skull"),
    _concept("alien", article="an"),
    _concept("eye", article="an"),
    _concept("fries", "french-fries", "frenchfries", "", "", "fries"),
    _concept("note", "musical-note", "musicalnote"),
    _concept("bomb"),
    _concept("pumpkin", "jack-o-lantern", "jackolantern"),
    _concept("pizza", "pizza", "sliceofpizza", "pizza-1"),
    _concept("gem", "gem-stone", "gem"),
    _concept("corn", "ear-of-corn", "earofmaize", article="", plural="corn"),
    _concept("lock", "locked", "lock"),
    _concept("pill"),
    _concept("pig", "pig-face", "pig"),
    _concept("eggplant", "eggplant", "aubergine", "", "an"),
    _concept("ladybug", "lady-beetle", "ladybeetle"),
)

CONCEPT_NAMES: tuple[str, ...] = tuple(concept.name for concept in CONCEPTS)
NUMBERS: dict[str, int] = {name: number for number, name in enumerate(CONCEPT_NAMES)}

# Things that are still themselves when a thing is four codes wide: what pictures of several things show.
SMALL: tuple[int, ...] = tuple(
    NUMBERS[name]
    for name in (
        *("apple", "tree", "car", "cat", "star", "banana"),
        *("key", "watermelon", "frog", "ball", "grapes", "pumpkin"),
    )
)

# What pictures of two things show: those, and a few that are a guess when four codes wide, and that people ask for.
PAIRED: tuple[int, ...] = (*SMALL, *(NUMBERS[name] for name in ("dog", "cloud", "moon", "heart", "house", "penguin")))

# Every named colour has a few tones, so that an icon of that very colour stays visible (a heart on red). sRGB, 0..255.
BACKGROUNDS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((222, 40, 40), (140, 16, 22)),
    "orange": ((245, 140, 30), (205, 100, 8)),
    "yellow": ((252, 216, 60), (255, 238, 130)),
    "green": ((70, 165, 75), (20, 95, 45), (130, 205, 120)),
    "blue": ((50, 110, 225), (20, 45, 140), (115, 180, 245)),
    "purple": ((140, 70, 185), (85, 35, 125)),
    "pink": ((252, 160, 195), (230, 95, 160)),
    "white": ((255, 255, 255), (240, 240, 240)),
    "black": ((8, 8, 8), (38, 38, 42)),
    "gray": ((128, 128, 128), (182, 182, 182)),
}
COLOURS: tuple[str, ...] = tuple(BACKGROUNDS)
