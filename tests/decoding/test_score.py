"""Laws of scores and choices, by brute force over every answer of small models."""

from itertools import combinations, product

import numpy as np
import pytest
from small_attention import Shifted, SmallAttention

from mmada_lite import Error
from mmada_lite.decoding.denoiser import Window
from mmada_lite.decoding.generate import TextTokens, complete
from mmada_lite.decoding.sampling import Stream, uniform
from mmada_lite.decoding.score import END, choose, score
from mmada_lite.decoding.settings import TextSettings

SIZE, MASK = 6, 5
STOP = frozenset({3, 4})
PROMPT = [0, 2, 1]


def small(seed: int) -> SmallAttention:
    return SmallAttention(vocabulary=SIZE, mask=MASK, width=8, seed=seed)


def mixed_logits(model: SmallAttention, answer: list[int], guidance: float) -> np.ndarray:
    """[N, V] of a row."""
    rows = [PROMPT + answer, [MASK] * len(PROMPT) + answer]
    logits = []
    for row in rows:
        places = np.arange(len(row))
        window = Window(np.array([row]), places, places[None, len(PROMPT) :])
        logits.append(model.logits("text", model.forward(window, keep=False)[0], np.eye(1, dtype=np.float32))[0])
    return (1 + guidance) * logits[0] - guidance * logits[1]


def marginals(model: SmallAttention, answer: list[int], guidance: float = 0.0) -> np.ndarray:
    """[N, V] log probabilities of a row read off the model's logits, without the mask."""
    mixed = mixed_logits(model, answer, guidance)
    mixed[:, MASK] = -np.inf
    return mixed - np.log(np.exp(mixed).sum(axis=-1, keepdims=True))


def chain_by_hand(model: SmallAttention, answer: list[int], scored: set[int], guidance: float = 0.0) -> tuple[float, list[int]]:
    row = [MASK if place in scored else token for place, token in enumerate(answer)]
    total, order = 0.0, []
    while left := [place for place in range(len(row)) if place in scored and place not in order]:
        law = marginals(model, row, guidance)
        place = max(left, key=lambda place: (full(model, row, guidance)[place], -place))
        total += law[place, answer[place]]
        row[place] = answer[place]
        order.append(place)
    return total, order


def full(model: SmallAttention, row: list[int], guidance: float = 0.0) -> np.ndarray:
    """The loop's confidence at every place: the most probable token of the whole vocabulary, or, where that is the mask, the
    most probable other one among the others."""
    law = mixed_logits(model, row, guidance)
    law -= np.log(np.exp(law).sum(axis=-1, keepdims=True))
    return np.where(law.argmax(axis=1) == MASK, marginals(model, row, guidance).max(axis=1), law.max(axis=1))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("guidance", [0.0, 0.7])
def test_one_pass_reads_the_marginals_off_the_logits(seed: int, guidance: float) -> None:
    model, answer, scored = small(seed), [1, 0, 2, 3], [True, False, True, True]
    law = marginals(model, [MASK, 0, MASK, MASK], guidance)
    model.windows.clear()
    found = score(model, PROMPT, answer, scored, MASK, law="one_pass", guidance=guidance)
    assert len(model.windows) == (2 if guidance else 1)
    assert found.order.tolist() == [[-1] * 4]
    np.testing.assert_allclose(found.by_place[0], [law[0, 1], 0, law[2, 2], law[3, 3]], atol=1e-6)
    assert found.model_calls == 1


