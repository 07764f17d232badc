"""Laws of stage three: a planted reward rises, of text and of pictures; groups, copies and advantages have their shapes;
what is stopped goes on with the same curve; prompts are of the training side."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import CODES, PLANTED, SIDE, TASKS, policy_settings, records, scene_pool, single_pool, stage_three, tiny_model

from mmada_lite.decoding.settings import TextSettings
from mmada_lite.errors import Error
from mmada_lite.train import recipe, rewards
from mmada_lite.train.data.arithmetic import problem_in
from mmada_lite.train.data.concepts import CONCEPT_NAMES, NUMBERS
from mmada_lite.train.data.scenes import layout_held_out
from mmada_lite.train.data.sequences import Sequences
from mmada_lite.train.data.texts import pairs
from mmada_lite.train.loop import trained_weights
from mmada_lite.train.model import MMaDA
from mmada_lite.train.prompts import Shown, looking, sources
from mmada_lite.train.stage_three import Policy, PolicySettings, StageThree


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, reward in PLANTED.items():
        monkeypatch.setitem(rewards.REWARDS, name, reward)


@pytest.fixture
def model(toy_sequences: Sequences) -> MMaDA:
    return tiny_model(toy_sequences.vocabulary)


@pytest.mark.slow
@pytest.mark.parametrize("trace", [None, 1])
@pytest.mark.parametrize("task", ["letters", "shades"])
def test_a_planted_reward_rises(toy_sequences: Sequences, model: MMaDA, tmp_path: Path, task: str, trace: int | None) -> None:
    settings = replace(policy_settings((task,), 40), trace=trace)
    stage_three(model, toy_sequences.tokenizer, tmp_path, settings).train()
    earned = [record[f"reward_{task}"] for record in records(tmp_path) if f"reward_{task}" in record]
    assert len(earned) == 20  # two updates on each batch of responses
    assert np.mean(earned[-4:]) > np.mean(earned[:4]) + 0.1
    assert all(record["divergence"] >= -1e-4 for record in records(tmp_path))
    assert records(tmp_path)[0]["divergence"] == pytest.approx(0.0, abs=1e-4)


def test_groups_that_earn_alike_can_be_left_out(
    toy_sequences: Sequences, model: MMaDA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(policy_settings(("letters",), 4), skip_ties=True)
    run = stage_three(model, toy_sequences.tokenizer, tmp_path, settings)
    earned = torch.zeros(settings.prompts, settings.group)
    monkeypatch.setattr(run, "_reward", lambda *_: earned)
    assert run._respond(0) == [[], []]
    earned[1, 2] = 1.0
    for (piece,) in run._respond(0):
        assert settings.group < len(piece["tokens"]) <= settings.group * settings.copies  # one prompt of the two
        assert (piece["advantages"] > 0).sum() <= settings.copies
        assert (piece["advantages"] != 0).all()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    earned[:] = 1.0
    run.train(until=2)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("task", "length"), [("letters", 8), ("shades", SIDE * SIDE)])
def test_groups_copies_and_advantages_have_their_shapes(
    toy_sequences: Sequences, model: MMaDA, tmp_path: Path, task: str, length: int
) -> None:
    settings, vocabulary = policy_settings((task,), 4), toy_sequences.vocabulary
    run = stage_three(model, toy_sequences.tokenizer, tmp_path, settings)
    first, second = run._respond(0)
    responses = settings.prompts * settings.group
    for (piece,) in (first, second):
        count = len(piece["tokens"])
        assert responses < count <= responses * settings.copies
        assert {len(value) for value in piece.values()} == {count}
        chosen, tokens, targets = piece["chosen"], piece["tokens"], piece["targets"]
        assert bool(chosen.any(1).all())
        assert int(chosen.sum(1).max()) <= length
        assert not bool(chosen[:, :4].any())  # of the prompt
        masked = tokens == vocabulary.special.mask
        assert bool((masked | ~chosen).all())
        assert torch.equal(tokens[~masked], targets[~masked])
        assert torch.equal(masked, chosen) or task == "letters"  # where what follows an end is masked too
        assert bool((piece["old"][~chosen] == 0).all())
        assert bool((piece["old"][chosen] < 0).all())
        assert torch.allclose(piece["old"], piece["reference"], atol=1e-5)  # nothing was learned yet
        assert float(piece["total"][0]) == responses * settings.copies  # with those that hide nothing
        assert bool((chosen.sum(1) <= piece["length"]).all())
        if task == "shades":
            codes = targets[chosen] - vocabulary.image_code_offset
            assert 0 <= int(codes.min()) <= int(codes.max()) < CODES
    assert float(second[0]["chosen"].sum()) > float(first[0]["chosen"].sum())  # later updates hide more
    (targets, response, _, _), earned = run._shared(task, run.sources[task](run.policy, 2, np.random.default_rng(0)), seed=0)
    assert targets.shape == response.shape
    assert earned.shape == (settings.prompts, settings.group)
    assert bool((targets[:6, :4] == targets[0, :4]).all())  # a group has one prompt
    assert not torch.equal(targets[0], targets[1])  # and responses of its own


@pytest.mark.parametrize("trace", [1, 2])
@pytest.mark.parametrize("task", ["letters", "shades"])
def test_traced_copies_are_states_of_the_decoding(
    toy_sequences: Sequences, model: MMaDA, tmp_path: Path, task: str, trace: int
) -> None:
    settings, special = replace(policy_settings((task,), 4), trace=trace), toy_sequences.vocabulary.special
    run = stage_three(model, toy_sequences.tokenizer, tmp_path, settings)
    responses, _ = run._shared(task, run.sources[task](run.policy, 2, np.random.default_rng(0)), seed=0)
    targets, counted, region, order = responses
    assert not bool(region[:, :4].any())  # of the prompt
    assert bool((counted <= region).all())
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(len(targets) * settings.copies, generator=generator)
    shown = []
    for turn in (0, 1):
        copies = run._copies(responses, first, turn, generator)
        shown.append(copies.tokens)
        for tokens, own, chosen, row in zip(copies.tokens, copies.targets, copies.chosen, copies.row, strict=True):
            begun = int(order[row][chosen].min())  # a copy hides all that was written from here on, and counts the first of it
            hidden = region[row] & (order[row] >= begun)
            assert torch.equal(own, targets[row])
            assert torch.equal(tokens, torch.where(hidden, special.mask, own))
            steps = order[row][region[row]].unique()
            at = int((steps == begun).nonzero())
            assert at % trace == 0
            assert torch.equal(chosen, counted[row] & hidden & (order[row] <= steps[at : at + trace][-1]))
    assert shown[0].shape != shown[1].shape or not torch.equal(*shown)  # each update learns from other states


def test_a_stopped_run_goes_on_with_the_same_curve(toy_sequences: Sequences, model: MMaDA, tmp_path: Path) -> None:
    settings = policy_settings(("letters", "shades"), 12)
    stage_three(model, toy_sequences.tokenizer, tmp_path / "whole", settings).train()
    for until in (4, 8, 12):  # multiples of the updates
        again = tiny_model(toy_sequences.vocabulary)
        stage_three(again, toy_sequences.tokenizer, tmp_path / "cut", settings).train(until)
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert trained_weights(tmp_path / "cut")[1] == 12


def test_the_reference_is_what_the_stage_began_with(toy_sequences: Sequences, model: MMaDA, tmp_path: Path) -> None:
    begun = {name: value.clone() for name, value in model.state_dict().items()}
    run = stage_three(model, toy_sequences.tokenizer, tmp_path, policy_settings(("shades",), 4))
    run.train()
    assert all(torch.equal(begun[name], value) for name, value in run.reference.model.state_dict().items())
    assert not torch.equal(begun["model.transformer.wte.weight"], model.transformer.wte.weight)
    again = stage_three(
        tiny_model(toy_sequences.vocabulary), toy_sequences.tokenizer, tmp_path, policy_settings(("shades",), 4)
    )
    assert all(torch.equal(begun[name], value) for name, value in again.reference.model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ("sums",)}, "the task 'sums' has no rewards"),
        ({"group": 1}, "group is 1; an advantage needs at least 2"),
        ({"prompts": 0}, "whole numbers from 1"),
        ({"trace": 0}, "trace is 0: give the decoding steps"),
        ({"updates": 5}, "8 steps are no multiple of 5 updates"),
        ({"ratios": (0.5, 0.2)}, "mask ratios from 0.5 to 0.2 cannot be"),
        ({"ends": "hidden"}, "ends is 'hidden'; use one of masked, counted, shown"),
        ({"text": TextSettings(temperature=0.5)}, "learns from what is drawn at temperature 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(change: dict, message: str) -> None:
    with pytest.raises(Error, match=message):
        replace(policy_settings(("letters",), 8), **change)


def test_unknown_tasks_and_rewards_are_named(toy_sequences: Sequences, model: MMaDA, tmp_path: Path) -> None:
    def begin(settings: PolicySettings) -> None:
        stage_three(model, toy_sequences.tokenizer, tmp_path, settings)

    settings = policy_settings(("letters",), 2)
    with pytest.raises(Error, match="no reward is called 'leters'; did you mean 'letters'"):
        begin(replace(settings, rewards={"letters": {"leters": 1.0}}))
    with pytest.raises(Error, match="no task is called 'letter'; did you mean 'letters'"):
        begin(replace(settings, tasks=("letter",), rewards={"letter": {"letters": 1.0}}))
    policy = Policy(model, toy_sequences.tokenizer, toy_sequences.vocabulary)
    blind = StageThree(policy, tmp_path, policy_settings(("shades",), 2), {"shades": TASKS["shades"]})
    with pytest.raises(Error, match="no image tokenizer was given"):
        blind.train()
    assert not (tmp_path / "state").exists()


def test_the_recipe_s_tasks_have_rewards_and_few_steps(toy_sequences: Sequences) -> None:
    known = {**sources(), **looking(Shown(toy_sequences.material.singles, toy_sequences.material.several))}
    settings = recipe.policy_settings(list(known), 0, None, few_steps=False)
    assert set(settings.tasks) == set(known) == set(recipe.REWARDS)
    quick = recipe.policy_settings(["sum"], 0, 4, few_steps=True)
    assert quick.text.steps == settings.text.steps // 4
    assert quick.image.steps == settings.image.steps // 4
    assert [recipe.policy_settings(["sum"], 0, 4, few_steps, trace=True).trace for few_steps in (False, True)] == [4, 1]
    assert settings.trace is None
    assert not settings.skip_ties
    assert recipe.policy_settings(["sum"], 0, 4, few_steps=True, skip_ties=True).skip_ties
    assert quick.text.temperature == 1  # the log-probabilities that are learned from know no other


PHRASES = {"count": "how many", "compare": "more"}  # what every question of a kind says


def test_prompts_are_of_the_training_side_and_of_one_length(toy_sequences: Sequences, model: MMaDA) -> None:
    speaker = Policy(model, toy_sequences.tokenizer, toy_sequences.vocabulary)
    unseen_pairs, rng = {(CONCEPT_NAMES[i], colour) for i, colour in pairs(held_out=True)}, np.random.default_rng(0)
    for task, source in {**sources(), **looking(Shown(single_pool(), scene_pool(200)))}.items():
        for _ in range(40):
            prompts = source(speaker, 8, rng)
            assert len(prompts) == 8
            assert len({len(prompt.ids) for prompt in prompts}) == 1
            assert {prompt.draws for prompt in prompts} == {task in ("paint", "thought_to_image")}
            if task in PHRASES:
                assert all(PHRASES[task] in prompt.text for prompt in prompts)
            for prompt in prompts:
                layout, problem = prompt.truth.layout, problem_in(prompt.text)
                assert (prompt.truth.answer is None) == prompt.draws
                assert problem is None or (not problem.held_out and prompt.truth.answer == str(problem.answer))
                if layout is not None:
                    assert all(name in NUMBERS for _, name in layout.named)
                    assert not {(name, prompt.truth.background) for _, name in layout.named} & unseen_pairs
                    assert task == "paint" or not layout_held_out(layout)
