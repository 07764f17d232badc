"""How a text or a picture is to be decoded: every setting, declared once and checked before any work is done, and the named
speeds, which are changes of a few of them. No arrays and no models here, and no numpy: the command line reads this for --help.

Two layers: what a user turns, and in `acceleration` what saves work; `settings.replace(steps=8, cache="dual")` changes either.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args

from mmada_lite.calls import checked
from mmada_lite.decoding.setting_fields import (
    TwoLayers,
    check_fields,
    check_names,
    known_names_only,
    layer_of,
    setting,
    settings_of,
)
from mmada_lite.errors import Error

Mode = Literal["default", "reference"]
Law = Literal["chain", "one_pass", "monte_carlo"]  # of `mmada_lite.decoding.score`
CachePolicy = Literal["none", "prefix", "dual", "prompt"]
CACHE_POLICIES: tuple[str, ...] = get_args(CachePolicy)
Settings = TypeVar("Settings", "TextSettings", "ImageSettings")
SMALLEST, LARGEST = 1e-4, 1000.0  # of temperatures and guidance: what logits times them is in float32
MOST_CHOICES = 64  # of one hole
SCHEDULES = ("cosine", "linear", "pow<exponent>", "sigmoid")
_LLADA, _FAST_DLLM, _MASKGIT = "LLaDA, arXiv 2502.09992", "Fast-dLLM, arXiv 2505.22618", "MaskGIT, arXiv 2202.04200"
_GUIDANCE = "classifier-free guidance, arXiv 2207.12598"

# The named speeds: changes of the text settings, changes of the image settings. `steps` of pictures is a share of the bundle's.
_ANSWERED: Mapping[str, Any] = MappingProxyType(
    {"cache": "dual", "entropy_bound": None, "early_stop": 1.0, "thought_first": True, "suffix_window": 8}
)
_FEW_STEPS: Mapping[str, Any] = MappingProxyType({"steps": 0.25})
PRESETS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = MappingProxyType(
    {
        "exact": (MappingProxyType({}), MappingProxyType({})),
        "balanced": (MappingProxyType({**_ANSWERED, "threshold": 0.9, "refresh": 2}), _FEW_STEPS),
        "fast": (MappingProxyType({**_ANSWERED, "threshold": 0.8}), _FEW_STEPS),
    }
)


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch of the answer that is finished before the next begins: canvas positions start..stop-1, in `steps` steps."""

    start: int
    stop: int
    steps: int


def schedule_exponent(name: str) -> float | None:
    """The exponent of a schedule that is called pow<exponent>, None for the others. Raises Error for another name."""
    if name in SCHEDULES and "<" not in name:
        return None
    if name.startswith("pow"):
        try:
            exponent = float(name[3:])
        except ValueError:
            exponent = math.nan
        if exponent > 0 and math.isfinite(exponent):
            return exponent
    raise Error(f"no schedule is called {name!r}; use one of {', '.join(SCHEDULES)}, such as pow2")