@pytest.mark.parametrize("seed", range(5))
def test_a_chain_goes_the_way_of_the_loop_and_is_a_law(seed: int) -> None:
    """Over all answers of a length its probabilities add up to 1; every value and order is the one made by hand."""
    model = small(seed)
    answers = [[1, *pair, 0] for pair in product(range(SIZE - 1), repeat=2)]
    found = score(model, PROMPT, answers, [False, True, True, False], MASK, rows=7)
    assert np.exp(found.log_likelihood).sum() == pytest.approx(1, abs=1e-6)
    for row, answer in enumerate(answers):
        total, order = chain_by_hand(model, answer, {1, 2})
        assert found.log_likelihood[row] == pytest.approx(total, abs=1e-5)
        assert [int(found.order[row, place]) for place in order] == [0, 1]
    assert found.model_calls == 2 * -(-len(answers) // 7)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("guidance", [0.4, 1.5])
def test_a_guided_chain_mixes_what_stands_there_at_each_of_its_steps(seed: int, guidance: float) -> None:
    model, answer = small(seed), [1, 0, 2, 3]
    found = score(model, PROMPT, answer, [True, False, True, True], MASK, guidance=guidance)
    total, order = chain_by_hand(model, answer, {0, 2, 3}, guidance)
    assert found.log_likelihood[0] == pytest.approx(total, abs=1e-5)
    assert found.order[0].tolist() == [order.index(place) if place in order else -1 for place in range(4)]


def test_answers_of_a_batch_are_scored_as_each_alone() -> None:
    """In blocks that they cut differently, by one of them a forward or by all."""
    model, rng = small(4), np.random.default_rng(0)
    answers, scored = rng.integers(0, MASK, (5, 6)), rng.random((5, 6)) < 0.7
    for block_length in (1, 2, None):
        together = score(model, PROMPT, answers, scored, MASK, block_length=block_length)
        apart = score(model, PROMPT, answers, scored, MASK, block_length=block_length, rows=1)
        np.testing.assert_allclose(together.by_place, apart.by_place, atol=1e-9)
        assert together.order.tolist() == apart.order.tolist()


def test_draws_are_those_that_their_address_gives() -> None:
    """As another program must draw them: l = 1 + floor(u * L), then those with the l smallest numbers."""
    model, answer, places, law = small(1), [1, 3, 0, 2], [0, 1, 3], []
    for draw in range(3):
        count = 1 + int(float(uniform(7, Stream.SCORE_COUNT, 0, draw, 0)) * 3)
        numbers = uniform(7, Stream.SCORE_PLACES, 0, draw, np.arange(3))
        hidden = [places[n] for n in sorted(range(3), key=lambda n, numbers=numbers: numbers[n])[:count]]
        read = marginals(model, [MASK if n in hidden else token for n, token in enumerate(answer)])
        law.append(sum(read[n, answer[n]] for n in hidden) * 3 / count)
    scored = [place in places for place in range(4)]
    for draws in (1, 3):
        found = score(model, PROMPT, answer, scored, MASK, law="monte_carlo", draws=draws, seed=7)
        assert found.log_likelihood[0] == pytest.approx(np.mean(law[:draws]), abs=1e-5)
        assert found.order.tolist() == [[-1] * 4]


def test_only_differences_of_logits_count() -> None:
    """However large they are; and numbers that are none are refused."""
    answer = [1, 0, 2, 3]
    models = [kind(vocabulary=SIZE, mask=MASK, width=8, seed=2) for kind in (SmallAttention, Shifted)]
    for law in ("one_pass", "chain"):
        found, same = (score(model, PROMPT, answer, [True] * 4, MASK, law=law) for model in models)
        np.testing.assert_allclose(found.by_place, same.by_place, atol=1e-6)
    model = SmallAttention(vocabulary=SIZE, mask=MASK, width=8, seed=2, says_entropy=False)
    model.head *= 300
    found = choose(model, PROMPT, [[MASK] * 3], [[1, 0, 2], [2, 0, 1]], MASK, STOP)
    assert found.log_likelihood.max() < -500
    assert found.probability.sum() == pytest.approx(1)
    model.head[:] = np.nan
    with pytest.raises(Error, match="the model's numbers are not finite"):
        score(model, PROMPT, answer, [True] * 4, MASK, law="one_pass")


@pytest.mark.parametrize("seed", range(5))
def test_a_place_where_a_model_would_write_a_mask_is_as_sure_as_its_second_choice(seed: int) -> None:
    model, answer = small(seed), [1, 0, 2, 3, 1, 0]
    model.head[:, MASK] = 2 * np.random.default_rng(seed).normal(size=8)
    total, order = chain_by_hand(model, answer, set(range(6)))
    found = score(model, PROMPT, answer, [True] * 6, MASK)
    assert found.log_likelihood[0] == pytest.approx(total, abs=1e-5)
    assert np.argsort(found.order[0]).tolist() == order


def test_there_are_64_choices_at_most() -> None:
    choices = [list(ids) for ids in product(range(SIZE - 1), repeat=3)]
    assert len(choose(small(0), PROMPT, [[MASK] * 3], choices[:64], MASK, STOP).probability) == 64
    with pytest.raises(Error, match="there are 65 choices; give 1 to 64"):
        choose(small(0), PROMPT, [[MASK] * 3], choices[:65], MASK, STOP)
    with pytest.raises(Error, match="there are 2 choices and 3 answers; give one for all, or one for each"):
        choose(small(0), PROMPT, [[MASK] * 3] * 3, choices[:2], MASK, STOP)


def test_two_choices_may_have_an_answer_each() -> None:
    model = small(3)
    answers, choices = [[MASK, 1], [2, MASK]], [[0], [1]]
    found = choose(model, PROMPT, answers, choices, MASK, STOP)
    alone = [choose(model, PROMPT, [a], [c], MASK, STOP).log_likelihood[0] for a, c in zip(answers, choices, strict=True)]
    np.testing.assert_allclose(found.log_likelihood, alone, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("block_length", [2, 3])
def test_a_chain_of_what_the_loop_writes_is_what_the_loop_says(seed: int, block_length: int) -> None:
    """Greedy decoding, one token a step in blocks: the same places in the same order."""
    model = small(seed)
    settings = TextSettings(answer_length=5, steps=5, block_length=block_length)
    decoding = complete(model, PROMPT, settings, TextTokens(MASK))
    written = [int(step.positions[0]) - len(PROMPT) for step in decoding.steps]
    found = score(model, PROMPT, decoding.ids, [True] * 5, MASK, block_length=block_length)
    assert list(np.argsort(found.order[0])) == written


def test_what_is_not_said_is_a_chain_without_guidance_and_128_draws_by_seed_0() -> None:
    asked = (small(1), PROMPT, [1, 3, 0, 2], [True] * 4, MASK)

    def found(**said) -> float:  # type: ignore[no-untyped-def]
        return float(score(*asked, **said).log_likelihood[0])

    assert found() == found(law="chain") == found(guidance=0.0) != found(guidance=1.0)
    drawn = [found(law="monte_carlo", **said) for said in ({}, {"draws": 128}, {"seed": 0}, {"draws": 129}, {"seed": 1})]
    assert drawn[0] == drawn[1] == drawn[2]
    assert len(set(drawn)) == 3
    many = score(small(1), PROMPT, [[1, 3, 0, 2]] * 17, [True] * 4, MASK, law="one_pass")
    assert many.model_calls == 2  # sixteen rows a call
    holes = [MASK, MASK, 0, 2]
    free, guided, plain = (
        choose(small(1), PROMPT, [holes], [[1, 3], [3, 1]], MASK, STOP, **said).log_likelihood.tolist()
        for said in ({}, {"guidance": 1.0}, {"guidance": 0.0})
    )
    assert free == plain != guided


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_monte_carlo_tends_to_its_expectation(guidance: float) -> None:
    """1 / L times the sum over l of L / l times the mean over all masks of l ids."""
    model, answer, places = small(1), [1, 3, 0, 2], (0, 1, 3)
    exact = 0.0
    for count in (1, 2, 3):
        sums = []
        for hidden in combinations(places, count):
            law = marginals(model, [MASK if n in hidden else token for n, token in enumerate(answer)], guidance)
            sums.append(sum(law[n, answer[n]] for n in hidden))
        exact += float(np.mean(sums)) / count
    scored = [place in places for place in range(4)]
    found = score(model, PROMPT, answer, scored, MASK, law="monte_carlo", draws=4000, rows=500, guidance=guidance)
    assert found.log_likelihood[0] == pytest.approx(exact, abs=0.02 * abs(exact))
    assert found.model_calls == 8
    again = score(model, PROMPT, answer, scored, MASK, law="monte_carlo", draws=4000, rows=333, guidance=guidance)
    assert again.log_likelihood[0] == pytest.approx(
        found.log_likelihood[0]
    )  # a draw is addressed, whoever it shares a call with
    other = score(model, PROMPT, answer, scored, MASK, law="monte_carlo", draws=4, seed=9, guidance=guidance)
    assert other.log_likelihood[0] != found.log_likelihood[0]


def test_one_token_has_one_score_by_any_law() -> None:
    model, answer, scored = small(3), [1, 3, 0, 2], [False, True, False, False]
    by_law = [
        score(model, PROMPT, answer, scored, MASK, law=law).log_likelihood[0] for law in ("chain", "one_pass", "monte_carlo")
    ]
    assert by_law == pytest.approx([by_law[0]] * 3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("guidance", [0.0, 0.7])
def test_all_choices_of_one_token_add_up_to_one(seed: int, guidance: float) -> None:
    model = small(seed)
    found = choose(model, PROMPT, [[1, MASK, 2]], [[n] for n in range(SIZE - 1)], MASK, STOP, guidance=guidance)
    law = marginals(model, [1, MASK, 2], guidance)[1, :MASK]
    np.testing.assert_allclose(found.log_likelihood, law, atol=1e-5)
    np.testing.assert_allclose(found.probability, np.exp(law), atol=1e-5)
    assert found.index == law.argmax()
    assert list(found.answer) == [1, law.argmax(), 2]
    assert found.model_calls == 1


def test_a_choice_that_is_shorter_than_its_hole_is_ended() -> None:
    """Its end is as likely as all ends together; in a hole with something behind it the end fills what is left."""
    model = small(2)
    for answer, ended in (([MASK] * 3, [MASK]), ([MASK, MASK, MASK, 1], None)):
        found = choose(model, PROMPT, [answer], [[2]], MASK, STOP)
        by_hand = []
        for first in (0, 1):
            law = marginals(model, answer)
            row = list(answer)
            end = max(STOP, key=lambda one: law[1, one])
            row[first] = 2 if first == 0 else end
            if first == 1 and ended is None:
                row[1:3] = [end, end]
            then = marginals(model, row)
            both = (law, then) if first == 0 else (then, law)
            by_hand.append(both[0][0, 2] + np.logaddexp(both[1][1, 3], both[1][1, 4]))
        assert min(abs(found.log_likelihood[0] - value) for value in by_hand) < 1e-5
        assert found.answer[0] == 2
        assert found.answer[1] in STOP
        assert found.answer[2] == (MASK if ended else found.answer[1])
        assert list(found.positions) == [0, 1]


def test_choices_do_not_depend_on_their_batch_or_their_order() -> None:
    model = small(4)
    choices = [[0], [1, 2], [2, 2], [0, 1, 2], [1]]
    for answer in ([1, MASK, MASK, MASK, 0], [MASK] * 4):
        own = [[MASK] * len(choice) + [0] * (4 - len(choice) % 2) for choice in choices]  # of two lengths
        for answers, reversed_answers in (([answer], [answer]), (own, own[::-1])):
            whole = choose(model, PROMPT, answers, choices, MASK, STOP)
            one_by_one = choose(model, PROMPT, answers, choices, MASK, STOP, rows=1)
            turned = choose(model, PROMPT, reversed_answers, choices[::-1], MASK, STOP)
            np.testing.assert_allclose(whole.log_likelihood, one_by_one.log_likelihood, atol=1e-6)
            np.testing.assert_allclose(whole.log_likelihood, turned.log_likelihood[::-1], atol=1e-6)
            assert whole.model_calls < one_by_one.model_calls
            assert whole.probability.sum() == pytest.approx(1)
            for number, choice in enumerate(choices):
                alone = choose(model, PROMPT, answers if len(answers) == 1 else [own[number]], [choice], MASK, STOP)
                assert alone.log_likelihood[0] == pytest.approx(whole.log_likelihood[number], abs=1e-6)


def test_a_choice_that_fills_its_hole_has_the_score_of_its_ids() -> None:
    """And, where it is shorter and the hole is the last, of its ids with its end."""
    model = small(5)
    inner = choose(model, PROMPT, [[1, MASK, MASK, 0]], [[2, 0]], MASK, STOP)
    right = score(model, PROMPT, [1, 2, 0, 0], [False, True, True, False], MASK)
    assert inner.log_likelihood[0] == pytest.approx(right.log_likelihood[0], abs=1e-6)
    last = choose(model, PROMPT, [[1, MASK, MASK]], [[2]], MASK, frozenset({3}))
    right = score(model, PROMPT, [1, 2, 3], [False, True, True], MASK)
    assert last.log_likelihood[0] == pytest.approx(right.log_likelihood[0], abs=1e-6)
    assert END not in last.answer


def test_the_first_of_equal_choices_is_chosen() -> None:
    model = small(0)
    model.head[:, 1] = model.head[:, 2]
    model.table[1] = model.table[2]
    for pair in ([[1], [2]], [[2], [1]]):
        assert choose(model, PROMPT, [[0, MASK, 0]], pair, MASK, STOP).index == 0


@pytest.mark.parametrize(
    ("answer", "choices", "said"),
    [
        ([1, MASK], [], "there are 0 choices; give 1 to 64"),
        ([1, MASK], [[n % 4, n // 4] for n in range(65)], "there are 65 choices"),
        ([1, MASK], [[0], []], "choice 2 is empty"),
        ([1, MASK], [[MASK]], "choice 1 is empty or holds the mask"),
        ([1, MASK], [[0], [1], [0]], "choices 1 and 3 are the same tokens"),
        ([1, MASK], [[0, 1]], "choice 1 takes 2 tokens and the hole has 1"),
        ([1, 2], [[0]], "none or more"),
        ([MASK, 1, MASK], [[0]], "none or more"),
    ],
)
def test_wrong_choices_are_refused(answer: list[int], choices: list[list[int]], said: str) -> None:
    with pytest.raises(Error, match=said):
        choose(small(0), PROMPT, [answer], choices, MASK, STOP)


@pytest.mark.parametrize(
    ("answer", "scored", "how", "said"),
    [
        ([1, 2], [True, True], {"law": "best"}, "no law is called 'best'"),
        ([1, MASK], [True, True], {}, "a mask is to be scored"),
        ([1, 2], [False, False], {}, "no id of the answer"),
        ([1, 2], [True], {}, "give as many"),
        ([1, 2], [True, True], {"draws": 0}, "at least 1"),
    ],
)
def test_wrong_scores_are_refused(answer: list[int], scored: list[bool], how: dict, said: str) -> None:
    with pytest.raises(Error, match="no id of the answer is to be scored"):  # of one of two
        score(small(0), PROMPT, [[1, 2]] * 2, [[True, False], [False, False]], MASK)
    with pytest.raises(Error, match=said):
        score(small(0), PROMPT, answer, scored, MASK, **how)
