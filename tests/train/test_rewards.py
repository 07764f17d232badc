"""Laws of rewards, of written-out arithmetic and of layouts. Things are discs; the judge is planted and reads their colour."""

import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import occupied

from mmada_lite.errors import Error
from mmada_lite.train.data import arithmetic
from mmada_lite.train.data.arithmetic import KINDS, Problem
from mmada_lite.train.data.concepts import COLOURS, CONCEPT_NAMES
from mmada_lite.train.data.layouts import Layout, cell_pictures, cells
from mmada_lite.train.data.pictures import PLAIN, background_of, compose
from mmada_lite.train.data.thoughts import answer_of, split_thought, with_thought
from mmada_lite.train.rewards import JUDGED, REWARDS, SeenTogether, Truth, find_reward, weigh

law = settings(deadline=None, database=None)
NUMBERS = st.integers(0, 12345)
TEXTS = st.text("abc 12+=,.\n", max_size=20)
TONES = {"apple": (200, 30, 30), "frog": (30, 160, 40), "key": (90, 60, 20)}  # what the planted judge knows
THINGS = st.sampled_from([None, *TONES])


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    first, second = draw(NUMBERS), draw(NUMBERS)
    return Problem(first, "+", second) if draw(st.booleans()) else Problem(max(first, second), "-", min(first, second))


