"""The shapes that an engine is tuned for: profiles of prefill, block step and picture step, from what a bundle says.

A profile gives every free axis of the graphs (docs/bundle.md) its least, likeliest and largest length. It knows axes; it knows
nothing of TensorRT.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmada_lite.bundle import Bundle
from mmada_lite.errors import Error

Range = tuple[int, int, int]  # least, likeliest, largest
NAMES = ("prefill", "block", "picture")
ENGINES_OF = ("backbone", "text_head", "image_head")
_PROMPT = 130  # tokens around a picture's codes, likeliest: a sentence and the special ones
LONGEST_BLOCK = 256  # tokens that a text step may ask for at once


@dataclass(frozen=True, slots=True)
class Profile:
    """axes: letter -> range. B rows, W window, P past, Q queried positions, R states, N mixed rows."""

    name: str
    axes: Mapping[str, Range]

    def shape(self, dims: Sequence[int | str], which: int) -> tuple[int, ...]:
        """The dims of an input with every letter replaced by its least (0), likeliest (1) or largest (2) length."""
        return tuple(self.axes[dim][which] if isinstance(dim, str) else dim for dim in dims)


def profiles_for(bundle: Bundle, names: Sequence[str] = NAMES) -> tuple[Profile, ...]:
    """The named profiles in their own order. Prefill spans everything, so that a host that knows one profile can run all.

    prefill: the whole row, no past. block: a block over a long past. picture: the whole row, all codes asked for; left out of
    the default where the model has no pictures. Raises Error for an unknown name or a picture profile without pictures.
    """
    for name in names:
        if name not in NAMES:
            raise Error(f"no profile is called {name!r}; use one of {', '.join(NAMES)}")
    found = {profile.name: profile for profile in _all(bundle)}
    if tuple(names) != NAMES and "picture" in names and "picture" not in found:
        raise Error(f"{bundle.path} sees and draws no pictures; leave out --profile picture")
    return tuple(found[name] for name in NAMES if name in names and name in found)


def profiles_of(graph: str, profiles: Sequence[Profile]) -> tuple[Profile, ...]:
    """Those of the chosen profiles that a graph is run with. A head sees the rows asked for alone, so one does for it."""
    wanted = {"text_head": ("block", "prefill"), "image_head": ("picture",)}.get(graph)
    if wanted is None:
        return tuple(profiles)
    return tuple(profile for name in wanted for profile in profiles if profile.name == name)[:1]


def input_dims(bundle: Bundle, graph: str) -> dict[str, tuple[int | str, ...]]:
    """The dims of every input of a graph, free axes by their letter (docs/bundle.md)."""
    a = bundle.architecture
    if graph != "backbone":
        return {"hidden": ("R", "Q", a.d_model), "mix": ("N", "R"), "uniform": ("N", "Q")}
    past: tuple[int | str, ...] = ("B", a.n_kv_heads, "P", a.head_dim)
    pasts = {f"past_{kind}_{layer}": past for layer in range(a.n_layers) for kind in ("key", "value")}
    return {"embeddings": ("B", "W", a.d_model), "positions": ("B", "W"), **pasts, "rows": ("B", "Q")}


def described(profiles: Sequence[Profile]) -> str:
    """Names and a digest of the shapes, for an engine's key."""
    text = repr([(profile.name, sorted(profile.axes.items())) for profile in profiles])
    return "+".join(profile.name for profile in profiles) + f" {hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _all(bundle: Bundle) -> list[Profile]:
    longest = bundle.architecture.max_sequence_length
    block = min(bundle.text_defaults.block_length, longest)
    most = min(longest, max(block, LONGEST_BLOCK))
    codes = (bundle.image.resolution // bundle.image.downsample) ** 2 if bundle.image else 0
    asked = max(most, codes)
    rows: dict[str, Range] = {"B": (1, 1, 1), "N": (1, 1, 1), "R": (1, 1, 2)}
    likeliest = min(longest, codes + _PROMPT if codes else longest // 2)
    found = [
        Profile("prefill", rows | {"W": (1, likeliest, longest), "P": (0, 0, longest), "Q": (1, block, asked)}),
        Profile("block", rows | {"W": (1, block, most), "P": (0, likeliest, longest), "Q": (1, block, most)}),
    ]
    if codes:
        pictures = {"W": (codes, likeliest, longest), "P": (0, 0, 0), "Q": (1, codes, codes), "R": (1, 2, 2)}
        found.append(Profile("picture", rows | pictures))
    return found
