"""The table of the training's law: what the paper says, what ours does, why, and what it cost, with every constant as the code
has it. It knows what stands in the table; `manual_tables` writes it into its page."""

import inspect
from collections.abc import Mapping, Sequence

from mmada_lite.train import recipe
from mmada_lite.train.data import conversations, masking, sequences, texts
from mmada_lite.train.data.sequences import SHORTER, Sequences
from mmada_lite.train.policy import TRACED, UNIGRPO
from mmada_lite.train.stage_three import PolicySettings
from mmada_lite.train.stages import STAGE_ONE, STAGE_TWO, StageSettings

HEADS = ("what", "paper", "ours", "why", "what it cost")
UNMEASURED = "?"


def law() -> Sequence[Sequence[str]]:
    """The rows, in the order of the stages."""
    drop, blocks = (_default(Sequences, name) for name in ("caption_dropout", "blocks"))
    three = recipe.policy_settings(["sum"], 0, None, few_steps=False)
    least, rate = masking.LEAST, three.loop.adam_lr
    whole = inspect.signature(recipe.policy_settings).parameters["guidance"].default
    clip, beta = (_alike(name) for name in ("clip", "beta"))
    return (
        (
            "masks of texts",
            "share t, uniform",
            f"{1 - least:g} √t + {least:g}, t spread evenly over the rows",
            "as decoding begins",
            UNMEASURED,
        ),
        (
            "answers block-wise",
            "none",
            f"{blocks:g} of the rows: blocks of {masking.BLOCK}",
            "no answer before its thought",
            UNMEASURED,
        ),
        ("weight of ends of text", "1", f"{masking.FILLING:g}; end of turn 1", "most of an answer", UNMEASURED),
        ("weight after a thought", "1", f"{masking.CONCLUSION:g}", "a word against many", UNMEASURED),
        (
            "answer hidden alone",
            "none",
            f"{masking.ANSWER_ALONE:g} of the rows with a thought",
            "lookups",
            UNMEASURED,
        ),
        ("masks of pictures", "cosine", "cosine, a mean over all masks of a group", "published", "nothing"),
        (
            "caption dropout",
            "in the published code",
            f"{drop:g} of the groups of `paint`, `pair`, `thought_to_image`, `edit`",
            "guidance decodes them",
            "a tenth of their rows",
        ),
        (
            "stage one: groups × weight",
            "published code: pictures 1, texts 0.1, questions 1",
            _mixture(STAGE_ONE),
            "model size",
            UNMEASURED,
        ),
        ("stage two: groups × weight", "not given", _mixture(STAGE_TWO), "model size", UNMEASURED),
        (
            "task `edit`",
            "none: holes are filled untrained",
            f"trained; {sequences.NEW_THING:.2g} of the groups show a new thing",
            "halves of a picture",
            "see below",
        ),
        (
            "task `turn`",
            "none",
            f"second turns, {conversations.KEPT_THOUGHT:g} of the first with their thought",
            "conversations",
            UNMEASURED,
        ),
        (
            "task `fill`",
            "none",
            f"holes, {masking.WHOLE:g} of them whole texts",
            "partial answers",
            UNMEASURED,
        ),
        ("capitals", "none", f"{1 - texts.TYPED['lower']:.2g} of the groups", "typed so", UNMEASURED),
        ("two things without places", "none", f"{sequences.TOGETHER:g} of those side by side", "said so", UNMEASURED),
        ("shorter numbers", "none", f"{SHORTER:g} of the problems", "sums of mixed lengths", UNMEASURED),
        ("responses G, prompts", "not given; a batch of 1,280", f"{three.group}, {three.prompts}", "time", UNMEASURED),
        ("updates μ", "not given", f"{three.updates}", "time", UNMEASURED),
        ("masked copies of a response", "1", f"{three.copies}", "less noise", "time in proportion"),
        (
            "mask ratios",
            "uniform, then evenly up to 1 (algorithm 1)",
            f"the same, within {three.ratios[0]:g} and {three.ratios[1]:g}, drawn for each copy",
            "published",
            "nothing",
        ),
        ("ends after the first", "not said", f"{three.ends}, not counted (dLLM-RL)", "they tell the length", "nothing"),
        ("ε, β", "not given", f"{clip}, {beta}", "dLLM-RL", UNMEASURED),
        (
            "mean",
            "over responses, and over all tokens of each (equation 5)",
            f"the same, then over copies; traced copies over {TRACED.over} tokens",
            "published",
            "nothing",
        ),
        (
            "divergence",
            "from the first model",
            f"{UNIGRPO.estimator}, {UNIGRPO.divergence} over the same tokens",
            "never negative",
            "nothing",
        ),
        (
            "guidance of drawings learned from",
            "not said; 3.5 to decode",
            f"{whole:g}; {recipe.IMAGE.guidance:g} to decode",
            "guided ones earn alike",
            "see below",
        ),
        ("temperature", "not given", f"{three.text.temperature:g}", "what is learned from", "nothing"),
        ("AdamW rate", "5e-5, a cosine", f"{rate:g} × `--rate`, even", "short runs", UNMEASURED),
        (
            "rewards",
            "answer 2, format 0.5; CLIP 0.1, ImageReward 0.1",
            _rewards(),
            "thoughts can be checked",
            UNMEASURED,
        ),
    )


def _alike(name: str) -> str:
    """A constant that both objectives of stage three have."""
    values = {getattr(objective, name) for objective in (UNIGRPO, TRACED, _default(PolicySettings, "objective"))}
    assert len(values) == 1, f"{name} differs between objectives"
    return f"{values.pop():g}"


def _default(owner: type, name: str) -> object:
    return inspect.signature(owner).parameters[name].default


def _mixture(stage: StageSettings) -> str:
    return ", ".join(f"`{task}` {share.groups:g} × {share.weight:g}" for task, share in stage.mixture.items())


def _rewards() -> str:
    """By task; those that earn alike stand together."""
    alike: dict[str, list[str]] = {}
    for task, weights in recipe.REWARDS.items():
        alike.setdefault(_said(weights), []).append(f"`{task}`")
    return "; ".join(f"{', '.join(tasks)}: {weights}" for weights, tasks in alike.items())


def _said(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