def disc(tone: tuple[int, int, int], size: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    inside = x * x + y * y < (0.42 * size) ** 2
    return np.where(inside[..., None], np.array(tone), -1)


def scene(layout: Layout, ground: tuple[int, int, int] = (240, 240, 240)) -> np.ndarray:
    """A picture with a disc in each named cell."""
    picture = np.empty((64, 64, 3), np.uint8)
    picture[:] = ground
    for cell, name in zip(cells(picture, layout.rows, layout.columns), layout.names, strict=True):
        if name is not None:
            side = min(cell.shape[:2])
            top, left = (cell.shape[0] - side) // 2, (cell.shape[1] - side) // 2
            thing = disc(TONES[name], side)
            part = cell[top : top + side, left : left + side]
            part[thing[..., 0] >= 0] = thing[thing[..., 0] >= 0]
    return picture


def planted(pictures: np.ndarray) -> np.ndarray:
    """The concept whose tone lies nearest to the middle of each picture."""
    middle = pictures[:, 28:36, 28:36].reshape(len(pictures), -1, 3).mean(1)
    names = list(TONES)
    nearest = [names[int(np.argmin([np.linalg.norm(m - np.array(TONES[n])) for n in names]))] for m in middle]
    return np.array([CONCEPT_NAMES.index(n) for n in nearest])


def scored(problem: Problem, response: str) -> dict[str, float]:
    rewards = weigh({"answer": 1.0, "format": 1.0, "thought": 1.0})
    return rewards.parts(f"what is {problem}?", response, Truth(answer=str(problem.answer)))


@law
@given(problems())
def test_the_generator_is_always_right(problem: Problem) -> None:
    response = arithmetic.response_to(problem)
    assert scored(problem, response) == {"answer": 1.0, "format": 1.0, "thought": 1.0}
    assert len(arithmetic.thought_of(problem).split(", ")) == problem.columns
    assert split_thought(response) == (arithmetic.thought_of(problem), str(problem.answer))


@law
@given(problems())
def test_the_steps_spell_the_answer(problem: Problem) -> None:
    """The last digits of the steps, read backwards, with the last carry before them."""
    totals = [step.split("=")[1] for step in arithmetic.thought_of(problem).split(", ")]
    assert int(totals[-1] + "".join(total[-1] for total in reversed(totals[:-1]))) == problem.answer


@law
@given(problems(), st.data())
def test_a_corrupted_digit_lowers_the_score(problem: Problem, data: st.DataObject) -> None:
    response = arithmetic.response_to(problem)
    index = data.draw(st.sampled_from([k for k, letter in enumerate(response) if letter.isdigit()]))
    other = data.draw(st.sampled_from([d for d in "0123456789" if d != response[index]]))
    scores = scored(problem, response[:index] + other + response[index + 1 :])
    wrong, right = ("thought", "answer") if index < response.index("</think>") else ("answer", "thought")
    assert scores[wrong] < 1.0
    assert scores[right] == scores["format"] == 1.0


@law
@given(problems(), st.data())
def test_a_missing_or_superfluous_step_lowers_the_score(problem: Problem, data: st.DataObject) -> None:
    steps = arithmetic.thought_of(problem).split(", ")
    index = data.draw(st.integers(0, len(steps) - 1))
    assert arithmetic.true_share(problem, ", ".join(steps[:index] + steps[index + 1 :])) < 1.0
    longer = arithmetic.true_share(problem, ", ".join([*steps, steps[index]]))
    assert longer == pytest.approx(len(steps) / (len(steps) + 1))


@law
@given(problems(), TEXTS)
def test_any_text_has_a_score(problem: Problem, text: str) -> None:
    """Only the true thought scores one."""
    share = arithmetic.true_share(problem, text)
    assert 0.0 <= share < 1.0 or text.replace(" ", "") == arithmetic.thought_of(problem).replace(" ", "")
    for response in (text, with_thought(text, text), f"<think>{text}", f"{text}</think> 3"):
        assert all(0.0 <= value <= 1.0 for value in scored(problem, response).values())


def test_written_as_documented() -> None:
    for problem, response in (
        (Problem(47, "+", 85), "<think> 7+5+0=12, 4+8+1=13 </think> 132"),
        (Problem(52, "-", 17), "<think> 12-7-0=5, 5-1-1=3 </think> 35"),
        (Problem(100, "-", 1), "<think> 10-1-0=9, 10-0-1=9, 1-0-1=0 </think> 99"),
        (Problem(5, "+", 10), "<think> 5+0+0=5, 0+1+0=1 </think> 15"),
    ):
        assert arithmetic.response_to(problem) == response
        assert response.split("> ")[0] + ">" in (arithmetic.__doc__ or "")
    for example in ("<think> 7+5+0=12, 4+8+1=13 </think> 132", "<think> 12-7-0=5, 5-1-1=3 </think> 35"):
        assert example in (arithmetic.__doc__ or "")


def test_one_slip_costs_one_step() -> None:
    problem = Problem(147, "+", 285)  # 7+5+0=12, 4+8+1=13, 1+2+1=4
    for thought, share in (
        ("7+5+0=12, 4+8+1=14, 1+2+1=4", 2 / 3),  # a wrong total whose carry is right
        ("7+5+0=2, 4+8+0=12, 1+2+1=4", 2 / 3),  # a wrong carry, followed faithfully
        ("7+5+0=2, 4+8+1=13, 1+2+1=4", 1 / 3),  # a wrong carry, not followed
        ("7+5+0=12, 5+8+1=14, 1+2+1=4", 2 / 3),  # a digit that is not the problem's
        ("7+5+0=12, , 1+2+1=4", 2 / 3),
        ("4+8+1=13, 7+5+0=12, 1+2+1=4", 1 / 3),  # the wrong order
        ("", 0.0),
        ("432", 0.0),
    ):
        assert arithmetic.true_share(problem, thought) == pytest.approx(share), thought


def test_problems_are_of_their_kind_and_side() -> None:
    rng = np.random.default_rng(0)
    for kind, (sign, digits) in KINDS.items():
        for held_out in (True, False):
            for problem in arithmetic.distinct_problems(kind, held_out, 60 if digits > 1 else 4, rng):
                assert problem.sign == sign
                assert len(str(problem.first)) == len(str(problem.second)) == digits
                assert problem.answer >= 0
                text = f"{min(problem.first, problem.second)} + {max(problem.first, problem.second)}"
                assert held_out == (zlib.crc32((text if sign == "+" else str(problem)).encode()) % 10 == 0)
                assert held_out == problem.held_out
    assert Problem(31, "+", 17).held_out == Problem(17, "+", 31).held_out
    assert all(Problem(a, "+", b).split_text == f"{min(a, b)} + {max(a, b)}" for a in range(12) for b in range(12))


def test_problems_repeat_with_their_seed_and_reach_everywhere() -> None:
    first, second = (
        [arithmetic.draw_problem("sum2", False, rng) for _ in range(500)] for rng in map(np.random.default_rng, (1, 1))
    )
    assert first == second
    leading = Counter(problem.first // 10 for problem in first)
    assert set(leading) == set(range(1, 10))
    mixed = [arithmetic.draw_problem("sum2", False, np.random.default_rng(n), shorter=0.5) for n in range(400)]
    assert 150 < sum(min(problem.first, problem.second) < 10 for problem in mixed) < 250
    with pytest.raises(Error, match="did you mean 'sum3'"):
        arithmetic.draw_problem("sum4", False, np.random.default_rng(2))
    with pytest.raises(Error, match="different problems of kind 'difference2'"):
        arithmetic.distinct_problems("difference2", True, 600, np.random.default_rng(2))
    with pytest.raises(Error, match="below zero"):
        Problem(3, "-", 4)


def test_the_corpus_holds_nothing_that_is_held_out() -> None:
    lines = list(arithmetic.corpus(np.random.default_rng(3), count=100))
    asked_problems = [problem for line in lines[::2] if (problem := arithmetic.problem_in(line))]
    assert len(asked_problems) == 100 * len(KINDS)
    assert not any(problem.held_out for problem in asked_problems)
    assert all(arithmetic.response_to(problem) == line for problem, line in zip(asked_problems, lines[1::2], strict=True))
    assert arithmetic.problem_in("what colour is the sun?") is None


@law
@given(TEXTS, TEXTS)
def test_thoughts_come_apart_as_they_were_joined(thought: str, answer: str) -> None:
    parts = split_thought(with_thought(thought, answer))
    if thought.strip() and answer.strip():
        assert parts == (thought.strip(), answer.strip())
        assert answer_of(with_thought(thought, answer)) == answer.strip()
    else:
        assert parts is None


@pytest.mark.parametrize(
    "text",
    [
        "35",
        "<think> 12 </think>",
        "<think> </think> 35",
        "so: <think> 12 </think> 35",
        "<think> 12 35",
        "12 </think> 35",
        "<think> <think> 12 </think> 35",
        "<think> 12 </think> 35 </think>",
        "<think> 12 </think> <think> 35",
        "< think> 12 </think> 35",
        "",
    ],
)
def test_a_broken_format_earns_nothing(text: str) -> None:
    scores = scored(Problem(52, "-", 17), text)
    assert scores["format"] == scores["thought"] == 0.0
    assert scores["answer"] == float(text == "35")  # a bare answer may still be right


def test_answers_are_compared_as_people_do() -> None:
    judge = find_reward("answer")
    truth = Truth(answer="a red apple")
    for response, right in (
        ("a red apple", 1),
        (" A  red apple. ", 1),
        ("<think> round </think> a red apple", 1),
        ("a red apple on blue", 0),
        ("<think> a red apple </think> a cat", 0),
        ("", 0),
    ):
        assert judge("what is this?", response, truth) == right


@pytest.mark.parametrize("colour", COLOURS)
def test_backgrounds_are_read_from_pixels(colour: str) -> None:
    icon = np.zeros((96, 96, 4), np.uint8)
    icon[24:72, 24:72] = (120, 90, 60, 255)
    picture = compose(icon, colour, np.random.default_rng(4), PLAIN)
    judge = find_reward("background")
    assert background_of(picture) == colour
    assert [judge("", picture, Truth(background=other)) for other in COLOURS] == [float(k == colour) for k in COLOURS]


@law
@given(st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2), (2, 3)]), st.data())
def test_layouts_are_read_from_pixels(grid: tuple[int, int], data: st.DataObject) -> None:
    rows, columns = grid
    names = tuple(data.draw(THINGS) for _ in range(rows * columns))
    picture = scene(Layout(rows, columns, names))
    assert occupied(picture, rows, columns) == [name is not None for name in names]
    requested = Layout(rows, columns, tuple(data.draw(THINGS) for _ in range(rows * columns)))
    if requested.named:
        reward = find_reward("concept", planted)("", picture, Truth(layout=requested))
        right = [names[cell] == name for cell, name in requested.named if names[cell] is not None]
        empty = sum(names[cell] is None for cell, _ in requested.named)
        assert sum(right) <= round(reward * len(requested.named)) <= sum(right) + empty


