"""How a text or a picture is to be decoded: every setting, checked before any work is done, and the named speeds, which are
changes of a few of them. No arrays and no models here.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from mmada_lite.decoding.kv_cache import POLICIES
from mmada_lite.decoding.schedules import schedule, transfers
from mmada_lite.errors import Error, did_you_mean

Law = Literal["sensible", "reference"]
Settings = TypeVar("Settings")

# The named speeds: changes of the text settings, changes of the image settings.
_PARTIAL_STEPS: Mapping[str, Any] = MappingProxyType({"refresh": 2, "shortlist": 2.0, "unconditional_every": 2})
_CACHED: Mapping[str, Any] = MappingProxyType(
    {"cache": "dual", "entropy_bound": None, "early_stop": 1.0, "thought_first": True, "refresh": 2}
)
PRESETS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = MappingProxyType(
    {
        "exact": (MappingProxyType({}), MappingProxyType({})),
        "balanced": (MappingProxyType({**_CACHED, "threshold": 0.9}), _PARTIAL_STEPS),
        "fast": (MappingProxyType({**_CACHED, "threshold": 0.8, "suffix": 8}), _PARTIAL_STEPS),
    }
)


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch of the answer that is finished before the next begins: canvas positions start..stop-1, in `steps` steps."""

    start: int
    stop: int
    steps: int


