"""Laws of texts with a form: two-sided search against brute force, and what is written satisfies, whatever the settings."""

import random
import re
from itertools import product
from typing import Any

import numpy as np
import pytest
from mock_denoiser import MockDenoiser
from small_attention import SmallAttention

from mmada_lite import Error
from mmada_lite.decoding.candidates import Candidates
from mmada_lite.decoding.canvas import text_canvas
from mmada_lite.decoding.constraint import ConstrainedHead, constrained, still_possible
from mmada_lite.decoding.denoiser import Head
from mmada_lite.decoding.forward import run_forward
from mmada_lite.decoding.generate import TextTokens, complete
from mmada_lite.decoding.settings import TextSettings
from mmada_lite.forms.form import Form
from mmada_lite.forms.letters import pattern_automaton
from mmada_lite.forms.tokens import TokenAutomaton, token_automaton

SPELLED = [b"a", b"b", b"ab", b"ba", b"c", "é".encode(), b"\xc3", b"\xa9", b"aa", b"1"]
STOP = (10, 11)
MASK, SIZE = 12, 13
PATTERNS = ["a", "a*", "(ab|ba)c", "[abc]{2,3}", "(a|b)*c?", "é+", "ab*c|1", "aab", "[^a]{1,2}", "1(a1)*", "(a|aa|aaa)b?"]


def automaton(pattern: str) -> TokenAutomaton:
    return token_automaton(pattern_automaton(pattern), [*SPELLED, None, None, None], STOP)


def accepted(pattern: str, ids: tuple[int, ...]) -> bool:
    """Whether a filled hole is a text of the pattern and then nothing but stop tokens."""
    end = next((n for n, token in enumerate(ids) if token in STOP), len(ids))
    if any(token not in STOP for token in ids[end:]) or MASK in ids:
        return False
    try:
        text = b"".join(SPELLED[token] for token in ids[:end]).decode()
    except UnicodeDecodeError:
        return False
    return re.fullmatch(pattern, text) is not None


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_may_stand_at_a_place_is_what_some_whole_text_has_there(pattern: str) -> None:
    """By brute force over every hole of three places and every way to have written some of it."""
    made, rng = automaton(pattern), random.Random(0)
    texts = [ids for ids in product(range(MASK), repeat=3) if accepted(pattern, ids)]
    holes = [tuple(MASK if rng.random() < 0.6 else token for token in rng.choice(texts)) for _ in range(20)] if texts else []
    holes += [tuple(MASK if rng.random() < 0.6 else rng.randrange(MASK) for _ in range(3)) for _ in range(20)]
    for hole in holes:
        fitting = [ids for ids in texts if all(own in (MASK, token) for own, token in zip(hole, ids, strict=True))]
        assert made.possible(np.array(hole), MASK) == bool(fitting), hole
        allowed = made.allowed(np.array(hole), MASK, [0, 1, 2])
        for place, own in enumerate(hole):
            if own == MASK:
                assert set(np.flatnonzero(allowed[place])) == {ids[place] for ids in fitting}, (hole, place)


@pytest.mark.parametrize(("pattern", "tokens"), [("a", 1), ("aaaa", 2), ("", 0), ("é", 1), ("x", None), ("ax*b", 1)])
def test_the_shortest_text(pattern: str, tokens: int | None) -> None:
    assert automaton(pattern).shortest() == tokens


SETTINGS: list[dict[str, Any]] = [
    {},
    {"steps": 2, "block_length": 8},
    {"temperature": 1.5},
    {"order": "random", "temperature": 0.7},
    {"guidance": 1.0},
    {"threshold": 0.3},
    {"threshold": 0.05, "lookahead": 3, "cache": "dual", "refresh": 2},
    {"cache": "prefix", "steps": 3, "block_length": 8},
    {"cache": "prompt", "block_length": 3, "steps": 4},
    {"entropy_bound": 2.0},
    {"select": "margin"},
    {"select": "entropy", "steps": 4},
    {"speculative_steps": 3},
    {"speculative_steps": 3, "cache": "dual", "threshold": 0.2},
    {"early_stop": 0.05, "thought_first": True},
    {"suffix_window": 2, "cache": "dual", "block_length": 4},
]


