"""Ways of decoding that benchmarks compare, as plain tables: a new one is one line. Each changes a bundle's own settings.

Nothing here decodes or measures.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from mmada_lite.decoding.settings import PRESETS, ImageSettings, TextSettings, in_steps

Changes = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Policy:
    """A name and what it changes of the settings for text and for pictures. `steps` may be a share of the base's: a float."""

    name: str
    of_text: Changes = field(default_factory=dict)
    of_image: Changes = field(default_factory=dict)

    def text(self, base: TextSettings) -> TextSettings:
        return base.replace(**in_steps(self.of_text, base.steps))

    def image(self, base: ImageSettings) -> ImageSettings:
        return base.replace(**in_steps(self.of_image, base.steps))


# What ends with the answer and changes none, and keeps what rests on a thought right.
_WHOLE: Changes = {"early_stop": 1.0, "thought_first": True}

# Text: cache, threshold, block; then what else there is, one line each. Names are made of what is changed.
TEXT: tuple[Changes, ...] = (
    *({"cache": cache} for cache in ("none", "prefix", "dual")),
    *({"steps": share} for share in (0.5, 0.25)),
    *({"cache": c, "threshold": t} for c, t in product(("none", "prefix", "dual"), (0.95, 0.9, 0.8, 0.6))),
    *({"block_length": b, "threshold": t, "cache": "dual"} for b, t in product((8, 16, 32), (0.9, 0.8))),
    *({"cache": "dual", "entropy_bound": bound} for bound in (0.05, 0.2, 0.5)),
    *({"cache": "dual", "threshold": 0.9, "select": select} for select in ("margin", "entropy")),
    *({"cache": "dual", "threshold": t, "early_stop": e} for t, e in ((0.9, 0.95), (0.8, 0.9), (0.6, 0.8))),
    *({"cache": "dual", "threshold": 0.9, "early_stop": 0.95, "suffix_window": length} for length in (0, 8, 16)),
    *({"cache": "dual", "threshold": 0.8, "early_stop": 0.9, "lookahead": length} for length in (4, 8)),
    *({"cache": "dual", "threshold": 0.9, "refresh": every} for every in (2, 4)),
    {"cache": "dual", "threshold": 0.9, "refresh_drift": 0.1},
    *({"cache": cache, "threshold": 0.9, "thought_first": True} for cache in ("none", "dual", "prompt")),
    *({"cache": "prompt", "threshold": 0.9, "thought_first": True, "suffix_window": length} for length in (8, 16)),
    *({"cache": "dual", "kv_commit_every": count} for count in (1, 4)),
    *({"speculative_steps": count} for count in (2, 4, 8)),
    {"cache": "prefix", "speculative_steps": 4},
    {"early_stop": 0.95},
    *({"cache": c, "threshold": t, **_WHOLE} for c, t in product(("dual", "prompt"), (0.9, 0.8))),
    *({"cache": c, "threshold": t, **_WHOLE, "suffix_window": 8} for c, t in product(("dual", "prompt"), (0.9, 0.8))),
    *({"cache": c, "threshold": t, **_WHOLE, "refresh": 2} for c, t in product(("dual", "prompt"), (0.9, 0.8))),
    *(
        {"cache": c, "threshold": t, **_WHOLE, "refresh": 2, "suffix_window": 8}
        for c, t in product(("dual", "prompt"), (0.9, 0.8))
    ),
)

_WITH_FEW_STEPS: tuple[Changes, ...] = (
    {"unconditional_every": 2},
    {"guidance_to": 0.75},
    {"guidance_to": 0.5},
    {"refresh": 2, "candidate_ratio": 2.0},
    {"refresh": 2, "candidate_ratio": 2.0, "unconditional_every": 2},
)

# Pictures: steps, guidance, then what else there is, alone and with fewer steps.
IMAGE: tuple[Changes, ...] = (
    {},
    *({"steps": share} for share in (0.25, 0.3125, 0.375, 0.5, 0.75, 1.5)),
    *({"guidance": g} for g in (0.0, 1.5, 3.5)),
    *({"steps": share, "guidance": 0.0} for share in (0.375, 0.5)),
    *({"refresh": every} for every in (2, 3, 4)),
    *({"refresh": every, "candidate_ratio": share} for every, share in ((2, 1.5), (4, 1.5), (4, 2.0), (4, 3.0))),
    *({"guidance_to": share} for share in (0.5, 0.75)),
    *({"guidance_from": share} for share in (0.25, 0.5)),
    *({"unconditional_every": steps} for steps in (2, 4)),
    *({"refresh": every, "candidate_ratio": 2.0, "unconditional_every": steps} for every, steps in ((2, 2), (4, 2), (4, 4))),
    {"refresh": 2, "guidance_to": 0.75, "unconditional_every": 2},
    {"refresh": 4, "candidate_ratio": 1.5, "guidance_to": 0.5, "unconditional_every": 2},
    *({"steps": share, **saving} for share, saving in product((0.25, 0.375, 0.5), _WITH_FEW_STEPS)),
)


def grid(changes: Iterable[Changes], kind: str) -> list[Policy]:
    """The policies of a table, named by what they change. kind: text or image."""
    named = {" ".join(f"{key}={value}" for key, value in each.items()) or "exact": each for each in changes}
    return [Policy(name, each) if kind == "text" else Policy(name, of_image=each) for name, each in named.items()]


def presets() -> list[Policy]:
    """What --speed names, exact first."""
    return [Policy(name, text, image) for name, (text, image) in PRESETS.items()]


def for_peers() -> list[Policy]:
    """Exact, both caches at equal steps, the dual one with settling, and the presets. What drafts gain, random weights cannot
    tell: see the frontier."""
    first, *rest = presets()
    settled = Policy("settled", {"cache": "dual", "kv_commit_every": 4})
    return [first, *(Policy(cache, {"cache": cache}) for cache in ("prefix", "dual")), settled, *rest]
