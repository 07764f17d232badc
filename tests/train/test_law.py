"""The law of every stage, a test for each fault that was once planted in it and passed (tests/planted.py plants them): what is
counted and how much it weighs, which copies are made, under which probabilities a response is learned, what it earns."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from toys import CODES, PLANTED, SIDE, policy_settings, stage_three, tiny_model

from mmada_lite.train import loop, recipe, rewards, rollouts
from mmada_lite.train.data.layouts import Layout
from mmada_lite.train.data.masking import BLOCK, answer_rows, picture_rows
from mmada_lite.train.data.sequences import Sequences
from mmada_lite.train.intervals import interval, paired
from mmada_lite.train.optimizer import Average
from mmada_lite.train.policy import TRACED, UNIGRPO, policy_loss, spaced_ratios
from mmada_lite.train.rewards import REWARDS, Truth
from mmada_lite.train.rollouts import Written
from mmada_lite.train.stage_three import PolicySettings, Responses, StageThree
from mmada_lite.train.stages import STAGE_TWO, groups
from mmada_lite.vocabulary import Vocabulary

GUIDED = ("paint", "pair", "thought_to_image", "edit")
WORDS = 3  # of a planted response, before its end


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, reward in PLANTED.items():
        monkeypatch.setitem(rewards.REWARDS, name, reward)


def begin(sequences: Sequences, folder: Path, task: str, **changes: object) -> StageThree:
    settings = replace(policy_settings((task,), 4), **changes)  # type: ignore[arg-type]
    return stage_three(tiny_model(sequences.vocabulary), sequences.tokenizer, folder, settings)


def answers(vocabulary: Vocabulary, count: int, length: int = 16) -> np.ndarray:
    """Words, an end of turn, then ends of text [count, length]."""
    body = np.full((count, length), vocabulary.special.eos)
    body[:, :10], body[:, 10] = 300, vocabulary.special.eot
    return body


def test_ends_of_text_weigh_a_tenth_and_the_end_of_turn_as_a_word(toy_sequences: Sequences) -> None:
    vocabulary, rng = toy_sequences.vocabulary, np.random.default_rng(0)
    rows = answer_rows("fact", np.zeros((400, 2), np.int64), answers(vocabulary, 400), vocabulary, rng, answer_alone=0.0)
    weight = rows.weight[:, 2:]
    word, turn, text = weight[:, :10], weight[:, 10:11], weight[:, 11:]
    both = (word[:, :1] > 0) & (turn > 0) & (text[:, :1] > 0)
    assert both.sum() > 50
    assert turn[both] == pytest.approx(word[:, :1][both])
    assert text[:, :1][both] == pytest.approx(0.1 * word[:, :1][both])


def test_what_follows_a_thought_weighs_four_times_as_much(toy_sequences: Sequences) -> None:
    vocabulary, rng, close = toy_sequences.vocabulary, np.random.default_rng(0), 301
    body = answers(vocabulary, 400)
    body[:, 5] = close
    prompts = np.zeros((400, 2), np.int64)
    weight = answer_rows("sum", prompts, body, vocabulary, rng, close=close, answer_alone=0.0).weight[:, 2:]
    both = (weight[:, 4] > 0) & (weight[:, 5] > 0) & (weight[:, 6] > 0) & (weight[:, 10] > 0)
    assert both.sum() > 50
    assert weight[both, 5] == pytest.approx(weight[both, 4])  # the tag is of the thought
    assert weight[both, 6] == pytest.approx(4 * weight[both, 4])
    assert weight[both, 10] == pytest.approx(4 * weight[both, 4])


def test_every_picture_has_a_mask(toy_sequences: Sequences) -> None:
    rng, vocabulary = np.random.default_rng(0), toy_sequences.vocabulary
    for _ in range(200):  # of four codes the cosine's share is often none
        rows = picture_rows("paint", np.zeros((8, 3), np.int64), rng.integers(CODES, size=(8, 4)), vocabulary, rng)
        assert (rows.weight > 0).any(axis=1).all()


def test_all_masks_of_a_group_of_pictures_weigh_alike(toy_sequences: Sequences) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(CODES, size=(8, SIDE * SIDE))
    weight = picture_rows("paint", np.zeros((8, 3), np.int64), codes, toy_sequences.vocabulary, rng).weight
    assert len(set((weight > 0).sum(axis=1))) > 4  # rows of few and of many masks
    assert weight[weight > 0] == pytest.approx(1 / (weight > 0).sum())


@pytest.mark.parametrize("task", GUIDED)
def test_a_tenth_of_the_groups_that_guidance_decodes_has_no_caption(toy_sequences: Sequences, task: str) -> None:
    special, rng = toy_sequences.vocabulary.special, np.random.default_rng(0)
    groups = [toy_sequences.tasks[task](2, rng).targets for _ in range(400)]
    bare = [bool((rows[:, :4] == [special.t2i, special.bos, special.eos, special.soi]).all()) for rows in groups]
    assert 24 <= sum(bare) <= 57  # of 40 in the mean, within three deviations
    assert all(rows.shape[1] == SIDE * SIDE + 5 for rows, none in zip(groups, bare, strict=True) if none)


def test_half_of_the_answers_are_hidden_block_wise(toy_sequences: Sequences) -> None:
    mask, rng, block_wise, total = toy_sequences.vocabulary.special.mask, np.random.default_rng(0), 0, 0
    for _ in range(40):
        rows = toy_sequences.fact(8, rng)
        start = int(np.flatnonzero(rows.weight.any(axis=0))[0])
        hidden, counted = (rows.tokens == mask)[:, start:], rows.weight[:, start:] > 0
        if hidden.shape[1] >= 2 * BLOCK:
            total += len(hidden)
            block_wise += int((hidden[:, BLOCK:].all(axis=1) & ~counted[:, BLOCK:].any(axis=1)).sum())
            assert (hidden[:, :BLOCK] == counted[:, :BLOCK]).all()  # the block itself is hidden in part
    assert total > 200
    assert 0.4 < block_wise / total < 0.65


def test_a_stage_can_leave_a_task_out(toy_sequences: Sequences) -> None:
    """As `--groups edit=0` does; the rest stays as it is."""
    settings = STAGE_TWO.scaled(groups={"edit": 0.0}, rows=2)
    assert {rows.task for step in range(4) for rows, _ in groups(toy_sequences, settings, step)} == {*STAGE_TWO.mixture} - {
        "edit"
    }


def test_copies_hide_from_nothing_to_all(toy_sequences: Sequences, tmp_path: Path) -> None:
    run = begin(toy_sequences, tmp_path, "shades")
    responses = run._rollout(run.sources["shades"](run.policy, 2, np.random.default_rng(0)), 0)
    first = torch.linspace(0, 1, 1200).repeat_interleave(1)
    copies = run._copies(Responses(*(part.repeat(100, 1) for part in responses)), first, 0, torch.Generator().manual_seed(0))
    shares = copies.chosen.sum(1) / (SIDE * SIDE)
    assert float(shares.min()) < 0.04
    assert float(shares.max()) == 1.0
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.03)
    assert recipe.policy_settings(["sum"], 0, 4, few_steps=False).ratios == (0.0, 1.0)


def test_later_updates_hide_more_and_the_last_one_all(toy_sequences: Sequences, tmp_path: Path) -> None:
    """Algorithm 1, lines 11 to 13."""
    run = begin(toy_sequences, tmp_path, "shades", updates=4)
    updates = [piece for (piece,) in run._respond(0)]
    shares = [float(piece["chosen"].sum()) / (len(piece["chosen"]) * SIDE * SIDE) for piece in updates]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert spaced_ratios(torch.tensor([0.4]), 4)[0].tolist() == pytest.approx([0.4, 0.6, 0.8, 1.0])


def answered(run: StageThree, monkeypatch: pytest.MonkeyPatch, **never: int) -> tuple[Responses, int]:
    """A rollout of planted texts: words, an end of turn, ends of text and (a mask that was never reached) `never` from the
    back; and where the response begins."""
    special = run.policy.vocabulary.special

    def write(speaker: object, prompts: list, *_: object) -> Written:
        ids = np.full((len(prompts), 8), special.eos)
        ids[:, :WORDS], ids[:, WORDS] = 300, special.eot
        ids[:, 8 - never.get("never", 0) :] = special.mask
        return Written(ids, np.tile(np.arange(8), (len(prompts), 1)), np.ones(len(prompts), dtype=np.int64))

    monkeypatch.setattr(rollouts, "write", write)
    prompts = run.sources["letters"](run.policy, 2, np.random.default_rng(0))
    return run._rollout(prompts, 0), len(prompts[0].ids)


def test_a_text_counts_up_to_its_first_end(toy_sequences: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    responses, start = answered(begin(toy_sequences, tmp_path, "letters"), monkeypatch)
    assert responses.counted[:, start:].tolist() == [[True] * (WORDS + 1) + [False] * 4] * 12
    assert bool(responses.region[:, start:].all())
    assert not bool(responses.region[:, :start].any())


@pytest.mark.parametrize("trace", [None, 1])
@pytest.mark.parametrize("never", [0, 2])
def test_ends_after_the_first_are_never_shown(
    toy_sequences: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trace: int | None, never: int
) -> None:
    """Whatever a copy hides, what follows the first end is hidden with it, and not counted: no copy gives the length away."""
    run = begin(toy_sequences, tmp_path, "letters", trace=trace)
    responses, start = answered(run, monkeypatch, never=never)
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(len(responses.targets) * 40, generator=generator)
    for turn in (0, 1):
        copies = run._copies(responses, first, turn, generator)
        late = slice(start + WORDS + 1, None)
        assert bool((copies.tokens[:, late] == run.policy.vocabulary.special.mask).all())
        assert not bool(copies.chosen[:, late].any())
        assert trace or turn or len(copies.tokens[:, start : start + WORDS + 1].unique(dim=0)) == 15  # all but nothing hidden


def test_ends_can_be_counted_or_shown_for_comparison(
    toy_sequences: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ends in ("counted", "shown"):
        run = begin(toy_sequences, tmp_path, "letters", ends=ends)
        responses, start = answered(run, monkeypatch, never=2)
        first = torch.rand(480, generator=torch.Generator().manual_seed(0))
        copies = run._copies(responses, first, 0, torch.Generator().manual_seed(0))
        late, mask = slice(start + WORDS + 1, start + 6), run.policy.vocabulary.special.mask
        shown = (copies.tokens[:, late] != mask).float().mean()
        assert float(shown) == 1.0 if ends == "shown" else 0.3 < float(shown) < 0.7
        assert bool(copies.chosen[:, late].any()) == (ends == "counted")
        assert not bool(copies.chosen[:, start + 6 :].any())  # what was never reached
        assert responses.counted.sum(1).tolist() == [6 if ends == "counted" else 4] * 12


def test_a_step_away_from_the_start_costs_a_hundredth_of_its_divergence(toy_sequences: Sequences, tmp_path: Path) -> None:
    assert (UNIGRPO.beta, UNIGRPO.clip, TRACED.beta, TRACED.clip) == (0.01, 0.2, 0.01, 0.2)
    assert PolicySettings.__dataclass_fields__["objective"].default is UNIGRPO
    run = begin(toy_sequences, tmp_path, "shades")
    ((piece,), _) = run._respond(0)
    moved = {**piece, "reference": piece["reference"] - 0.5}
    here, there = (float(run.objective(**given)[0].detach()) for given in (piece, moved))
    share = piece["chosen"].sum(1) / piece["length"]
    expected = 0.01 * float(((np.exp(-0.5) - 0.5) * share).sum()) / float(piece["total"][0])
    assert there - here == pytest.approx(expected, rel=1e-2)


def test_the_loss_is_a_mean_over_tokens_and_over_all_copies(toy_sequences: Sequences, tmp_path: Path) -> None:
    """Equation 5: 1/G over responses and 1/|o| over all of a response, hidden or not; a copy that hides nothing is a copy."""
    run = begin(toy_sequences, tmp_path, "shades", copies=3)
    ((piece,), _) = run._respond(0)
    loss = float(run.objective(**piece)[0].detach())
    terms = piece["advantages"] * piece["chosen"].sum(1) / (SIDE * SIDE)
    near = 1e-6 if loop.fast_type(torch.device("cpu")) == torch.float32 else 1e-4  # where the processor multiplies bfloat16
    assert loss == pytest.approx(-float(terms.sum()) / (2 * 6 * 3), abs=near)


@pytest.mark.parametrize(
    ("task", "text", "earned"),
    [
        ("sum", "<think> 4+3+0=7, 1+2+0=3 </think> 37", 1.75),
        ("sum", "<think> 4+3+0=7, 1+2+0=3 </think> 38", 0.75),
        ("sum", "<think> 4+3+0=7, 1+2+0=4 </think> 37", 1.5),
        ("sum", "37", 1.0),
        ("difference3", "<think> 4+3+0=7, 1+2+0=3 </think> 37", 1.75),
        ("scene", "<think> x </think> 37", 1.25),
        ("scene", "37", 1.0),
        ("count", "<think> x </think> 37", 1.25),
        ("count", "<think> x </think> 38", 0.25),
        ("count", "<think> x </think> 3", 0.25),
        ("compare", "<think> x </think> 37", 1.25),
        ("compare", "37", 1.0),
        ("what", "37", 1.0),
    ],
)
def test_texts_earn_what_the_recipe_says(task: str, text: str, earned: float) -> None:
    reward = rewards.weigh(recipe.REWARDS[task])
    assert reward("what is 14 + 23?", text, Truth(answer="37")) == pytest.approx(earned)


@pytest.mark.parametrize("task", ["paint", "thought_to_image"])
def test_drawings_earn_for_the_thing_and_for_the_background(task: str) -> None:
    truth = Truth(background="white", layout=Layout(1, 1, ("apple",)))
    for seen, shade, earned in ((0, 255, 1.5), (0, 0, 1.0), (1, 255, 0.5), (1, 0, 0.0)):
        reward = rewards.weigh(recipe.REWARDS[task], lambda cells, seen=seen: np.full(len(cells), seen))  # type: ignore[misc]
        assert reward("an apple", np.full((64, 64, 3), shade, np.uint8), truth) == pytest.approx(earned)


def test_every_reward_is_one_of_some_task() -> None:
    used = {name for weights in recipe.REWARDS.values() for name in weights}
    assert used == (set(REWARDS) - set(PLANTED)) | set(rewards.JUDGED)


def all_codes(run: StageThree, piece: dict[str, Tensor]) -> Tensor:
    """Probabilities [codes] of every code at the first hidden place of a piece's first copy."""
    place = int(piece["chosen"][0].nonzero()[0])
    tokens, targets = (piece[name][:1].repeat(CODES, 1) for name in ("tokens", "targets"))
    targets[:, place] = run.policy.vocabulary.image_code_offset + torch.arange(CODES)
    chosen = torch.zeros_like(tokens, dtype=torch.bool)
    chosen[:, place] = True
    with torch.no_grad():
        return run.objective.log_probabilities(tokens, targets, chosen, True)[:, place].exp()


