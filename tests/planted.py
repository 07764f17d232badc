"""Faults planted in the training one by one, each with the test that must notice it.

    python tests/planted.py            # the faults that once passed all tests: a part of the slow suite
    python tests/planted.py --all      # more, all over train/

A child imports the package with the fault in it and runs the one test, which the suite runs on unchanged code. Prints a line a
fault, and fails where one is not noticed."""

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path

from faults import BESIDES, Fault
from mutant_runs import LIBRARIES, Anew, Mutant

ROOT = Path(__file__).parents[1]
LAW, PLAIN = "tests/train/test_law.py::test_", "tests/train/test_plain_losses.py::test_"

REPORTED = (
    Fault(
        "ends of text left out of the loss of texts",
        "data/masking.py",
        "FILLING = 0.1",
        "FILLING = 0.0",
        LAW + "ends_of_text_weigh_a_tenth_and_the_end_of_turn_as_a_word",
    ),
    Fault(
        "the end of turn weighed a tenth",
        "data/masking.py",
        "answers == vocabulary.special.eos, answers",
        "np.isin(answers, [vocabulary.special.eos, vocabulary.special.eot]), answers",
        LAW + "ends_of_text_weigh_a_tenth_and_the_end_of_turn_as_a_word",
    ),
    Fault(
        "no caption dropout",
        "data/sequences.py",
        "caption_dropout: float = 0.1",
        "caption_dropout: float = 0.0",
        LAW + "a_tenth_of_the_groups_that_guidance_decodes_has_no_caption",
    ),
    Fault(
        "masks of pictures weighed by the row",
        "data/masking.py",
        "masked.astype(np.float32) / hidden.sum())",
        "(masked / np.maximum(masked.sum(axis=1, keepdims=True), 1) / count).astype(np.float32))",
        LAW + "all_masks_of_a_group_of_pictures_weigh_alike",
    ),
    Fault(
        "mask ratios of stage three within 0.1 and 0.9",
        "policy.py",
        "WHOLE = (0.0, 1.0)",
        "WHOLE = (0.1, 0.9)",
        LAW + "copies_hide_from_nothing_to_all",
    ),
    Fault(
        "ends after the first counted",
        "stage_three.py",
        "(to_the_last | ~after)",
        "(True | ~after)",
        LAW + "a_text_counts_up_to_its_first_end",
    ),
    Fault(
        "the first end not counted",
        "stage_three.py",
        "(ends.cumsum(axis=1) - ends) > 0",
        "ends.cumsum(axis=1) > 0",
        LAW + "a_text_counts_up_to_its_first_end",
    ),
    Fault(
        "no divergence (beta 0)",
        "policy.py",
        "beta: float = 0.01",
        "beta: float = 0.0",
        LAW + "a_step_away_from_the_start_costs_a_hundredth_of_its_divergence",
    ),
    Fault(
        "the reward for the format dropped",
        "recipe.py",
        '"count": {"answer": 1.0, "format": 0.25},',
        '"count": {"answer": 1.0},',
        LAW + "texts_earn_what_the_recipe_says",
    ),
    Fault(
        "the reward for the background dropped",
        "recipe.py",
        '"paint": {"concept": 1.0, "background": 0.5},',
        '"paint": {"concept": 1.0},',
        LAW + "drawings_earn_for_the_thing_and_for_the_background",
    ),
    Fault(
        "drawings learned over the whole vocabulary",
        "stage_three.py",
        "token_log_probabilities(self.model.logits(hidden, slice(*self.codes)), targets, chosen, self.codes[0])",
        "token_log_probabilities(self.model.logits(hidden), targets, chosen)",
        LAW + "a_drawing_is_learned_among_the_codes_alone",
    ),
    Fault(
        "no answers hidden block-wise",
        "data/sequences.py",
        "blocks: float = 0.5",
        "blocks: float = 0.0",
        LAW + "half_of_the_answers_are_hidden_block_wise",
    ),
    Fault(
        "the rollouts of every batch with one seed",
        "stage_three.py",
        "responses, rewards = self._shared(task, prompts, seed=int(rng.integers(1 << 31)))",
        "responses, rewards = self._shared(task, prompts, seed=0 * int(rng.integers(1 << 31)))",
        LAW + "every_batch_and_every_response_is_drawn_anew",
    ),
    Fault(
        "both updates masked alike",
        "policy.py",
        "Draws(spaced_ratios(draws.ratio, updates)[:, turn], draws.position)",
        "Draws(draws.ratio, draws.position)",
        LAW + "later_updates_hide_more_and_the_last_one_all",
    ),
    Fault(
        "ends after the first shown in copies at random",
        "policy.py",
        "random_copies(targets, region, mask_id, spaced, bounds, late=region & ~counted)",
        "random_copies(targets, counted, mask_id, spaced, bounds)",
        LAW + "ends_after_the_first_are_never_shown",
    ),
    Fault(
        "guided drawings learned from unguided probabilities",
        "stage_three.py",
        "        if scale > 0:\n",
        "        if scale > 99:\n",
        LAW + "a_drawing_is_learned_under_the_probabilities_that_drew_it",
    ),
)
MORE = (
    Fault(
        "the clip one-sided",
        "policy.py",
        "ratio.clamp(1 - objective.clip, 1 +",
        "ratio.clamp(0, 1 +",
        PLAIN + "unigrpo_and_its_gradient",
    ),
    Fault(
        "the larger of both gains",
        "policy.py",
        "torch.minimum(free, clipped_gain)",
        "torch.maximum(free, clipped_gain)",
        PLAIN + "unigrpo_and_its_gradient",
    ),
    Fault(
        "k3 of the other sign",
        "policy.py",
        "torch.expm1(-apart) + apart",
        "torch.expm1(apart) - apart",
        PLAIN + "unigrpo_and_its_gradient",
    ),
    Fault(
        "the divergence from the old policy",
        "policy.py",
        "old if reference is None else reference",
        "old",
        PLAIN + "unigrpo_and_its_gradient",
    ),
    Fault(
        "a mean over masked tokens",
        "policy.py",
        'UNIGRPO = Objective(over="response", ',
        "UNIGRPO = Objective(",
        PLAIN + "unigrpo_and_its_gradient",
    ),
    Fault(
        "copies that hide nothing not counted",
        "stage_three.py",
        "float(len(advantages) * self.settings.copies)",
        "float(len(copies.tokens))",
        LAW + "the_loss_is_a_mean_over_tokens_and_over_all_copies",
    ),
    Fault(
        "the unconditional row with the prompt",
        "stage_three.py",
        "torch.cat((prompts, tokens[:, -body:]), dim=1)",
        "torch.cat((tokens[:, : len(nothing)], tokens[:, -body:]), dim=1)",
        PLAIN + "unigrpo_and_its_gradient",
    ),
    Fault(
        "guidance too weak by one",
        "stage_three.py",
        "(1 + scale) * hidden - scale",
        "scale * hidden - (scale - 1)",
        PLAIN + "unigrpo_and_its_gradient",
    ),
    Fault(
        "advantages of other rows",
        "stage_three.py",
        '"advantages": advantages[copies.row]',
        '"advantages": advantages[: len(copies.row)]',
        PLAIN + "unigrpo_and_its_gradient",
    ),
    Fault(
        "the reference trained too",
        "stage_three.py",
        "copy.deepcopy(policy.model).eval().requires_grad_(False)",
        "policy.model",
        "tests/train/test_stage_three.py::test_the_reference_is_what_the_stage_began_with",
    ),
    Fault(
        "advantages over the whole batch",
        "policy.py",
        "rewards - rewards.mean(-1, keepdim=True)",
        "rewards - rewards.mean()",
        "tests/train/test_policy.py::test_groups_are_apart_and_equal_rewards_give_nothing",
    ),
    Fault(
        "the sample's deviation",
        "policy.py",
        "rewards.std(-1, correction=0, keepdim=True)",
        "rewards.std(-1, keepdim=True)",
        "tests/train/test_policy.py::test_advantages_sum_to_zero_with_unit_spread",
    ),
    Fault(
        "ties amplified",
        "policy.py",
        "TIE = 1e-6",
        "TIE = 0.0",
        "tests/train/test_policy.py::test_groups_are_apart_and_equal_rewards_give_nothing",
    ),
    Fault(
        "a group that ties learned",
        "stage_three.py",
        "differ = (advantages != 0).any(-1)",
        "differ = (advantages == 0).any(-1)",
        "tests/train/test_stage_three.py::test_groups_that_earn_alike_can_be_left_out",
    ),
    Fault(
        "ratios down instead of up",
        "policy.py",
        "(1 - first[:, None]) * torch.linspace(0, 1,",
        "(0 - first[:, None]) * torch.linspace(0, 1,",
        LAW + "later_updates_hide_more_and_the_last_one_all",
    ),
    Fault(
        "traces of what came later",
        "policy.py",
        "group[row] == number[:, None], group[row] >= number[:, None]",
        "group[row] == number[:, None], group[row] > number[:, None]",
        "tests/train/test_policy.py::test_traces_replay_the_decoding",
    ),
    Fault(
        "conclusions weighed as words",
        "data/masking.py",
        "CONCLUSION = 4.0",
        "CONCLUSION = 1.0",
        LAW + "what_follows_a_thought_weighs_four_times_as_much",
    ),
    Fault(
        "the tag weighed as a conclusion",
        "data/masking.py",
        "closed.cumsum(axis=1) - closed > 0",
        "closed.cumsum(axis=1) > 0",
        LAW + "what_follows_a_thought_weighs_four_times_as_much",
    ),
    Fault(
        "a block hidden whole",
        "data/masking.py",
        "(of_block > 0), hidden)",
        "(of_block >= 0), hidden)",
        LAW + "half_of_the_answers_are_hidden_block_wise",
    ),
    Fault(
        "differences of equals forgotten",
        "data/arithmetic.py",
        "or a >= b)",
        "or a > b)",
        "tests/train/test_halves.py::test_halves_share_nothing_and_are_all_that_is_held_out",
    ),
    Fault(
        "1/p forgotten",
        "data/masking.py",
        "hidden * importance / (p * np",
        "hidden * importance / (np",
        PLAIN + "the_loss_of_texts",
    ),
    Fault(
        "t uniform",
        "data/masking.py",
        "(1 - LEAST) * np.sqrt(spread(count, rng))[:, None]",
        "(1 - LEAST) * spread(count, rng)[:, None]",
        PLAIN + "the_loss_of_texts",
    ),
    Fault(
        "a linear law for pictures",
        "data/masking.py",
        "np.cos(np.pi / 2 * spread(count, rng))",
        "(1 - spread(count, rng))",
        PLAIN + "the_loss_of_pictures",
    ),
    Fault(
        "pictures without a mask",
        "data/masking.py",
        "np.maximum(1, np.rint(",
        "np.maximum(0, np.rint(",
        LAW + "every_picture_has_a_mask",
    ),
    Fault(
        "held-out problems trained",
        "data/arithmetic.py",
        "if on_side(problem.split_text, held_out, half):",
        "if True:",
        "tests/train/test_sequences.py::test_nothing_held_out_is_ever_drawn",
    ),
    Fault(
        "a + b and b + a apart",
        "data/arithmetic.py",
        'f"{min(self.first, self.second)} + {max(self.first, self.second)}"',
        "str(self)",
        "tests/train/test_rewards.py::test_problems_are_of_their_kind_and_side",
    ),
    Fault(
        "one half for all",
        "data/texts.py",
        "// HELD_OUT_SHARE % 2",
        "// HELD_OUT_SHARE % 1",
        "tests/train/test_halves.py::test_halves_share_nothing_and_are_all_that_is_held_out",
    ),
    Fault(
        "held-out pairs painted",
        "prompts.py",
        "allowed = pairs(held_out=False)",
        "allowed = pairs(held_out=True)",
        "tests/train/test_stage_three.py::test_prompts_are_of_the_training_side_and_of_one_length",
    ),
    Fault(
        "a wrong answer rewarded",
        "rewards.py",
        '_plain(answer_of(_text("answer", response))) == _plain(truth.answer)',
        '_plain(answer_of(_text("answer", response))) in _plain(truth.answer)',
        LAW + "texts_earn_what_the_recipe_says",
    ),
    Fault(
        "the judge asked for any cell",
        "rewards.py",
        "CONCEPT_NAMES[int(seen[cell])] == name",
        "CONCEPT_NAMES[int(seen[0])] == name",
        "tests/train/test_rewards.py::test_swapped_things_lose_the_concepts",
    ),
    Fault(
        "the average that follows at once",
        "optimizer.py",
        "lerp_(parameter, 1 - decay)",
        "lerp_(parameter, decay)",
        LAW + "the_average_follows_slowly_and_at_first_at_once",
    ),
    Fault(
        "time that does not end a training",
        "loop.py",
        "self._all_agree(self.seconds >= limit)",
        "self._all_agree(self.seconds < 0)",
        "tests/train/test_gains.py::test_time_ends_a_training_between_batches",
    ),
    Fault(
        "states kept in the middle of a batch",
        "loop.py",
        "self.step % self.settings.align == 0 and self._all_agree(self.seconds",
        "self._all_agree(self.seconds",
        "tests/train/test_gains.py::test_time_ends_a_training_between_batches",
    ),
    Fault(
        "a change of other cases",
        "intervals.py",
        'pairs.count(("0", "1"))\n',
        'pairs.count(("1", "0"))\n',
        LAW + "the_interval_of_a_change_has_its_bounds_where_newcombe_has_them",
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--all", action="store_true", help="the others too")
    parser.add_argument("--only", default="", help="faults with these words in what they are")
    options = parser.parse_args()
    os.chdir(ROOT)
    faults = [fault for fault in REPORTED + (MORE + BESIDES) * options.all if options.only in fault.what]
    for name in LIBRARIES:
        import_module(name)
    runner = Anew(options, [])
    runner.most = 90.0  # seconds of a child
    sys.meta_path.insert(0, runner)
    lived = 0
    for number, (what, file, old, new, test) in enumerate(faults):
        source = (ROOT / "train" / file).read_text(encoding="utf-8")
        assert source.count(old) == 1, f"{file} has {old!r} {source.count(old)} times"
        runner.pytest_options = ["-q", "-p", "no:cacheprovider", "--tb=line", "-x", test]
        found = runner.try_one(Mutant(f"train/{file}", number, range(0), 0, False, source, source.replace(old, new)))
        noticed = found["result"] == "killed" and test.rpartition("::")[2] in found["test"]
        lived += not noticed
        print(
            "noticed" if noticed else f"{found['result']}!", f"{found['seconds']:.0f} s", what, f"({file}): {test}", flush=True
        )
    return lived


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(min(code, 1))  # threads of a library may wait for ever for what a fork had
