"""The pictures under docs/: what a bundle draws, how a picture comes into being, a hole filled and a border crossed.

    mmada-lite train gallery -o docs
    mmada-lite train gallery -m NEW --against OLD -o docs/lab     # what two models draw of each caption, side by side

The captions are ours, the clearest first; of what they gave nothing is chosen: seeds count from 0. It uses the public
interface alone.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import mmada_lite
from mmada_lite.arguments import Parser, exit_code

STAR = "a star on a black background"
PENGUIN = "a penguin on a blue background"
STRAWBERRY = "a strawberry on a white background"
PROMPTS = (
    *("a hamburger on a white background", "a mushroom on a green background", STAR, "a cactus on a yellow background"),
    *(PENGUIN, "an apple on a blue background", "a dog on a blue background", "a key on a black background"),
    *("a heart on a white background", "a tree on a yellow background", "a car on a green background", STRAWBERRY),
    *("a cat on a purple background", "a house on a pink background", "the sun on a blue background"),
    *("the moon on a purple background", "a fish on a white background", "a banana on a red background"),
    *("a tulip on a green background", "an umbrella on a gray background", "a balloon on a blue background"),
    *("a cloud on a blue background", "a watermelon on a pink background", "a frog on a yellow background"),
)
COLUMNS, SEEDS, GAP, CAPTION = 8, 2, 4, 60  # a caption stands above its pictures; the rest are pixels


def sheet(rows: Sequence[Sequence[Image.Image]], scale: int = 1, captions: Sequence[str] = ()) -> Image.Image:
    """Pictures in rows, enlarged without smoothing, on white; above the first row a caption for each of its pictures."""
    top = CAPTION if captions else 0
    width = max(sum(p.width * scale + GAP for p in row) for row in rows) - GAP
    height = top + sum(max(p.height for p in row) * scale + GAP for row in rows) - GAP
    page = Image.new("RGB", (width, height), "white")
    for row in rows:
        left = 0
        for picture in row:
            page.paste(picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST), (left, top))
            left += picture.width * scale + GAP
        top += max(p.height for p in row) * scale + GAP
    for number, caption in enumerate(captions):
        place, lines = (number * (rows[0][0].width * scale + GAP), 2), caption.replace(" on ", "\non ")
        ImageDraw.Draw(page).text(place, lines.replace(" background", "\nbackground"), "black", ImageFont.load_default(15))
    return page


def drawings(model: mmada_lite.Model) -> Image.Image:
    bands = []
    for start in range(0, len(PROMPTS), COLUMNS):
        prompts = PROMPTS[start : start + COLUMNS]
        rows = [[model.paint(prompt, seed=seed).picture for prompt in prompts] for seed in range(SEEDS)]
        bands.append([sheet(rows, 2, prompts)])
    return sheet(bands)


def beside(old: mmada_lite.Model, new: mmada_lite.Model) -> Image.Image:
    """What two models draw of each caption with the same seed, the old one above the new one."""
    return side_by_side([[model.paint(prompt).picture for prompt in PROMPTS] for model in (old, new)])


def side_by_side(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Rows of as many pictures, cut into bands of half a row one below the other."""
    half = -(-len(rows[0]) // 2)
    return sheet([[sheet([row[start : start + half] for row in rows], 2)] for start in range(0, len(rows[0]), half)])


def steps(model: mmada_lite.Model) -> Image.Image:
    """What is predicted of one picture, step by step."""
    rows = []
    for prompt in (STAR, PENGUIN):
        drawing = model.paint(prompt)
        rows.append([drawing.preview() for _ in drawing][::2])
    return sheet(rows, 2)


def edits(model: mmada_lite.Model) -> Image.Image:
    """A picture, its right half hidden and drawn anew, and the picture grown by half to the right."""
    rows = []
    for prompt in (STAR, PENGUIN, STRAWBERRY):
        picture = model.paint(prompt).picture
        mask = Image.new("L", picture.size)
        mask.paste(255, (picture.width // 2, 0, picture.width, picture.height))
        hidden = picture.copy()
        ImageDraw.Draw(hidden).rectangle((picture.width // 2, 0, *picture.size), "gray")
        redrawn = model.inpaint(picture, mask, prompt, seed=1).picture
        rows.append([picture, hidden, redrawn, model.extend(picture, prompt, seed=1).picture])
    return sheet(rows, 2)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw all pages. 0, 2 after a fault of the user, or 130 when it is interrupted."""
    return exit_code(lambda: _draw_all(argv))


def _draw_all(argv: Sequence[str] | None) -> int:
    parser = Parser(prog="mmada-lite train gallery", description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", help="a bundle's folder (default: the small model in the package)")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs"), help="folder for the PNG files (%(default)s)")
    parser.add_argument("--against", help="another bundle: one page alone, beside.png, its drawings above the model's")
    options = parser.parse_args(argv)
    model = mmada_lite.load(options.model)
    if options.against:
        path = options.output / "beside.png"
        beside(mmada_lite.load(options.against), model).save(path, optimize=True)
        print(path)
        return 0
    for draw in (drawings, steps, edits):
        path = options.output / f"{draw.__name__}.png"
        draw(model).save(path, optimize=True)
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
