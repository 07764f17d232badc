"""Which group of tensors is stored in which format: what a precision means for an export, and changes to it.

It knows the groups and what each may be stored as, and no graph; the formats of each precision are
`mmada_lite.memory_plan.PRECISIONS`, which plans with them too. Reasons for them, at 8B: the embedder lies on the CPU and is
read row by row, so int8 rows halve the file and cost no quality that was measured; `bf16` is how the published weights are
stored, so that nothing of them is lost; `int8` is the fastest format on a CPU
(`int8-7bit` where it has no VNNI: with codes within 63 the fast kernels' sums of pairs fit their 16 bits),
its image head in half precision (guidance multiplies what rounding does to states before that head, and codes of pictures
are near ties: it lost more there than in all layers together, and costs 34 MB); `fp8` is as large,
for TensorRT-RTX alone; `int4` is the smallest, its backbone in blocks of 128 (4.1 bits a weight), its text head in blocks of 64
(the logits are what is read out, and it costs 9 MB; blocks of 32 would leave too little of 4.7 GB for a tokenizer), its image
head in int8 (17 MB more, and every picture step runs it).
The image tokenizer's convolutions stay in half precision: they are 2 to 4% of a bundle, and a wrong bit of a code is another
picture. For CUDA both are in blocks of 32, 4.5 bits a weight, which its fused kernels take.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Literal

from mmada_lite.bundle import WeightGroup
from mmada_lite.contracts import IN_FLOAT32
from mmada_lite.errors import Error, did_you_mean
from mmada_lite.export.formats import format_named
from mmada_lite.export.lowering import TARGETS, Target, WeightSpec
from mmada_lite.memory_plan import PRECISIONS, formats_of
from mmada_lite.ort.attention_forms import FORMS, JOINED

Precision = Literal["fp32", "fp16", "bf16", "int8", "int8-7bit", "fp8", "int4"]
CACHES = ("fp32", "fp16")
GROUPS = ("embedder", "backbone", "text_head", "image_head", "codec")
_PRODUCTS = ("backbone", "text_head", "image_head")
_ALLOWED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"embedder": ("fp32", "fp16", "bf16", "int8"), "codec": ("fp32", "fp16")}
)


def specs_for(
    precision: str,
    target: str = "cpu",
    overrides: Mapping[str, str] | None = None,
    attention: str = JOINED,
    packed: bool = False,
) -> dict[str, WeightSpec]:
    """Group -> how its weights are stored: as `precision` says, but for `overrides` (group -> name of a format).

    attention: by which operators a backbone for CUDA attends; packed: codes are laid out for CUDA's kernels. Raises Error for
    an unknown precision, target, group, format or way to attend, and for a group that is not stored so.
    """
    if precision not in PRECISIONS:
        raise Error(f"no precision is called {precision!r}; use one of {', '.join(PRECISIONS)}")
    if target not in TARGETS:
        raise Error(f"no target is called {target!r}; use one of {', '.join(TARGETS)}")
    if attention not in FORMS:
        raise Error(f"no way to attend is called {attention!r}; use one of {', '.join(FORMS)}")
    format_names = {**formats_of(precision, target), **(overrides or {})}
    if packed and target != "cuda":
        raise Error(f"codes are packed for CUDA's kernels alone, and not for {target}; leave --packed out")
    specs = {group: _spec(group, format_name, target) for group, format_name in format_names.items()}
    if packed and all(specs[group].format.floating for group in _PRODUCTS):
        raise Error(f"{precision} has no codes to pack; leave --packed out, or use --precision int4 or int8")
    specs = {group: replace(spec, packed=packed and group in _PRODUCTS) for group, spec in specs.items()}
    return specs | {"backbone": replace(specs["backbone"], attention=attention)}


def with_caches(specs: Mapping[str, WeightSpec], precision: str | None) -> dict[str, WeightSpec]:
    """The same for a backbone whose keys and values are kept in `precision`, one of `CACHES`; None: as its target has them.

    Raises Error for another one, and for a target that has a form of its own.
    """
    backbone = specs["backbone"]
    if precision is not None and precision not in CACHES:
        raise Error(f"no precision of caches is called {precision!r}; use one of {', '.join(CACHES)}")
    if precision is not None and backbone.target not in IN_FLOAT32:
        of_its_own = "half precision" if backbone.kept == "float16" else "fp32, as its backbone is"
        raise Error(f"graphs for {backbone.target} keep keys and values in {of_its_own}; leave --cache-precision out")
    return {**specs, "backbone": replace(backbone, half_caches=precision == "fp16")}


def _spec(group: str, format_name: str, target: Target) -> WeightSpec:
    if group not in GROUPS:
        hint = did_you_mean(group, GROUPS, f"the groups are {', '.join(GROUPS)}")
        raise Error(f"no group of tensors is called {group!r}; {hint}")
    spec = WeightSpec(format_named(format_name), target)
    if format_name not in _ALLOWED.get(group, (format_name,)):
        raise Error(f"the {group} is not stored as {format_name}; use one of {', '.join(_ALLOWED[group])}")
    return spec


def weight_group(group: str, spec: WeightSpec, size: int) -> WeightGroup:
    """What bundle.json says of a group whose tensors take `size` bytes."""
    stored = spec.format
    return WeightGroup(
        format=stored.family,
        bits=7 if stored.narrow else stored.bits,
        block=stored.block,
        symmetric=None if stored.floating else stored.symmetric,
        scale=None if stored.floating else {"float16": "fp16", "float32": "fp32"}[stored.scale_dtype],
        activation=None if group == "embedder" else spec.activation,
        bytes=size,
    )
