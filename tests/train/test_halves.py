"""What is held out has two halves: models are chosen by the one and the card is measured on the other, and neither reads what
the other asks, be it a caption, a problem, a layout or an icon."""

import argparse
from pathlib import Path

import numpy as np
import pytest
from toys import discs

from mmada_lite.bench.quality import evaluate, tasks
from mmada_lite.bench.quality.context import EvalContext
from mmada_lite.train.data import emoji, texts
from mmada_lite.train.data.arithmetic import distinct_problems, draw_problem, every_held_out
from mmada_lite.train.data.scenes import GRIDS, draw_layout, layout_held_out, layout_text
from mmada_lite.train.data.texts import CONCEPTS, half_of, pair_text, pairs

HALVES: tuple[texts.Half, ...] = ("validation", "test")


def test_halves_share_nothing_and_are_all_that_is_held_out() -> None:
    apart = [set(pairs(True, half)) for half in HALVES]
    assert not apart[0] & apart[1]
    assert apart[0] | apart[1] == set(pairs(True))
    assert min(map(len, apart)) > 20
    assert not apart[1] & set(pairs(False, "test"))  # of the training side there are no halves
    assert pairs(False, "test") == pairs(False)
    assert any(problem.answer == 0 for problem in every_held_out("difference2"))
    for kind in ("sum2", "difference2"):
        first, second = (set(every_held_out(kind, half)) for half in HALVES)
        assert not first & second
        assert first | second == set(every_held_out(kind))
        assert min(len(first), len(second)) > tasks.MOST_OF_TWO_DIGITS
    assert {half_of(pair_text(CONCEPTS[i], colour)) for i, colour in apart[1]} == {"test"}


@pytest.mark.parametrize("half", HALVES)
def test_what_is_drawn_is_of_its_half(half: texts.Half) -> None:
    rng = np.random.default_rng(0)
    for kind in ("sum1", "difference3"):
        for _ in range(20):
            problem = draw_problem(kind, True, rng, half=half)
            assert problem.held_out
            assert half_of(problem.split_text) == half
    assert {half_of(p.split_text) for p in distinct_problems("sum3", True, 40, rng, half)} == {half}
    for grid in GRIDS:
        for _ in range(10):
            layout = draw_layout(grid, True, rng, half)
            assert layout_held_out(layout)
            assert half_of(layout_text(layout)) == half
    assert not draw_problem("sum2", False, rng, half=half).held_out


class Listening:
    """A model that writes nothing and keeps what it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.problems, self.layouts = list[str](), list[str](), list[str]()
        monkeypatch.setattr(EvalContext, "ask", self.ask)
        monkeypatch.setattr(tasks.rollouts, "caption_prompts", lambda _, captions: self.asked.extend(captions) or captions)
        monkeypatch.setattr(EvalContext, "pictures", lambda _, prompts, seed: np.zeros((len(prompts), 64, 64, 3), np.uint8))
        drawn = tasks.draw_layout
        monkeypatch.setattr(tasks, "draw_layout", lambda *given: self.layouts.append(layout_text(own := drawn(*given))) or own)

    def ask(self, questions: list[str], pictures: object = None) -> list[str]:
        self.asked += questions
        return [""] * len(questions)


@pytest.mark.parametrize("half", HALVES)
def test_an_exam_asks_its_own_half(half: texts.Half, monkeypatch: pytest.MonkeyPatch) -> None:
    """Icons of the other half are not there, so that a task that looked for them would fail."""
    model, icons = Listening(monkeypatch), {role: discs()[:, :, ::4, ::4] for role in ("train", half)}
    context = EvalContext(None, lambda cells: np.zeros(len(cells), np.int64), icons, 24, half=half)  # type: ignore[arg-type]
    for task in (tasks.what_is_this, tasks.scenes, tasks.drawing, tasks.arithmetic):
        task(context)
    others = {texts.standard_caption(CONCEPTS[i], colour) for i, colour in pairs(True, HALVES[half == "validation"])}
    own = {texts.standard_caption(CONCEPTS[i], colour) for i, colour in pairs(True, half)}
    assert set(model.asked) & own
    assert not set(model.asked) & others
    sums = [text.removeprefix("what is ").removesuffix("?") for text in model.asked if text.startswith("what is ")]
    numbers = [text for text in sums if text[0].isdigit()]
    assert len(numbers) > 40
    assert {half_of(" + ".join(sorted(n.split(" + "), key=int)) if "+" in n else n) for n in numbers} == {half}
    assert {half_of(layout) for layout in model.layouts} == {half}


@pytest.mark.parametrize("half", HALVES)
def test_choosing_opens_no_icon_of_the_card(half: texts.Half, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = list[str]()

    def load(path: Path, role: str) -> argparse.Namespace:
        opened.append(role)
        return argparse.Namespace(pixels=discs())

    monkeypatch.setattr(emoji, "load_concepts", load)
    monkeypatch.setattr(evaluate.Judge, "load", lambda folder: argparse.Namespace(classify=None))
    monkeypatch.setattr(evaluate, "open_model", lambda path, device: None)
    options = evaluate.build_parser().parse_args(["model", *([] if half == "validation" else ["--split", "test"])])
    context = evaluate.Cases(options).of(Path("model"))
    assert opened == ["train", half]
    assert context.half == half
