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
    aliases: dict[str, str] = field(default_factory=dict)

    def icon_in(self, style: str) -> str:
        return self.aliases.get(style, self.icon)

    @property
    def phrase(self) -> str:
        return f"{self.article} {self.name}".strip()


def _concept(name: str, icon: str = "", fxemoji: str = "", article: str = "a") -> Concept:
    return Concept(name, icon or name, article, {"fxemoji": fxemoji} if fxemoji else {})


CONCEPTS: tuple[Concept, ...] = (
    _concept("apple", "red-apple", "redapple", "an"),
    _concept("heart", "red-heart", "redheart"),
    _concept("tree", "deciduous-tree", "deciduoustree"),
    _concept("car", "automobile"),
    _concept("cat", "cat-face", "cat"),
    _concept("dog", "dog-face", "dog"),
    _concept("house", "house", "housebuilding"),
    _concept("star"),
    _concept("sun", "sun", "whitesun", "the"),
    _concept("moon", "crescent-moon", "crescentmoon", "the"),
    _concept("fish", "tropical-fish", "tropicalfish"),
    _concept("banana"),
    _concept("tulip"),
    _concept("umbrella", "umbrella-with-rain-drops", "umbrellawithraindrops", "an"),
    _concept("cactus"),
    _concept("strawberry"),
    _concept("mushroom"),
    _concept("balloon"),
    _concept("key"),
    _concept("cloud"),
    _concept("watermelon"),
    _concept("hamburger"),
    _concept("penguin"),
    _concept("frog"),
)

CONCEPT_NAMES: tuple[str, ...] = tuple(concept.name for concept in CONCEPTS)

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