@dataclass(frozen=True, slots=True)
class TextSettings:
    """Block-wise text decoding (LLaDA, arXiv 2502.09992; cached as in Fast-dLLM, arXiv 2505.22618).

    answer_length, steps, block_length: tokens to write, model steps for all of them, tokens per block.
    temperature: 0 takes the most probable token; above, tokens are drawn from softmax(logits / temperature).
    guidance: 0 is none; g mixes (1 + g) * conditional - g * unconditional.
    order: which positions are written first: "low_confidence" (the most confident first) or "random".
    cache: "none" computes everything at every step; "prefix", "dual" and "prompt" keep keys and values of the block's first
    step; with "prompt" the first step of a later block uses the prompt's keys and values of the answer's very first step.
    threshold: a probability; then every position at least that probable is written and `steps` is not used.
    law: "reference" repeats the published code's quirks (docs/parity.md), "sensible" does what one expects.

    What follows saves work (docs/decoding.md) and asks for the sensible law.
    select: what ranks positions: "confidence" (the token's probability), "margin" (that less the next one's) or "entropy".
    entropy_bound: nats; the most confident positions are written whose entropies, but for the largest, add up to at most this.
    early_stop: a probability; decoding ends once a stop token and all before it are written, or one comes next and is likelier.
    reach: positions beyond a block that are written with its last ones, while each is as probable as `threshold`.
    refresh, drift: compute all anew after so many steps of a block, or once its candidates moved that much (0 to 1).
    suffix: masks behind the block that a step still reads; the others are left out.
    draft: canvases that one forward checks; what is written stays what one at a time would write.
    settle: written positions of a block leave a cached window so many at a time, their keys and values as they are one step
    after they were written.
    thought_first: nothing behind the end of a thought is written before all of the thought is (mmada_lite/vocabulary).
    """

    answer_length: int = 128
    steps: int = 64
    block_length: int = 32
    temperature: float = 0.0
    guidance: float = 0.0
    order: Literal["low_confidence", "random"] = "low_confidence"
    cache: Literal["none", "prefix", "dual", "prompt"] = "none"
    threshold: float | None = None
    law: Law = "sensible"
    select: Literal["confidence", "margin", "entropy"] = "confidence"
    entropy_bound: float | None = None
    early_stop: float | None = None
    reach: int = 0
    refresh: int | None = None
    drift: float | None = None
    suffix: int | None = None
    draft: int = 1
    settle: int | None = None
    thought_first: bool = False

    def __post_init__(self) -> None:
        _whole("answer_length", self.answer_length)
        _whole("steps", self.steps)
        _whole("block_length", self.block_length)
        _at_least_zero("temperature", self.temperature)
        _at_least_zero("guidance", self.guidance)
        _one_of("order", self.order, ("low_confidence", "random"))
        _one_of("cache", self.cache, POLICIES)
        _one_of("law", self.law, ("sensible", "reference"))
        _probability("threshold", self.threshold)
        if self.steps > self.answer_length:
            raise Error(
                f"{self.steps} steps for {self.answer_length} tokens: a step writes at least one token; "
                f"use at most {self.answer_length} steps"
            )
        count = math.ceil(self.answer_length / self.block_length)
        if not self.adaptive and self.steps < count:
            raise Error(f"{self.steps} steps cannot fill {count} blocks; use at least {count} steps or a longer block")
        if self.law == "reference" and (self.answer_length % self.block_length or self.steps % count):
            raise Error(
                f"the reference law divides exactly: answer_length {self.answer_length} by block_length "
                f"{self.block_length}, and steps {self.steps} by {count} blocks"
            )
        if self.law == "reference" and self.cache != "none" and self.threshold is None and self.steps == count:
            raise Error("the reference cannot use a cache with one step per block; use more steps or the sensible law")
        self._check_savings()

    def _check_savings(self) -> None:
        _one_of("select", self.select, ("confidence", "margin", "entropy"))
        _probability("early_stop", self.early_stop)
        _whole("reach", self.reach, least=0)
        _whole("draft", self.draft)
        if not isinstance(self.thought_first, bool):
            raise Error(f"thought_first is {self.thought_first!r}; use true or false")
        for name, value, least in (("refresh", self.refresh, 1), ("suffix", self.suffix, 0), ("settle", self.settle, 1)):
            if value is not None:
                _whole(name, value, least=least)
        for name, bound in (("entropy_bound", self.entropy_bound), ("drift", self.drift)):
            if bound is not None:
                _at_least_zero(name, bound)
        if self.law == "reference" and (used := later_settings(self)):
            raise Error(f"the reference law has no {', '.join(used)}; leave out what it lacks, or use the sensible law")
        if self.threshold is not None and self.entropy_bound is not None:
            raise Error("threshold and entropy_bound both say how many tokens a step writes; use one of them")
        if self.reach and self.threshold is None:
            raise Error(f"reach {self.reach} writes what is as probable as the threshold; give a threshold too")
        if self.order == "random" and (self.reach or self.select != "confidence"):
            raise Error("order random does not ask how confident a prediction is; use low_confidence with select and reach")
        if self.cache == "none" and (self.refresh is not None or self.drift is not None):
            raise Error("refresh and drift renew a cache and there is none; use cache prefix or dual")
        if self.settle is not None and (self.cache in ("none", "prefix") or self.draft > 1):
            raise Error(f"settle {self.settle} narrows the window of a block; use it with cache dual or prompt, and draft 1")
        if self.draft > 1 and self.temperature > 0:
            raise Error(f"draft {self.draft} checks what greedy decoding would write; use temperature 0, or draft 1")

    @property
    def adaptive(self) -> bool:
        """Whether the candidates decide how many tokens a step writes, and so how many steps there are."""
        return self.threshold is not None or self.entropy_bound is not None

    def blocks(self, start: int) -> list[Block]:
        """The blocks of an answer that begins at canvas position `start`. The last may be shorter."""
        edges = [*range(0, self.answer_length, self.block_length), self.answer_length]
        shares = transfers(self.steps, len(edges) - 1)
        return [
            Block(start + low, start + high, max(1, min(int(share), high - low)))
            for low, high, share in zip(edges, edges[1:], shares, strict=False)
        ]


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """Parallel unmasking of picture codes (MaskGIT, arXiv 2202.04200; MMaDA, arXiv 2505.15809 section 4.3).

    steps: model steps. guidance: g mixes (1 + g) * conditional - g * unconditional, 0 runs the conditional row alone.
    schedule: share still masked against share of steps done: cosine, linear, sigmoid, pow<exponent>.
    temperature: scale of the confidence noise at the start; each step k of T multiplies it by (1 - k / T).
    sampling_temperature: how codes are drawn: 1 from the model's own distribution, 0 always the most probable.
    law: "reference" counts the schedule over all codes and leaves one mask at the end; "sensible" counts over unknown ones.

    What makes steps cheaper, and is exact as it stands (docs/drawing.md):
    refresh: every how many steps the whole row is computed; the partial steps between compute codes alone, over its keys.
    shortlist: how many codes a partial step computes for each that will be written until the next full one, the most
    promising ones; None computes all that were masked at the full step.
    guidance_from, guidance_to: step k of T (from 0) is guided where guidance_from <= k / T < guidance_to.
    unconditional_every: for how many steps the unconditional row's hidden states serve.
    """

    steps: int = 15
    guidance: float = 3.5
    schedule: str = "cosine"
    temperature: float = 1.0
    sampling_temperature: float = 1.0
    law: Law = "sensible"
    refresh: int = 1
    shortlist: float | None = None
    guidance_from: float = 0.0
    guidance_to: float = 1.0
    unconditional_every: int = 1

    def __post_init__(self) -> None:
        _whole("steps", self.steps)
        _whole("refresh", self.refresh)
        _whole("unconditional_every", self.unconditional_every)
        _at_least_zero("guidance_from", self.guidance_from)
        _at_least_zero("guidance_to", self.guidance_to)
        _at_least_zero("guidance", self.guidance)
        _at_least_zero("temperature", self.temperature)
        _at_least_zero("sampling_temperature", self.sampling_temperature)
        _one_of("law", self.law, ("sensible", "reference"))
        schedule(self.schedule)
        if not self.guidance_from < self.guidance_to <= 1:
            raise Error(
                f"guidance from {self.guidance_from} to {self.guidance_to} of the steps guides none of them or more than all; "
                "use shares with 0 <= guidance_from < guidance_to <= 1"
            )
        if self.shortlist is not None:
            _at_least_zero("shortlist", self.shortlist)
            if self.shortlist < 1:
                raise Error(f"shortlist is {self.shortlist}: a partial step could not fill its share; use at least 1")

    def guided(self, k: int) -> bool:
        """Whether step k (from 0) mixes in the unconditional row."""
        return self.guidance > 0 and self.guidance_from <= k / self.steps < self.guidance_to


