"""Which group of tensors is stored in which format: the presets that --precision names, and changes to them.

It knows the groups and what each may be stored as, and no graph. Reasons for the presets, at 8B: the embedder lies on the
CPU and is read row by row, so int8 rows halve the file and cost no quality that was measured; `int8` is the fastest form on
a CPU, its image head in half precision (guidance multiplies what rounding does to states before that head, and codes of
pictures are near ties: it lost more there than in all layers together, and costs 34 MB); `int4` is the smallest, its body
in blocks of 128 (4.1 bits a weight), its text head in blocks of 64 (the logits are what is read out, and it costs 9 MB;
blocks of 32 would leave too little of 4.7 GB for a tokenizer), its image head in int8 (17 MB more, and every picture step
runs it). The image tokenizer's convolutions stay in half precision: they are 2 to 4% of a bundle, and a wrong bit of a code
is another picture.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from mmada_lite.bundle import WeightGroup
from mmada_lite.errors import Error, did_you_mean
from mmada_lite.export.formats import format_named
from mmada_lite.export.lowering import TARGETS, Target, WeightSpec

Precision = Literal["fp32", "fp16", "int8", "int4"]
GROUPS = ("embedder", "backbone", "text_head", "image_head", "codec")
PRESETS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "fp32": dict.fromkeys(GROUPS, "fp32"),
        "fp16": dict.fromkeys(GROUPS, "fp16"),
        "int8": dict.fromkeys(GROUPS, "int8") | {"image_head": "fp16", "codec": "fp16"},
        "int4": {
            "embedder": "int8",
            "backbone": "int4-b128",
            "text_head": "int4-b64",
            "image_head": "int8",
            "codec": "fp16",
        },
    }
)
_ONLY: Mapping[str, tuple[str, ...]] = MappingProxyType({"embedder": ("fp32", "fp16", "int8"), "codec": ("fp32", "fp16")})


def recipe(precision: str, target: str = "cpu", formats: Mapping[str, str] | None = None) -> dict[str, WeightSpec]:
    """Group -> form: the preset `precision`, with `formats` (group -> name of a format) in place of its own.

    Raises Error for an unknown precision, target, group or format, and for a group that is not stored so.
    """
    if precision not in PRESETS:
        raise Error(f"no precision is called {precision!r}; use one of {', '.join(PRESETS)}")
    if target not in TARGETS:
        raise Error(f"no target is called {target!r}; use one of {', '.join(TARGETS)}")
    names = {**PRESETS[precision], **(formats or {})}
    return {group: _form(group, name, target) for group, name in names.items()}


def _form(group: str, name: str, target: Target) -> WeightSpec:
    if group not in GROUPS:
        hint = did_you_mean(group, GROUPS, f"the groups are {', '.join(GROUPS)}")
        raise Error(f"no group of tensors is called {group!r}; {hint}")
    form = WeightSpec(format_named(name), target)
    if name not in _ONLY.get(group, (name,)):
        raise Error(f"the {group} is not stored as {name}; use one of {', '.join(_ONLY[group])}")
    return form


def described(group: str, form: WeightSpec, size: int) -> WeightGroup:
    """What bundle.json says of a group whose tensors take `size` bytes."""
    stored = form.format
    return WeightGroup(
        format=stored.family,
        bits=stored.bits,
        block=stored.block,
        symmetric=None if stored.floating else stored.symmetric,
        scale=None if stored.floating else {"float16": "fp16", "float32": "fp32"}[stored.scale_dtype],
        activation=None if group == "embedder" else form.activation,
        bytes=size,
    )
