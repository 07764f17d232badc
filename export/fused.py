"""The backbone as an ONNX graph for CUDA: the same arithmetic as `transformer`'s in fewer and larger operators, the sum that
layers add to in half precision.

One product gives queries, keys and values, and one the two halves of the feed-forward part; a sum and the norm behind it
are one operator. Every operator has a kernel of CUDA's provider, so that nothing visits the host and a step can be captured
as a CUDA graph: no If, no node that computes shapes, and no GatherND, whose kernel read host memory when it was replayed
(onnxruntime's pull request 32120). How a matrix is stored is `lowering`'s.
"""

import numpy as np

from mmada_lite.errors import Error
from mmada_lite.export import lowering
from mmada_lite.export.checkpoint import Tensors, TransformerConfig
from mmada_lite.export.graph import CONTRIB, Graph
from mmada_lite.export.lowering import WeightSpec
from mmada_lite.export.transformer import ROOT, angles_of
from mmada_lite.export.weights import Matrix, Stacked, Weight
from mmada_lite.ort.attention_forms import ATTENTION, JOINED, MHA, PLAIN

# What one product gives, and the matrices of a checkpoint whose outputs stand in it one after another.
STACKS = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "kv_proj": ("k_proj", "v_proj"),
    "gate_up_proj": ("ff_proj", "up_proj"),
}


def build_fused_backbone(graph: Graph, source: Tensors, spec: WeightSpec, config: TransformerConfig) -> None:
    """As `transformer.build_backbone`: the same inputs and outputs. Raises Error where `spec.attention` cannot attend with
    fewer heads of keys than of queries."""
    if config.n_kv_heads != config.n_heads and spec.attention in (MHA, PLAIN):
        raise Error(
            f"--attention {spec.attention} needs as many heads of keys as of queries, and this model has {config.n_kv_heads} "
            f"of keys and {config.n_heads} of queries; use --attention {JOINED}"
        )
    heads, size = config.n_kv_heads, config.head_dim
    x = lowering.narrow(graph, graph.input("embeddings", "float32", ("B", "W", config.d_model)), spec)
    positions = graph.input("positions", "int64", ("B", "W"))
    for layer in range(config.n_layers):
        for kind in ("key", "value"):
            graph.input(f"past_{kind}_{layer}", spec.computed, ("B", heads, "P", size))
    query_index = graph.op("Unsqueeze", graph.input("rows", "int64", ("B", "Q")), graph.ints(-1))  # [B, Q, 1]
    cosines, sines = (lowering.narrow(graph, part, spec) for part in angles_of(graph, positions, config))
    layers = [_Layer(graph, source, spec, config, layer) for layer in range(config.n_layers)]
    normed = layers[0].norm("attn_norm", x)
    for layer, block in enumerate(layers):
        last = layer == config.n_layers - 1
        following = f"{ROOT}.ln_f" if last else f"{ROOT}.blocks.{layer + 1}.attn_norm"
        normed, x = block.build(normed, x, (cosines, sines), query_index if last else None, following)
    if spec.computed == "float32":
        graph.op("Identity", normed, to="hidden")
    else:
        lowering.widen(graph, normed, spec, to="hidden")
    graph.output("hidden", "float32", ("B", "Q", config.d_model))
    for kind in ("key", "value"):
        for layer in range(config.n_layers):
            graph.output(f"{kind}_{layer}", spec.computed, ("B", heads, "W", size))