@known_names_only
@dataclass(frozen=True, slots=True)
class TextAcceleration:
    """What saves work on a text (docs/speed.md). All but `cache` and `threshold` ask for the default mode.

    Raises Error for a value out of its range and for settings that exclude each other: `threshold` with `entropy_bound`,
    `lookahead` without a threshold, `refresh` or `refresh_drift` without a cache, `kv_commit_every` without cache dual or
    prompt or with drafts.
    """

    cache: CachePolicy = setting(
        "none",
        "whose keys and values later steps of a block reuse; none is exact, the others ever faster",
        source=f"{_FAST_DLLM}; prompt: ours",
        unit="POLICY",
    )
    threshold: float | None = setting(
        None,
        "write every token at least this probable; steps are unused then",
        source=_FAST_DLLM,
        unit="P",
        probability=True,
    )
    select: Literal["confidence", "margin", "entropy"] = setting(
        "confidence", "what positions are ranked by", source="Dream, arXiv 2508.15487", unit="RULE"
    )
    entropy_bound: float | None = setting(
        None,
        "write the most confident tokens up to so much entropy; steps are unused then",
        source="EB-Sampler, arXiv 2505.24857",
        unit="NATS",
    )
    early_stop: float | None = setting(
        None, "end once the end is written, or comes next and is more probable than this", unit="P", probability=True
    )
    lookahead: int = setting(0, "tokens beyond a block that may be written with its last ones; needs a threshold", unit="N")
    refresh: int | None = setting(
        None,
        "compute all anew after so many steps of a block; needs a cache",
        source="dKV-Cache, arXiv 2505.15781",
        unit="N",
        least=1,
    )
    refresh_drift: float | None = setting(
        None, "compute all anew once the candidates moved by this on average; needs a cache", unit="SHARE"
    )
    suffix_window: int | None = setting(
        None, "masks behind a block that a step still reads", source="DPad, arXiv 2508.14148", unit="N"
    )
    speculative_steps: int = setting(
        1,
        "steps foreseen and checked in one model call; the answer stays the same",
        source="Self Speculative Decoding, arXiv 2510.04147",
        unit="N",
        least=1,
    )
    kv_commit_every: int | None = setting(
        None,
        "written tokens leave a cached block so many at a time; needs cache dual or prompt",
        source="dKV-Cache, arXiv 2505.15781",
        unit="N",
        least=1,
    )
    thought_first: bool = setting(False, "what follows a thought waits until all of the thought is written")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.threshold is not None and self.entropy_bound is not None:
            raise Error("threshold and entropy_bound both say how many tokens a step writes; use one of them")
        if self.lookahead and self.threshold is None:
            raise Error(f"lookahead {self.lookahead} writes what is as probable as the threshold; give a threshold too")
        if self.cache == "none" and (self.refresh is not None or self.refresh_drift is not None):
            raise Error("refresh and refresh_drift renew a cache and there is none; use cache prefix or dual")
        if self.kv_commit_every is not None and (self.cache in ("none", "prefix") or self.speculative_steps > 1):
            raise Error(
                f"kv_commit_every {self.kv_commit_every} narrows the window of a block; use it with cache dual or prompt, "
                "and speculative_steps 1"
            )


