"""Signs of the concepts from sets that draw in one or two colours. They are shown to be recognized, never to be drawn like: a
thing is also its outline. A sign takes the colour that the thing has in a coloured set, as a silhouette or as a dark line
around that colour. A plain table and its rendering: knows no captions and no models.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mmada_lite.train.data.concepts import CONCEPTS
from mmada_lite.train.data.sources import IconSet, styles

Rgba = NDArray[np.uint8]

# What a set draws: the concept's name, with =NAME where the set calls it otherwise. An asterisk stands for all by their
# usual names.
SIGNS: dict[str, str] = {
    "fluent-emoji-high-contrast": "*",
    "mdi": """apple=food-apple heart=cards-heart tree car cat dog house=home star sun=weather-sunny moon=moon-waning-crescent
        fish tulip=flower-tulip umbrella cactus mushroom balloon key cloud watermelon=fruit-watermelon hamburger penguin
        pineapple=fruit-pineapple grapes=fruit-grapes cherries=fruit-cherries pear=fruit-pear lemon=fruit-citrus bicycle
        plane=airplane rocket anchor fire snowflake drop=water clover leaf=leaf-maple bell bulb=lightbulb-on
        guitar=guitar-acoustic clock=alarm pencil crown trophy football ball=soccer skull alien eye fries=french-fries
        note=music-note bomb pumpkin pizza gem=diamond-stone corn lock pill pig ladybug""",
    "game-icons": """apple=shiny-apple heart=hearts tree=oak car=city-car cat dog=sitting-dog house star=round-star sun moon
        fish=tropical-fish banana umbrella cactus strawberry mushroom key watermelon hamburger penguin frog pineapple grapes
        lemon pear cherries=cherry doughnut=donut bicycle=dutch-bike plane=airplane rocket anchor fire=flame
        snowflake=snowflake-1 drop sunflower leaf=maple-leaf bell=ringing-bell bulb=light-bulb guitar clock=alarm-clock pencil
        crown trophy football=american-football-ball ball=soccer-ball fries=french-fries note=musical-notes bomb=unlit-bomb
        pumpkin pizza=pizza-slice gem=cut-diamond corn pill ladybug""",
    "ph": """heart=heart-duotone tree=tree-duotone car=car-duotone cat=cat-duotone dog=dog-duotone house=house-duotone
        star=star-duotone sun=sun-duotone moon=moon-duotone fish=fish-duotone tulip=flower-tulip-duotone
        umbrella=umbrella-duotone cactus=cactus-duotone balloon=balloon-duotone key=key-duotone cloud=cloud-duotone
        hamburger=hamburger-duotone cherries=cherries-duotone bicycle=bicycle-duotone plane=airplane-duotone
        rocket=rocket-duotone anchor=anchor-duotone fire=fire-duotone snowflake=snowflake-duotone drop=drop-duotone
        clover=clover-duotone leaf=leaf-duotone bell=bell-duotone bulb=lightbulb-duotone guitar=guitar-duotone
        clock=alarm-duotone pencil=pencil-duotone crown=crown-duotone trophy=trophy-duotone football=football-duotone
        ball=soccer-ball-duotone skull=skull-duotone alien=alien-duotone eye=eye-duotone note=music-note-duotone
        bomb=bomb-duotone pizza=pizza-duotone gem=sketch-logo-duotone lock=lock-duotone pill=pill-duotone""",
    "tabler": """apple heart tree car cat dog house=home star sun moon fish banana umbrella cactus mushroom balloon key cloud
        hamburger=burger lemon=lemon-2 bicycle=bike plane rocket anchor fire=flame snowflake drop=droplet clover leaf bell
        bulb clock=alarm pencil crown trophy football=ball-american-football ball=ball-football skull alien eye note=music
        bomb pumpkin=pumpkin-scary pizza gem=diamond lock pill pig""",
    "icon-park": """apple heart=like tree car cat dog house=home star sun moon fish banana umbrella cactus key hamburger frog
        pineapple lemon pear doughnut bicycle=bike plane=airplane rocket fire snowflake leaf bell=remind bulb=tips pencil
        crown trophy ball=soccer eye=preview-open fries=french-fries note=music pumpkin gem=diamond lock pig eggplant
        cherries=cherry""",
    "fa6-solid": """apple=apple-whole heart tree car=car-side cat dog house star sun moon fish umbrella key cloud
        hamburger=burger frog lemon bicycle plane rocket anchor fire snowflake drop=droplet clover leaf bell bulb=lightbulb
        guitar clock pencil crown trophy football ball=futbol skull eye note=music bomb pizza=pizza-slice gem lock""",
}
OUTLINED = ("tabler", "icon-park", "ph")  # what a line encloses is filled
LINE = 30  # of 255, the tone of a line


def sign_names(style: str) -> dict[str, str]:
    """By concept, the name of its icon in a set of signs."""
    if SIGNS[style] == "*":
        return {concept.name: concept.icon for concept in CONCEPTS}
    pairs = (word.partition("=") for word in SIGNS[style].split())
    return {concept: icon or concept for concept, _, icon in pairs}


def render_signs(packages: Path, coloured: Mapping[str, Rgba]) -> dict[str, Rgba]:
    """By style, RGBA [concepts, S, S, 4]. `coloured`: the icons of the styles for training; where a set has no sign of a
    concept, one of theirs stands in, each set's from another of them."""
    fallback, arrays = list(coloured.values()), {}
    for number, style in enumerate(styles("sign")):
        icons, names = IconSet(packages, style), sign_names(style.name)
        coloured_icons = fallback[number % len(fallback)]
        pictures = []
        for index, concept in enumerate(CONCEPTS):
            if concept.name in names:
                sign = icons.render(names[concept.name])
                pictures.append(paint_sign(sign, coloured_icons[index], style.name in OUTLINED))
            else:
                pictures.append(coloured_icons[index])
        arrays[style.name] = np.stack(pictures)
    return arrays


def paint_sign(sign: Rgba, thing: Rgba, outlined: bool) -> Rgba:
    """A sign [S, S, 4] in the mean colour of `thing` [S, S, 4]: all of it, or what its dark lines enclose."""
    alpha = thing[..., 3:].astype(np.float64)
    tone = (thing[..., :3] * alpha).sum((0, 1)) / max(alpha.sum(), 1.0)
    if not outlined:
        return np.concatenate([np.broadcast_to(np.rint(tone), sign[..., :3].shape), sign[..., 3:]], axis=2).astype(np.uint8)
    inside = Image.fromarray(np.where(enclosed(sign[..., 3]), 255, 0).astype(np.uint8))
    body = Image.new("RGBA", inside.size, (*(int(c) for c in np.rint(tone)), 0))
    body.putalpha(inside)
    ink = np.full(sign.shape, LINE, dtype=np.uint8)
    ink[..., 3] = np.where(sign[..., :3].mean(axis=2) < 96, sign[..., 3], 0)
    return np.asarray(Image.alpha_composite(body, Image.fromarray(ink)))


def enclosed(alpha: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where the outside of a drawing [H, W] does not come: the drawing and what its lines close in."""
    walls = Image.fromarray(np.pad(np.where(alpha > 96, 255, 0).astype(np.uint8), 1)).copy()
    ImageDraw.floodfill(walls, (0, 0), 128)
    reached: NDArray[np.bool_] = np.asarray(walls)[1:-1, 1:-1] == 128
    return ~reached
