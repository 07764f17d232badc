"""What the packaged model is asked for in tests/runtime/recorded, as data: texts, drawings, questions about pictures and
inpaintings; and how a case is played. Pictures are made of whole numbers, at the model's own size, so that no library
resizes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmada_lite import Model
from mmada_lite.streams import Answer, Drawing

Kind = Literal["text", "drawing", "question", "inpainting"]
Colour = tuple[int, int, int]
SIDE, CELL = 64, 8  # pixels of a picture, pixels of a code
RED, ORANGE, YELLOW, GREEN, BLUE = (222, 40, 40), (245, 140, 30), (252, 216, 60), (70, 165, 75), (50, 110, 225)
PURPLE, PINK, WHITE, BLACK, GRAY, BROWN = (
    (140, 70, 185),
    (252, 160, 195),
    (255, 255, 255),
    (8, 8, 8),
    (128, 128, 128),
    (120, 75, 40),
)


@dataclass(frozen=True)
class Case:
    """settings: what differs from the model's defaults at a speed; picture: a name of PICTURES; cells: rows and columns of
    codes (top, bottom, left, right) that are drawn anew."""

    kind: Kind
    prompt: str | Sequence[Mapping[str, str]]
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    think: bool | str = False
    picture: str = ""
    cells: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def name(self) -> str:
        request = self.prompt if isinstance(self.prompt, str) else " / ".join(turn["content"] for turn in self.prompt)
        parts = [self.kind, request, self.picture, f"seed {self.seed}" if self.seed else "", "thinking" if self.think else ""]
        if self.kind == "inpainting":
            parts.append("cells " + "-".join(map(str, self.cells)))
        parts += [f"{key}={value}" for key, value in self.settings.items()]
        return ", ".join(part for part in parts if part)


def play(model: Model, case: Case) -> Answer | Drawing:
    """The stream of a case, of which nothing is done yet."""
    if case.kind in ("text", "question"):
        text = model.text_defaults.replace(**case.settings)
        if case.kind == "text":
            return model.chat(case.prompt, text, seed=case.seed)
        return model.ask(PICTURES[case.picture], case.prompt, text, seed=case.seed)
    image = (
        model.image_defaults.replace(**case.settings) if case.settings else None
    )  # steps of the default are cut to the codes
    assert isinstance(case.prompt, str)
    if case.kind == "drawing":
        return model.paint(case.prompt, image, seed=case.seed, think=case.think)
    return model.inpaint(PICTURES[case.picture], _mask(case.cells), case.prompt, image, seed=case.seed)


def _mask(cells: tuple[int, int, int, int]) -> Image.Image:
    top, bottom, left, right = (edge * CELL for edge in cells)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[top:bottom, left:right] = 255
    return Image.fromarray(mask)


def _disc(x: int, y: int, radius: int) -> NDArray[np.bool_]:
    down, across = np.indices((SIDE, SIDE))
    return (across - x) ** 2 + (down - y) ** 2 <= radius**2


def _box(left: int, top: int, right: int, bottom: int) -> NDArray[np.bool_]:
    down, across = np.indices((SIDE, SIDE))
    return (across >= left) & (across < right) & (down >= top) & (down < bottom)


def _triangle(x: int, top: int, bottom: int, half: int) -> NDArray[np.bool_]:
    """Its tip at the top, `half` wide to each side at the bottom."""
    down, across = np.indices((SIDE, SIDE))
    return (down >= top) & (down < bottom) & (abs(across - x) * (bottom - top) <= half * (down - top))


def _picture(ground: Colour, *shapes: tuple[NDArray[np.bool_], Colour]) -> Image.Image:
    pixels = np.full((SIDE, SIDE, 3), ground, np.uint8)
    for shape, colour in shapes:
        pixels[shape] = colour
    return Image.fromarray(pixels)


def _tree(x: int, y: int, size: int) -> tuple[tuple[NDArray[np.bool_], Colour], ...]:
    trunk = _box(x - size // 4, y, x + size // 4, y + 2 * size)
    return (trunk, BROWN), (_disc(x, y, size), (35, 130, 60))


def _heart(x: int, y: int, size: int) -> NDArray[np.bool_]:
    tip = _triangle(x, SIDE - y - 2 * size, SIDE - y + size // 2, 2 * size - size // 4)[::-1]
    return _disc(x - size, y, size) | _disc(x + size, y, size) | tip


PICTURES: dict[str, Image.Image] = {
    "a disc": _picture(BLUE, (_disc(32, 32, 20), YELLOW)),
    "a heart": _picture(WHITE, (_heart(32, 24, 11), RED)),
    "a tree": _picture(PINK, *_tree(32, 24, 16)),
    "a house": _picture(GREEN, (_box(16, 32, 48, 56), WHITE), (_triangle(32, 10, 32, 22), RED), (_box(28, 42, 36, 56), BROWN)),
    "a crescent": _picture(BLACK, (_disc(30, 32, 21) & ~_disc(40, 28, 18), YELLOW)),
    "a ball": _picture(ORANGE, (_disc(32, 32, 21), WHITE), (_disc(32, 32, 7), BLACK), (_disc(20, 20, 4), BLACK)),
    "a ladybug": _picture(WHITE, (_disc(32, 20, 9), BLACK), (_disc(32, 36, 18), RED), (_disc(25, 34, 4), BLACK)),
    "an eye": _picture(PURPLE, (_disc(32, 32, 22), WHITE), (_disc(32, 32, 11), BLUE), (_disc(32, 32, 5), BLACK)),
    "a snowman": _picture(BLUE, (_disc(32, 42, 15), WHITE), (_disc(32, 19, 10), WHITE), (_disc(28, 17, 2), BLACK)),
    "an apple": _picture(YELLOW, (_disc(26, 36, 15) | _disc(38, 36, 15), RED), (_box(31, 12, 34, 24), BROWN)),
    "two trees": _picture(YELLOW, *_tree(16, 12, 7), *_tree(48, 44, 7)),
    "four things": _picture(
        *(GRAY, (_disc(16, 16, 11), RED), (_disc(48, 16, 11), WHITE), (_disc(48, 16, 4), BLACK)),
        *_tree(16, 42, 8),
        *_tree(48, 42, 8),
    ),
    "stripes": _picture(RED, (_box(0, 16, 64, 32), WHITE), (_box(0, 48, 64, 64), WHITE)),
    "nothing": _picture(PURPLE),
}


def _conversation(*turns: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]


_SUMS = (
    *("what is 47 + 85?", "what is 12 + 7?", "52 - 17", "38 + 64 =", "how much is 90 - 45?", "what is 3 + 9?", "7 - 2"),
    *(
        "what is 66 + 66?",
        "what is 71 - 29?",
        "19 + 83",
        "how much is 25 + 76?",
        "84 - 48 =",
        "what is 347 + 285?",
        "908 - 199",
    ),
    *("how much is 512 + 488?", "what is 731 - 268?", "604 + 97 =", "999 + 999", "what is 100 - 1?", "what is 1 + 2 + 3?"),
)
_FACTS = (
    *("what colour is a banana?", "where does a fish live?", "what does a cat say?", "how many legs does a dog have?"),
    *("how many months are in a year?", "what is a frog?", "when do you need an umbrella?", "what is the opposite of hot?"),
    *("what day comes after monday?", "hello", "who are you?", "what can you draw?", "what colour is a penguin?", "thank you"),
)
TEXTS = (
    *(Case("text", prompt) for prompt in (*_SUMS, *_FACTS)),
    Case("text", "what is 58 + 37?", 1, {"temperature": 0.5}),
    Case("text", "what is 463 + 179?", 2, {"temperature": 1.0}),
    Case("text", "80 - 23", 3, {"temperature": 1.0}),
    Case("text", "what is a cloud made of?", 4, {"temperature": 1.0}),
    Case("text", "tell me about the sun", 5, {"temperature": 0.8}),
    Case("text", "what colour is the sea?", 6, {"temperature": 1.0}),
    Case("text", "what is 58 + 37?", 0, {"guidance": 1.0}),
    Case("text", "where do you see a star?", 0, {"guidance": 0.5}),
    Case("text", _conversation("what is 12 + 30?", "42", "and what is 42 + 9?")),
    Case("text", _conversation("hello", "hello! what shall i draw?", "a cat", "what colour?", "what colour is a frog?")),
    Case("text", "what is 275 + 618?", 0, {"answer_length": 64, "steps": 32, "block_length": 16}),
    Case("text", "what is 93 - 58?", 0, {"answer_length": 30, "steps": 30, "block_length": 12}),
    Case("text", "which days are in a week?", 0, {"block_length": 48, "steps": 24}),
    Case("text", "what is the capital of france?"),
    Case("text", "what is 36 + 49?", 7, {"order": "random"}),
    Case("text", "a cat right of a car on a blue background"),
)

_THINGS = (
    *(
        "a cat on a blue background",
        "an apple on a red background",
        "a star on a black background",
        "a tree on a white background",
    ),
    *(
        "a car on a yellow background",
        "the moon on a purple background",
        "a banana on a pink background",
        "a heart on a gray background",
    ),
    *(
        "a house on a green background",
        "an umbrella on an orange background",
        "a frog, pink background",
        "a penguin, blue background",
    ),
    *("a picture of a rocket on a black background", "green background with a pumpkin", "a key", "grapes", "a guitar on white"),
    *("an eye on a red background", "corn on a purple background", "a skull on an orange background", "two hats and a shoe"),
)
_SCENES = (
    *(
        "a cat right of a car on a blue background",
        "a star above a key on a red background",
        "an apple left of a frog on white",
    ),
    *("a ball below a tree on a yellow background", "a watermelon right of a banana on a pink background"),
)
DRAWINGS = (
    *(Case("drawing", prompt, seed) for seed, prompt in enumerate(_THINGS)),
    *(Case("drawing", "a dog on a purple background", seed) for seed in range(100, 104)),
    *(Case("drawing", prompt, seed, think=True) for seed, prompt in enumerate(_SCENES)),
    Case("drawing", "a cat and a car", 3, think="left cat, right car, background green"),
    Case("drawing", "a pizza on a gray background", 2**63, {"guidance": 0.0}),
    *(Case("drawing", f"a bell on {colour}", 8, {"guidance": 0.0}) for colour in ("blue", "white", "black")),
    *(Case("drawing", f"a {thing} on a green background", 9, {"steps": 8}) for thing in ("pig", "gem", "lock", "bomb")),
    *(
        Case("drawing", f"a {thing} on a red background", 10, {"steps": 5, "guidance": 1.0})
        for thing in ("clock", "leaf", "fish")
    ),
    Case("drawing", "the sun on a blue background", 11, {"sampling_temperature": 0.0}),
    Case("drawing", "the sun on a blue background", 11, {"sampling_temperature": 0.5}),
    Case("drawing", "a cactus on an orange background", 12, {"temperature": 0.0, "sampling_temperature": 0.0}),
    Case("drawing", "a cactus on an orange background", 12, {"temperature": 2.0}),
    Case("drawing", "a tulip on a white background", 13, {"schedule": "linear", "steps": 12}),
    Case("drawing", "a tulip on a white background", 13, {"schedule": "pow2", "steps": 7}),
    Case("drawing", "a crown on a black background", 14, {"guidance_from": 0.25, "guidance_to": 0.75}),
    Case("drawing", "a crown on a black background", 14, {"steps": 1}),
)

QUESTIONS = (
    *(Case("question", "what is this?", picture=name) for name in ("a disc", "a heart", "a tree", "a house", "a crescent")),
    *(Case("question", "what do you see?", picture=name) for name in ("a ball", "a ladybug", "an eye", "a snowman")),
    *(Case("question", "what colour is the background?", picture=name) for name in ("nothing", "stripes", "an apple")),
    Case("question", "is this a heart?", picture="a heart"),
    Case("question", "describe the picture", picture="an apple"),
    Case("question", "how many trees are there?", picture="two trees"),
    Case("question", "are there more trees or balls?", picture="four things"),
    Case("question", "where is the ball?", picture="four things"),
    Case("question", "what is top left?", 5, {"temperature": 1.0}, picture="four things"),
    Case("question", "what is this?", 6, {"temperature": 1.0}, picture="stripes"),
    Case("question", _conversation("what is this?", "a tree", "what colour is the background?"), picture="a tree"),
)

INPAINTINGS = (
    Case("inpainting", "a heart on a white background", 1, picture="a heart", cells=(0, 8, 4, 8)),
    Case("inpainting", "a tree on a pink background", 2, picture="a tree", cells=(4, 8, 0, 8)),
    Case("inpainting", "a house on a green background", 3, picture="a house", cells=(2, 6, 2, 6)),
    Case("inpainting", "the moon on a black background", 4, {"guidance": 0.0}, picture="a crescent", cells=(0, 4, 0, 8)),
    Case("inpainting", "an eye on a purple background", 5, picture="an eye", cells=(3, 5, 3, 5)),
    Case("inpainting", "an apple on a yellow background", 6, {"steps": 6}, picture="an apple", cells=(0, 8, 0, 4)),
    Case("inpainting", "a ladybug on a white background", 7, {"guidance": 5.0}, picture="a ladybug", cells=(1, 7, 1, 7)),
    Case("inpainting", "a ball on an orange background", 8, {"steps": 1}, picture="a ball", cells=(7, 8, 7, 8)),
    Case("inpainting", "a star on a purple background", 9, picture="nothing", cells=(0, 8, 0, 8)),
    Case("inpainting", "the sun on a blue background", 10, {"sampling_temperature": 0.0}, picture="a disc", cells=(2, 8, 2, 8)),
)
CASES = (*TEXTS, *DRAWINGS, *QUESTIONS, *INPAINTINGS)