def later_settings(settings: TextSettings | ImageSettings) -> dict[str, Any]:
    """The settings in use that the first hosts of a bundle did not know: those after `law` that are not at their default."""
    names = [field.name for field in fields(settings)]
    later = fields(settings)[names.index("law") + 1 :]
    return {f.name: getattr(settings, f.name) for f in later if getattr(settings, f.name) != f.default}


def plain(settings: TextSettings | ImageSettings) -> dict[str, Any]:
    """Settings as bundle.json says them: later ones only where they are in use, so that older hosts read what they can."""
    names = [field.name for field in fields(settings)]
    first = {name: getattr(settings, name) for name in names[: names.index("law") + 1]}
    return first | later_settings(settings)


def settings_from(cls: type[Settings], values: Mapping[str, Any], where: str) -> Settings:
    """Build settings from plain data; an unknown key is an Error that names the nearest valid one."""
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            hint = did_you_mean(key, names, f"the settings are {', '.join(names)}")
            raise Error(f"{where}: unknown setting {key!r}; {hint}")
    return cls(**values)


def _whole(name: str, value: object, least: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise Error(f"{name} is {value!r}; use a whole number of at least {least}")


def _probability(name: str, value: float | None) -> None:
    if value is not None and not 0 < value <= 1:
        raise Error(f"{name} {value} is not a probability; use a number above 0 and at most 1")


def _at_least_zero(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise Error(f"{name} is {value!r}; use a number of at least 0")


def _one_of(name: str, value: str, choices: Iterable[str]) -> None:
    if value not in tuple(choices):
        raise Error(f"{name} is {value!r}; use one of {', '.join(choices)}")


def with_speed(speed: str, text: TextSettings, image: ImageSettings) -> tuple[TextSettings, ImageSettings]:
    """Settings with those of a speed in them: "exact" (as they are), "balanced" or "fast". Its suffix is a block's length where
    that is more; caches are renewed after a quarter of a block's length where that is more. Raises Error for another name,
    and where a change contradicts what is set."""
    if speed not in PRESETS:
        raise Error(f"no speed is called {speed!r}; use one of {', '.join(PRESETS)}")
    text_changes, image_changes = PRESETS[speed]
    changed = replace(text, **text_changes)
    if "suffix" in text_changes:
        changed = replace(changed, suffix=max(text_changes["suffix"], text.block_length))
    if "refresh" in text_changes:
        changed = replace(changed, refresh=max(text_changes["refresh"], text.block_length // 4))
    return changed, replace(image, **image_changes)