@known_names_only
@dataclass(frozen=True, slots=True)
class TextSettings(TwoLayers):
    """Block-wise text decoding (LLaDA, arXiv 2502.09992; cached as in Fast-dLLM, arXiv 2505.22618).

    guidance: g mixes (1 + g) * conditional - g * unconditional logits. temperature: of the softmax that tokens are drawn from.
    mode: "reference" repeats the published code's quirks (docs/parity.md), "default" does what one expects.
    Raises Error for a value out of its range, for more steps than tokens or fewer than blocks, and where a setting and its
    acceleration contradict each other.
    """

    answer_length: int = setting(128, "the longest answer, in tokens", source=_LLADA, unit="N", least=1)
    steps: int = setting(64, "model steps for the whole answer", source=_LLADA, unit="N", least=1)
    block_length: int = setting(32, "tokens that are finished before the next begin", source=_LLADA, unit="N", least=1)
    temperature: float = setting(
        0.0,
        "0 takes the most probable token, above they are drawn",
        source=_LLADA,
        unit="T",
        smallest=SMALLEST,
        most=LARGEST,
    )
    guidance: float = setting(
        0.0, "how strongly the prompt pulls; 0 is twice as fast", source=_GUIDANCE, unit="G", most=LARGEST
    )
    order: Literal["low_confidence", "random"] = setting(
        "low_confidence", "what is written first: the surest, or any", source=_LLADA, unit="NAME"
    )
    mode: Mode = setting("default", "reference: as the published code, bugs and all", unit="NAME")
    acceleration: TextAcceleration = TextAcceleration()

    def __post_init__(self) -> None:
        check_fields(self)
        saving = self.acceleration
        if self.steps > self.answer_length:
            raise Error(
                f"{self.steps} steps for {self.answer_length} tokens: a step writes at least one token; "
                f"use at most {self.answer_length} steps"
            )
        count = math.ceil(self.answer_length / self.block_length)
        if not self.adaptive and self.steps < count:
            raise Error(f"{self.steps} steps cannot fill {count} blocks; use at least {count} steps or a longer block")
        if self.mode == "reference":
            self._check_reference(count)
        if self.order == "random" and (saving.lookahead or saving.select != "confidence"):
            raise Error("order random does not ask how confident a prediction is; use low_confidence with select and lookahead")
        if saving.speculative_steps > 1 and self.temperature > 0:
            raise Error(
                f"speculative_steps {saving.speculative_steps} checks what greedy decoding would write; "
                "use temperature 0, or speculative_steps 1"
            )

    def _check_reference(self, count: int) -> None:
        saving = self.acceleration
        if self.answer_length % self.block_length or self.steps % count:
            raise Error(
                f"mode reference divides exactly: answer_length {self.answer_length} by block_length "
                f"{self.block_length}, and steps {self.steps} by {count} blocks"
            )
        if saving.cache != "none" and saving.threshold is None and self.steps == count:
            raise Error("the reference cannot use a cache with one step per block; use more steps, or mode default")
        if used := [name for name in changed_settings(saving) if name not in ("cache", "threshold")]:
            raise Error(f"mode reference has no {', '.join(used)}; leave out what it lacks, or use mode default")

    @property
    def adaptive(self) -> bool:
        """Whether the candidates decide how many tokens a step writes, and so how many steps there are."""
        return self.acceleration.threshold is not None or self.acceleration.entropy_bound is not None

    @checked
    def for_length(self, length: int) -> "TextSettings":
        """The same for an answer of another length: as many steps for a token, rounded up. Raises Error as they do."""
        steps = max(1, -(-self.steps * length // self.answer_length))
        return self if length == self.answer_length else self.replace(answer_length=length, steps=steps)

    @checked
    def blocks(self, start: int) -> list[Block]:
        """The blocks of an answer that begins at canvas position `start`. The last may be shorter. Steps are shared evenly,
        the rest first."""
        edges = [*range(0, self.answer_length, self.block_length), self.answer_length]
        share, rest = divmod(self.steps, len(edges) - 1)
        return [
            Block(start + low, start + high, max(1, min(share + (number < rest), high - low)))
            for number, (low, high) in enumerate(pairwise(edges))
        ]


@known_names_only
@dataclass(frozen=True, slots=True)
class ImageAcceleration:
    """What makes the steps of a drawing cheaper, and is exact as it stands (docs/speed.md).

    refresh: the partial steps between compute codes alone, over the keys of the whole row's last step. candidate_ratio: of
    the masked codes a partial step computes the most promising ones, None all of them. Step k of T (from 0) is guided where
    guidance_from <= k / T < guidance_to. Raises Error for a value out of its range, and for shares that guide no step.
    """

    refresh: int = setting(1, "compute the whole row every N steps, and codes alone between them", unit="N", least=1)
    candidate_ratio: float | None = setting(
        None, "of these codes X for each that will be drawn before the next whole row", unit="X", least=1
    )
    guidance_from: float = setting(0.0, "guide from this share of the steps on", unit="SHARE", most=1)
    guidance_to: float = setting(1.0, "guide up to this share of the steps", unit="SHARE", most=1)
    unconditional_every: int = setting(1, "compute what guidance compares with every N steps", unit="N", least=1)

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.guidance_from < self.guidance_to:
            raise Error(
                f"guidance from {self.guidance_from} to {self.guidance_to} of the steps guides none of them; "
                "use shares with 0 <= guidance_from < guidance_to <= 1"
            )


@known_names_only
@dataclass(frozen=True, slots=True)
class ImageSettings(TwoLayers):
    """Parallel unmasking of picture codes (MaskGIT, arXiv 2202.04200; MMaDA, arXiv 2505.15809 section 4.3).

    guidance: g mixes (1 + g) * conditional - g * unconditional, 0 runs the conditional row alone. schedule: share still
    masked against share of steps done. temperature: scale of the confidence noise at the start; each step k of T multiplies
    it by (1 - k / T). sampling_temperature: 1 draws codes from the model's own distribution. mode: "reference" counts the
    schedule over all codes and leaves one mask at the end; "default" counts over unknown ones. Raises Error for a value out of
    its range and for an unknown schedule.
    """

    steps: int = setting(15, "model steps", source=_MASKGIT, unit="N", least=1)
    guidance: float = setting(
        3.5, "how strongly the prompt pulls; 0 is twice as fast", source=_GUIDANCE, unit="G", most=LARGEST
    )
    schedule: str = setting(
        "cosine",
        "how fast masks vanish",
        source=_MASKGIT,
        unit="LAW",
        choices=SCHEDULES,
        check=schedule_exponent,
    )
    temperature: float = setting(1.0, "noise in the choice of what is drawn first", source=_MASKGIT, unit="T", most=LARGEST)
    sampling_temperature: float = setting(
        1.0,
        "0 takes the most probable code, above they are drawn",
        source=_MASKGIT,
        unit="T",
        smallest=SMALLEST,
        most=LARGEST,
    )
    mode: Mode = setting("default", "reference: as the published code, bugs and all", unit="NAME")
    acceleration: ImageAcceleration = ImageAcceleration()

    def __post_init__(self) -> None:
        check_fields(self)

    @checked
    def guided(self, k: int) -> bool:
        """Whether step k (from 0) mixes in the unconditional row."""
        saving = self.acceleration
        return self.guidance > 0 and saving.guidance_from <= k / self.steps < saving.guidance_to


def changed_settings(layer: TextAcceleration | ImageAcceleration) -> dict[str, Any]:
    """The settings of an acceleration that are not at their default."""
    return {each.name: getattr(layer, each.name) for each in fields(layer) if getattr(layer, each.name) != each.default}


def plain(settings: TextSettings | ImageSettings) -> dict[str, Any]:
    """Settings as bundle.json says them: every one that a user turns, and of the acceleration what is in use."""
    said = {each.name: getattr(settings, each.name) for each in settings_of(type(settings))}
    return said | {"acceleration": changed_settings(settings.acceleration)}


def from_plain(cls: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Settings from what bundle.json says; what it leaves out is at its default. Raises Error for an unknown name, which names
    the right or the nearest one, and for a value out of range."""
    layer = values.get("acceleration", {})
    if not isinstance(layer, Mapping):
        raise Error(f"acceleration is {layer!r} where an object is needed")
    nested = [each.name for each in settings_of(layer_of(cls))]
    if outside := next((name for name in values if name in nested and name not in _names_of(cls)), None):
        raise Error(f"{outside!r} stands in 'acceleration' and not beside it")
    check_names(values, [*_names_of(cls), "acceleration"])
    check_names(layer, nested)
    return cls().replace(**{name: value for name, value in values.items() if name != "acceleration"}, **layer)


def _names_of(cls: type[Any]) -> list[str]:
    return [each.name for each in settings_of(cls)]


def with_changes(defaults: TextSettings, given: Mapping[str, Any]) -> TextSettings:
    """The defaults with some settings of either layer changed, and with what follows from these: one rule of acceptance takes
    the place of the other, what renews a cache goes with it, and steps that are not given follow the answer's length."""
    changes = dict(given)
    if "entropy_bound" in changes and "threshold" not in changes:
        changes["threshold"] = None
    elif "threshold" in changes and "entropy_bound" not in changes:
        changes["entropy_bound"] = None
    if changes.get("cache") == "none":  # what a speed would renew is not there
        changes = {"refresh": None, "refresh_drift": None} | changes
    if "steps" not in changes:
        changes["steps"] = _steps_for(defaults, changes)
    return defaults.replace(**changes)


def _steps_for(defaults: TextSettings, given: Mapping[str, Any]) -> int:
    """Steps as dense as the defaults'. A length that is no whole number is left to the settings to refuse."""
    length, block = given.get("answer_length", defaults.answer_length), given.get("block_length", defaults.block_length)
    if not all(isinstance(each, int) and each > 0 for each in (length, block)):
        return defaults.steps
    blocks: int = math.ceil(length / block)
    as_dense: int = round(defaults.steps * length / defaults.answer_length)
    return max(1, min(int(length), max(blocks, as_dense)))


def with_speed(speed: str, text: TextSettings, image: ImageSettings) -> tuple[TextSettings, ImageSettings]:
    """Settings with those of a speed in them: "exact" (as they are), "balanced" or "fast". A share of steps is one of those
    that are set. The suffix window is a block where that is more; caches are renewed after a quarter of a block where that is
    more. Raises Error for another name, and where a change contradicts what is set."""
    if speed not in PRESETS:
        raise Error(f"no speed is called {speed!r}; use one of {', '.join(PRESETS)}")
    text_changes, image_changes = dict(PRESETS[speed][0]), PRESETS[speed][1]
    for name, least in (("suffix_window", text.block_length), ("refresh", text.block_length // 4)):
        if name in text_changes:
            text_changes[name] = max(text_changes[name], least)
    return text.replace(**text_changes), image.replace(**in_steps(image_changes, image.steps))


def in_steps(changes: Mapping[str, Any], own: int) -> Mapping[str, Any]:
    """The changes with steps that are a share, a float, as so many of one's own: at least 1."""
    share = changes.get("steps")
    return {**changes, "steps": max(1, round(share * own))} if isinstance(share, float) else changes