def test_cells_are_seen_whole_and_in_reading_order() -> None:
    picture = scene(Layout(2, 2, ("apple", None, None, "key")))
    parts = cell_pictures(picture, 2, 2)
    assert parts.shape == (4, 64, 64, 3)
    assert np.abs(parts[0, 32, 32].astype(int) - TONES["apple"]).max() < 3
    assert np.abs(parts[3, 32, 32].astype(int) - TONES["key"]).max() < 3
    assert (parts[1] == 240).all()
    assert (cell_pictures(picture, 1, 1)[0] == picture).all()
    tall = cell_pictures(scene(Layout(1, 2, ("frog", "apple"))), 1, 2)
    assert tall.shape == (2, 64, 64, 3)
    assert (tall[:, :, :12] == 240).all()  # filled up with the background, not stretched


def test_swapped_things_lose_the_concepts() -> None:
    truth = Truth(layout=Layout(1, 2, ("frog", "apple")))
    rewards = weigh({"concept": 2.0}, planted)
    assert rewards("a frog left of an apple", scene(Layout(1, 2, ("frog", "apple"))), truth) == pytest.approx(2.0)
    swapped = scene(Layout(1, 2, ("apple", "frog")))
    assert rewards.parts("a frog left of an apple", swapped, truth) == {"concept": 0.0}
    half = scene(Layout(1, 2, ("frog", "key")))
    assert rewards.parts("a frog left of an apple", half, truth) == {"concept": 0.5}