@pytest.mark.parametrize("changes", SETTINGS, ids=str)
def test_what_is_written_satisfies_the_pattern(changes: dict[str, Any]) -> None:
    settings = TextSettings(answer_length=8, steps=8, block_length=4).replace(**changes)
    for seed, pattern in enumerate(["(ab|ba)c", "[abc]{2,3}", "a{3}(b|é)*1", "1(a1)*", "(c|é){4,8}"]):
        model = SmallAttention(vocabulary=SIZE, mask=MASK, seed=seed)
        form = Form([(0, 8, automaton(pattern))], MASK)
        decoding = complete(model, [3, 1, 4], settings, TextTokens(MASK, frozenset(STOP)), seed=seed, constraints=[form])
        steps = list(decoding.steps)
        ids = tuple(int(token) for token in decoding.ids[0])
        end = next((n for n, token in enumerate(ids) if token in STOP), 8)
        assert accepted(pattern, ids[:end]), (pattern, ids)
        assert all(step.positions.size for step in steps)
        assert all((step.log_probabilities <= 0).all() for step in steps)


def test_the_written_tokens_are_the_law_renormalized() -> None:
    """The first step at temperature 0 takes the most probable of what may stand there, with its share of that alone."""
    model, pattern = SmallAttention(vocabulary=SIZE, mask=MASK, seed=3), "[abc]{2,3}"
    form = Form([(0, 4, automaton(pattern))], MASK)
    settings = TextSettings(answer_length=4, steps=4, block_length=4)
    decoding = complete(model, [3, 1], settings, TextTokens(MASK, frozenset(STOP)), constraints=[form])
    step = next(decoding.steps)
    place = int(step.positions[0]) - 2
    from mmada_lite.decoding.denoiser import Window

    row = np.array([[3, 1, *[MASK] * 4]])
    window = Window(row, np.arange(6), np.arange(2, 6)[None])
    logits = model.logits("text", model.forward(window, keep=False)[0], np.eye(1, dtype=np.float32))[0]
    allowed = form.allowed(row[0, 2:], np.arange(4))
    logits[~allowed] = -np.inf
    law = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    assert place == law.max(axis=1).argmax()
    assert int(step.tokens[0]) == law[place].argmax()
    assert step.log_probabilities[0] == pytest.approx(law[place].max(), abs=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_draw_is_by_the_law_renormalized(temperature: float) -> None:
    """Over many uniforms the shares of what is drawn are those of the softmax at its temperature over what is allowed."""
    rng = np.random.default_rng(0)
    model = SmallAttention(vocabulary=SIZE, mask=MASK)
    hidden = np.repeat(rng.normal(size=(1, 1, 16)), 4000, axis=1)
    allowed = np.zeros((1, 4000, SIZE), dtype=bool)
    allowed[..., [1, 4, 7]] = True
    identity = np.eye(1, dtype=np.float32)
    uniforms = ((np.arange(4000) + 0.5) / 4000).astype(np.float32)[None]
    drawn = ConstrainedHead(model, allowed).predict("text", hidden, identity, temperature, uniforms)
    logits = model.logits("text", hidden[:, :1], identity)[0, 0, [1, 4, 7]]
    shares = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    found = [(drawn.token == token).mean() for token in (1, 4, 7)]
    np.testing.assert_allclose(found, shares, atol=1e-3)
    law = logits - np.log(np.exp(logits).sum())
    for token, value in zip((1, 4, 7), law, strict=True):
        np.testing.assert_allclose(drawn.log_probability[drawn.token == token], value, atol=1e-5)
    assert drawn.entropy is not None
    np.testing.assert_allclose(drawn.entropy, -(np.exp(law) * law).sum(), atol=1e-5)


def test_a_draw_at_the_edge_of_two_ids_is_the_first() -> None:
    """Where the cumulative probability reaches the number exactly; and temperature 0 draws nothing."""
    model = SmallAttention(vocabulary=SIZE, mask=MASK)
    allowed = np.zeros((1, 3, SIZE), dtype=bool)
    allowed[..., [4, 7]] = True
    hidden, identity = np.zeros((1, 3, 16)), np.eye(1, dtype=np.float32)  # so that all logits are 0
    uniforms = np.array([[0.25, 0.5, 0.75]], dtype=np.float32)
    head = ConstrainedHead(model, allowed)
    assert head.predict("text", hidden, identity, 1.0, uniforms).token.tolist() == [[4, 4, 7]]
    assert head.predict("text", hidden, identity, 0.0, uniforms).token.tolist() == [[4, 4, 4]]


def test_masks_of_a_prompt_have_no_form() -> None:
    for seed in range(3):
        model, before = SmallAttention(vocabulary=SIZE, mask=MASK, seed=seed), [3, MASK, 4]
        form = Form([(0, 4, automaton("a*"))], MASK)
        settings = TextSettings(answer_length=4, steps=1, block_length=4)
        decoding = complete(model, before, settings, TextTokens(MASK, frozenset(STOP)), constraints=[form])
        free = complete(model, before, settings, TextTokens(MASK, frozenset(STOP)))
        next(free.steps)
        steps = list(decoding.steps)
        assert decoding.canvas.tokens[0, 1] == free.canvas.tokens[0, 1]
        assert 1 in steps[0].positions
        ids = tuple(int(token) for token in decoding.ids[0])
        assert accepted("a*", ids), ids


class Few:
    """Allows so many ids in an answer, whichever."""

    def __init__(self, most: int) -> None:
        self.most = most

    def allowed(self, answer: np.ndarray, places: np.ndarray) -> np.ndarray:
        return np.ones((len(places), SIZE), dtype=bool)

    def possible(self, answer: np.ndarray) -> bool:
        return int((answer != MASK).sum()) <= self.most


def test_of_what_excludes_each_other_the_most_confident_is_written() -> None:
    """The leftmost among equals; what a row is not asked for stays out, and a prompt's place counts for nothing."""
    confidence = np.array([[-0.1, -0.5, -0.2, -0.3, *[-0.4] * 20]] * 2)
    positions = np.array([[1, *range(3, 26)]] * 2)  # one of the prompt, then the answer
    canvas = text_canvas([[3, MASK, 4]] * 2, 24, MASK)
    candidates = Candidates(positions, positions > 0, positions * 0, confidence, confidence, None)
    chosen = np.ones(positions.shape, dtype=bool)
    chosen[1, 2] = False
    kept = still_possible([Few(2), Few(4)], candidates, chosen, canvas.tokens, canvas)
    assert [np.flatnonzero(row).tolist() for row in kept] == [[0, 2, 3], [0, 3, 4, 5, 6]]
    assert still_possible([], candidates, chosen, canvas.tokens, canvas) is chosen


class InOrder(Few):
    """Asks for an answer that is written from left to right."""

    def __init__(self) -> None:
        super().__init__(0)

    def possible(self, answer: np.ndarray) -> bool:
        return bool((np.diff((answer == MASK).astype(int)) >= 0).all())


class Sure(MockDenoiser):
    """Its logits are the further apart the surer it is."""

    def logits(self, head: Head, hidden: np.ndarray, mix: np.ndarray) -> np.ndarray:
        return super().logits(head, hidden, mix)[..., :SIZE] * hidden[: len(mix), :, 1:]


def test_a_draft_foresees_what_the_form_refuses() -> None:
    """Two tokens a step are chosen, the surest, and 5 is surer than 4, which has to come before it."""
    settings = TextSettings(answer_length=6, steps=3, block_length=6).replace(speculative_steps=3)
    model = Sure(dict.fromkeys(range(20), 2), {3: 0.9, 4: 0.7, 5: 0.8, 6: 0.6, 7: 0.5, 8: 0.4})
    steps = list(complete(model, [1, 2, 4], settings, TextTokens(MASK), constraints=[InOrder()]).steps)
    assert [step.positions.tolist() for step in steps] == [[3], [4], [5, 6], [7, 8]]
    assert [step.model_calls for step in steps] == [1, 2, 2, 2]


def test_a_place_that_can_hold_nothing_has_the_law_without_a_form() -> None:
    """As in a draft that cannot come: numbers, beside a place that can hold one id."""
    model, canvas = SmallAttention(vocabulary=SIZE, mask=MASK), text_canvas([1], 2, MASK)
    forward = run_forward(model, canvas, canvas.masked(), 0.0)
    form = Few(2)
    form.allowed = lambda answer, places: np.stack([np.zeros(SIZE, bool), np.arange(SIZE) == 9])  # type: ignore[method-assign]
    head = constrained(model, [form], canvas, forward)
    found = head.predict("text", forward.hidden, forward.mix, 0.0, None)
    free = model.predict("text", forward.hidden, forward.mix, 0.0, None)
    assert found.token.tolist() == [[free.token[0, 0], 9]]
    np.testing.assert_allclose(found.log_probability, [[free.log_probability[0, 0], 0]], rtol=1e-5)


def test_mode_reference_keeps_no_form() -> None:
    settings = TextSettings(answer_length=8, steps=8, block_length=4, mode="reference")
    form = Form([(0, 8, automaton("a*"))], MASK)
    with pytest.raises(Error, match="mode reference"):
        complete(SmallAttention(), [1], settings, TextTokens(MASK), constraints=[form])