@pytest.mark.parametrize("guidance", [0.0, 2.5])
def test_a_drawing_is_learned_among_the_codes_alone(toy_sequences: Sequences, tmp_path: Path, guidance: float) -> None:
    run = begin(toy_sequences, tmp_path, "shades")
    run.objective.guided = run.objective.guided._replace(scale=guidance)
    ((piece,), _) = run._respond(0)
    assert float(all_codes(run, dict(piece)).sum()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("guidance", [0.0, 2.5])
def test_a_drawing_is_learned_under_the_probabilities_that_drew_it(
    toy_sequences: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guidance: float
) -> None:
    """What the rollout says of each code that it wrote is what the objective says of it, on the same state of the canvas."""
    image = policy_settings(("shades",), 4).image.replace(guidance=guidance, steps=1)
    run = begin(toy_sequences, tmp_path, "shades", image=image, trace=1)
    with torch.no_grad():  # first weights hardly read a prompt, so that guidance would change nothing
        for parameter in run.policy.model.parameters():
            parameter.mul_(3.0)
    told, draw = [], rollouts.generate.draw

    def listening(*args: object, **options: object) -> object:
        decoding = draw(*args, **options)  # type: ignore[arg-type]
        steps = list(decoding.steps)
        told.extend(steps)
        return replace(decoding, steps=iter(steps))

    monkeypatch.setattr(rollouts.generate, "draw", listening)
    responses = run._rollout(run.sources["shades"](run.policy, 2, np.random.default_rng(0)), 0)
    (step,) = told
    hidden = torch.where(responses.counted, run.policy.vocabulary.special.mask, responses.targets)
    with torch.no_grad():
        learned = run.objective.log_probabilities(hidden, responses.targets, responses.counted, True)[responses.counted]
    assert float(learned.std()) > 0.1
    assert learned.numpy() == pytest.approx(step.log_probabilities, abs=1e-3)


def test_every_batch_and_every_response_is_drawn_anew(
    toy_sequences: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seeds, write = begin(toy_sequences, tmp_path, "letters"), [], rollouts.write

    def noting(speaker: rollouts.Speaker, prompts: list, settings: object, seed: int, together: int) -> Written:
        seeds.append(seed)
        return write(speaker, prompts, settings, seed, together)  # type: ignore[arg-type]

    monkeypatch.setattr(rollouts, "write", noting)
    for number in range(4):
        run._respond(number)
    assert len(set(seeds)) == 4
    prompts = run.sources["letters"](run.policy, 2, np.random.default_rng(0))
    assert not torch.equal(run._rollout(prompts, 0).targets, run._rollout(prompts, 1).targets)


def test_the_interval_of_a_change_has_its_bounds_where_newcombe_has_them() -> None:
    """Method 10 by hand: without correlation, and where both are alike and none was won."""
    before, after = "1" * 40 + "0" * 60, "1" * 60 + "0" * 40
    change, low, high = paired(before, after)
    assert change == pytest.approx(0.2)
    first, second = interval(40, 100), interval(60, 100)
    phi = (40 * 40 - 20 * 0 - 50) / (60 * 40 * 40 * 60) ** 0.5
    below, above = (0.6 - second["low"], first["high"] - 0.4), (second["high"] - 0.6, 0.4 - first["low"])
    for bound, (mine, theirs), sign in ((low, below, -1), (high, above, 1)):
        assert bound == pytest.approx(0.2 + sign * (mine**2 - 2 * phi * mine * theirs + theirs**2) ** 0.5, abs=1e-9)
    assert paired("1" * 10, "1" * 10)[0] == 0.0


def test_the_average_follows_slowly_and_at_first_at_once() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    for step, follows in ((0, 0.9), (1000, 0.1)):  # warmed up: decay is at most (step + 1) / (step + 10)
        torch.nn.init.zeros_(model.weight)
        average = Average(model, 0.9)
        torch.nn.init.ones_(model.weight)
        average.update(model, step)
        assert float(average.values["weight"]) == pytest.approx(follows)


def test_unigrpo_needs_the_length_of_a_response() -> None:
    new = torch.zeros(1, 3)
    with pytest.raises(AssertionError, match="needs its length"):
        policy_loss(new, new, new == 0, torch.ones(1), UNIGRPO)