def test_what_was_shown_together_is_said_again_without_a_call() -> None:
    calls: list[int] = []

    def counting(pictures: np.ndarray) -> np.ndarray:
        calls.append(len(pictures))
        return planted(pictures)

    layouts = [Layout(1, 2, ("frog", "apple")), Layout(2, 1, ("key", "frog")), Layout(1, 1, ("apple",))]
    pictures, judge = [scene(layout) for layout in layouts], SeenTogether(counting)
    judge.look([(picture, own.rows, own.columns) for picture, own in zip(pictures, layouts, strict=True)])
    rewards = weigh({"concept": 1.0}, judge)
    assert [rewards("", picture, Truth(layout=own)) for picture, own in zip(pictures, layouts, strict=True)] == [1.0, 1.0, 1.0]
    assert calls == [5]
    judge.look([])
    assert rewards("", pictures[0], Truth(layout=layouts[1])) == 0.0  # not known: asked
    assert calls == [5, 2]


def test_the_judge_of_the_house_fits() -> None:
    import torch

    from mmada_lite.train.judge import Judge

    torch.manual_seed(0)
    judge = Judge()
    judge.head.bias.data[CONCEPT_NAMES.index("frog")] = 1e6  # sees frogs everywhere
    picture = scene(Layout(1, 2, ("frog", "apple")))
    assert find_reward("concept", judge.classify)("", picture, Truth(layout=Layout(1, 2, ("frog", "apple")))) == 0.5


def test_weights_add_up() -> None:
    problem = Problem(47, "+", 85)
    rewards, truth = weigh({"answer": 2.0, "format": 0.5, "thought": -1.0}), Truth(answer="132")
    assert rewards(f"{problem} =", arithmetic.response_to(problem), truth) == pytest.approx(1.5)
    assert rewards(f"{problem} =", "132", truth) == pytest.approx(2.0)


TEXT, PICTURE = "<think> a </think> b", np.zeros((64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("name", "response", "truth", "message"),
    [
        ("answer", TEXT, Truth(), "'answer' reads the truth's answer"),
        ("answer", PICTURE, Truth(answer="b"), "'answer' judges texts and was given a picture"),
        ("format", PICTURE, Truth(), "'format' judges texts"),
        ("thought", TEXT, Truth(), "asks for no sum or difference"),
        ("background", TEXT, Truth(background="red"), "'background' judges pictures and was given a text"),
        ("background", PICTURE, Truth(), "reads the truth's background"),
        ("background", PICTURE[0], Truth(background="red"), r"needs a picture uint8 \[H, W, 3\]"),
        ("concept", PICTURE / 255, Truth(layout=Layout(1, 1, ("apple",))), "not float64"),
        ("concept", PICTURE, Truth(), "reads the truth's layout"),
        ("concept", PICTURE, Truth(layout=Layout(1, 1, (None,))), "reads the truth's layout and the names"),
    ],
)
def test_what_cannot_be_judged_says_why(name: str, response: str | np.ndarray, truth: Truth, message: str) -> None:
    with pytest.raises(Error, match=message):
        find_reward(name, planted)("what is this?", response, truth)


def test_unknown_names_name_the_nearest() -> None:
    for call, message in (
        (lambda: find_reward("anwser"), "no reward is called 'anwser'; did you mean 'answer'"),
        (lambda: find_reward("concepts"), "did you mean 'concept'"),
        (lambda: find_reward("zzz"), f"use one of {', '.join((*REWARDS, *JUDGED))}"),
        (lambda: find_reward("concept"), "needs a judge"),
        (lambda: weigh({}), "no rewards are given"),
        (lambda: weigh({"answer": float("nan")}), "weight of the reward 'answer' is nan"),
        (lambda: Truth(background="rad"), "did you mean 'red'"),
        (lambda: Truth(layout=Layout(1, 1, ("aple",))), "did you mean 'apple'"),
        (lambda: Layout(2, 2, ("apple",)), "2 x 2 cells cannot have 1 names"),
    ):
        with pytest.raises(Error, match=message):
            call()