class _Layer:
    """One layer under construction."""

    def __init__(self, graph: Graph, source: Tensors, spec: WeightSpec, config: TransformerConfig, layer: int) -> None:
        self.graph, self.source, self.spec, self.config, self.layer = graph, source, spec, config, layer

    def build(self, normed: str, x: str, angles: tuple[str, str], query_index: str | None, following: str) -> tuple[str, str]:
        """The norm of a sum x [B, W, D] and x -> the same behind this layer, normed by the norm called `following`. With
        `query_index` [B, Q, 1], in the last layer, only those positions leave it."""
        graph, config = self.graph, self.config
        width = config.n_kv_heads * config.head_dim
        queried = angles
        if query_index is None:
            query, key, value = self._split("qkv_proj", normed, (config.d_model, width, width))
        else:
            key, value = self._split("kv_proj", normed, (width, width))
            x, normed, *taken = (self._take(each, query_index, n) for each, n in self._of_positions(x, normed, angles))
            queried = taken[0], taken[1]
            query = self._linear("q_proj", normed)
        query = self._rotate(query, queried, config.n_heads)
        key = self._rotate(key, angles, config.n_kv_heads)
        kept = tuple(
            self._heads(each, config.n_kv_heads, to=f"{kind}_{self.layer}") for each, kind in ((key, "key"), (value, "value"))
        )
        mixed = self._attend(query, key, value, (kept[0], kept[1]))
        normed, x = self._added(x, self._linear("attn_out", mixed), self._name("ff_norm"))
        inner = config.mlp_hidden_size
        gate, up = self._split("gate_up_proj", normed, (inner, inner))
        silu = graph.op("QuickGelu", gate, attributes={"alpha": 1.0}, domain=CONTRIB)  # x sigmoid(1 x)
        return self._added(x, self._linear("ff_out", graph.op("Mul", silu, up)), following)

    def norm(self, name: str, x: str) -> str:
        attributes = {"axis": -1, "epsilon": self.config.rms_norm_eps}
        return self.graph.op("RMSNormalization", x, self._scale(self._name(name)), attributes=attributes)

    def _added(self, x: str, change: str, norm: str) -> tuple[str, str]:
        """The norm of x + change, and the sum."""
        normed, total = self.graph.several(
            "SkipSimplifiedLayerNormalization",
            *(x, change, self._scale(norm)),
            outputs=[True, False, False, True],
            attributes={"epsilon": self.config.rms_norm_eps},
            domain=CONTRIB,
        )
        return normed, total

    def _scale(self, name: str) -> str:
        return lowering.vector(self.graph, Weight(self.source, f"{name}.weight"), lowering.vector_dtype(self.spec))

    def _split(self, name: str, x: str, widths: tuple[int, ...]) -> tuple[str, ...]:
        """The parts [..., width] that one product of `STACKS` gives."""
        parts = tuple(Weight(self.source, f"{self._name(part)}.weight") for part in STACKS[name])
        stacked = Stacked(f"blocks.{self.layer}.{name}.weight", parts)
        product = self._product(x, stacked)
        return self.graph.several("Split", product, self.graph.ints(*widths), outputs=len(widths), attributes={"axis": -1})

    def _linear(self, name: str, x: str) -> str:
        return self._product(x, Weight(self.source, f"{self._name(name)}.weight"))

    def _product(self, x: str, matrix: Matrix) -> str:
        return lowering.linear(self.graph, x, matrix, self.spec)

    def _rotate(self, x: str, angles: tuple[str, str], count: int) -> str:
        """x [B, W, H Hd] turned by cosines and sines [B, W, Hd / 2]."""
        return self.graph.op("RotaryEmbedding", x, *angles, attributes={"num_heads": count})

    def _heads(self, x: str, count: int, to: str = "") -> str:
        """[B, W, H Hd] -> [B, H, W, Hd]."""
        split = self.graph.op("Reshape", x, self.graph.ints(0, 0, count, self.config.head_dim))
        return self.graph.op("Transpose", split, attributes={"perm": [0, 2, 1, 3]}, to=to)

    def _of_positions(self, x: str, normed: str, angles: tuple[str, str]) -> list[tuple[str, int]]:
        """What has a number for each position, and how many."""
        return [
            (x, self.config.d_model),
            (normed, self.config.d_model),
            *((each, self.config.head_dim // 2) for each in angles),
        ]

    def _take(self, x: str, index: str, width: int) -> str:
        """x [B, W, width] at index [B, Q, 1] -> [B, Q, width]."""
        whole = self.graph.op("Mul", index, self.graph.constant(np.ones(width), "int64"))  # [B, Q, width]
        return self.graph.op("GatherElements", x, whole, attributes={"axis": 1})

    def _attend(self, query: str, key: str, value: str, kept: tuple[str, str]) -> str:
        """query [B, Q, D], key and value [B, W, Hkv Hd], these by heads too -> [B, Q, D], over the past and the window."""
        graph, config, how = self.graph, self.config, self.spec.attention
        past = f"past_key_{self.layer}", f"past_value_{self.layer}"
        if how == ATTENTION:
            counts = {"is_causal": 0, "q_num_heads": config.n_heads, "kv_num_heads": config.n_kv_heads}
            return graph.op("Attention", query, key, value, "", *past, attributes=counts, unused=2)
        if how == MHA:
            heads, given = {"num_heads": config.n_heads}, (query, key, value, "", "", "", *past)
            return graph.op("MultiHeadAttention", *given, attributes=heads, domain=CONTRIB, unused=2)
        keys, values = (graph.op("Concat", *pair, attributes={"axis": 2}) for pair in zip(past, kept, strict=True))
        split = self._heads(query, config.n_heads)
        if how == JOINED:
            mixed = graph.op("Attention", split, keys, values, attributes={"is_causal": 0})
        else:
            scaled = graph.op("Mul", split, graph.constant(config.head_dim**-0.5, self.spec.computed))
            turned = graph.op("Transpose", keys, attributes={"perm": [0, 1, 3, 2]})
            shares = graph.op("Softmax", graph.op("MatMul", scaled, turned), attributes={"axis": -1})
            mixed = graph.op("MatMul", shares, values)
        return graph.op("Reshape", graph.op("Transpose", mixed, attributes={"perm": [0, 2, 1, 3]}), graph.ints(0, 0, -1))

    def _name(self, part: str) -> str:
        return f"{ROOT}.blocks.{self.layer}.{part}"
