"""Ways of decoding that benchmarks compare, as plain tables: a new one is one line. Each changes a bundle's own settings.

Nothing here decodes or measures.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from mmada_lite.decoding.settings import PRESETS, ImageSettings, TextSettings

Changes = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Policy:
    """A name and what it changes of the settings for text and for pictures. `steps` may be a share of the base's: below 1."""

    name: str
    of_text: Changes = field(default_factory=dict)
    of_image: Changes = field(default_factory=dict)

    def text(self, base: TextSettings) -> TextSettings:
        share = self.of_text.get("steps")
        steps = {"steps": max(1, round(share * base.steps))} if isinstance(share, float) else {}
        return base.replace(**{**self.of_text, **steps})

    def image(self, base: ImageSettings) -> ImageSettings:
        return base.replace(**self.of_image)


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
)

# Pictures: steps, guidance, then what else there is.
IMAGE: tuple[Changes, ...] = (
    {},
    *({"steps": s} for s in (4, 6, 8, 12, 24)),
    *({"guidance": g} for g in (0.0, 1.5, 3.5)),
    *({"steps": s, "guidance": 0.0} for s in (6, 8)),
    *({"refresh": every} for every in (2, 3, 4)),
    *({"refresh": every, "candidate_ratio": share} for every, share in ((2, 1.5), (4, 1.5), (4, 2.0), (4, 3.0))),
    *({"guidance_to": share} for share in (0.5, 0.75)),
    *({"guidance_from": share} for share in (0.25, 0.5)),
    *({"unconditional_every": steps} for steps in (2, 4)),
    *({"refresh": 4, "candidate_ratio": 2.0, "unconditional_every": every} for every in (2, 4)),
    {"refresh": 2, "guidance_to": 0.75, "unconditional_every": 2},
    {"refresh": 4, "candidate_ratio": 1.5, "guidance_to": 0.5, "unconditional_every": 2},
    {"steps": 8, "refresh": 2, "guidance_to": 0.75, "unconditional_every": 2},
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
