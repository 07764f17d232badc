"""The embedder and the backbone as ONNX graphs: a window of tokens and any past in, hidden states and the window's
keys and values out.

Attention is bidirectional and takes no mask, so the order of keys is free and `past` may be empty. It knows the
tensors' names and the arithmetic of the transformer; how a matrix is stored is `lowering`, what is predicted from
hidden states is `heads`.
"""

from collections.abc import Callable

import numpy as np

from mmada_lite.export import lowering
from mmada_lite.export.checkpoint import Tensors, TransformerConfig
from mmada_lite.export.graph import Graph
from mmada_lite.export.lowering import WeightSpec
from mmada_lite.export.weights import Weight

ROOT = "model.transformer"


def build_embedder(graph: Graph, source: Tensors, spec: WeightSpec, d_model: int) -> None:
    tokens = graph.input("tokens", "int64", ("B", "W"))
    lowering.lookup(graph, tokens, Weight(source, f"{ROOT}.wte.weight"), spec, to="embeddings")
    graph.output("embeddings", "float32", ("B", "W", d_model))


def build_backbone(graph: Graph, source: Tensors, spec: WeightSpec, config: TransformerConfig) -> None:
    heads, size = config.n_kv_heads, config.head_dim
    x = graph.input("embeddings", "float32", ("B", "W", config.d_model))
    graph.rows = x
    positions = graph.input("positions", "int64", ("B", "W"))
    for layer in range(config.n_layers):
        for kind in ("key", "value"):
            graph.input(f"past_{kind}_{layer}", spec.kept, ("B", heads, "P", size))
    query_index = graph.op("Unsqueeze", graph.input("rows", "int64", ("B", "Q")), graph.ints(-1))  # [B, Q, 1]
    cosines, sines = (lowering.narrow(graph, part, spec) for part in angles_of(graph, positions, config))
    for layer in range(config.n_layers):
        last = layer == config.n_layers - 1
        x = _Block(graph, source, spec, config, layer).build(x, (cosines, sines), query_index if last else None)
    _norm(graph, source, f"{ROOT}.ln_f.weight", x, config, to="hidden")
    graph.output("hidden", "float32", ("B", "Q", config.d_model))
    for kind in ("key", "value"):
        for layer in range(config.n_layers):
            graph.output(f"{kind}_{layer}", spec.kept, ("B", heads, "W", size))


class _Block:
    """One layer under construction."""

    def __init__(self, graph: Graph, source: Tensors, spec: WeightSpec, config: TransformerConfig, layer: int) -> None:
        self.graph, self.source, self.spec, self.config, self.layer = graph, source, spec, config, layer

    def build(self, x: str, angles: tuple[str, str], query_index: str | None) -> str:
        """x [B, W, D] -> [B, W, D]. With `query_index` [B, Q, 1], in the last layer, only those positions leave it, [B, Q, D]:
        keys and values still cover the window, while queries and the feed-forward part are computed for them alone."""
        graph, config = self.graph, self.config
        normed = self._normed("attn_norm", x)
        key = self._kept("key", lambda to: self._turned("k_proj", normed, config.n_kv_heads, angles, query=False, to=to))
        value = self._kept(
            "value",
            lambda to: lowering.in_heads(graph, self._linear("v_proj", normed), config.n_kv_heads, config.head_dim, to=to),
        )
        if query_index is not None:
            x, normed, *queried = (_take(graph, each, query_index) for each in (x, normed, *angles))
            angles, graph.rows = (queried[0], queried[1]), x
        query = self._turned("q_proj", normed, config.n_heads, angles, query=True)
        x = self._added(x, self._linear("attn_out", self._attend(query, key, value)))
        normed = self._normed("ff_norm", x)
        gate = self._linear("ff_proj", normed)
        silu = graph.op("Mul", gate, graph.op("Sigmoid", gate))
        up = Weight(self.source, self._name("up_proj"))
        return self._added(x, self._linear("ff_out", lowering.gated(graph, silu, normed, up, self.spec)))

    def _normed(self, name: str, x: str) -> str:
        """The sum x is float32 throughout; what is multiplied is in the computed type."""
        return lowering.narrow(self.graph, _norm(self.graph, self.source, self._name(name), x, self.config), self.spec)

    def _added(self, x: str, change: str) -> str:
        return self.graph.op("Add", x, lowering.widen(self.graph, change, self.spec))

    def _attend(self, query: str, key: str, value: str) -> str:
        """query [B, H, Q, Hd], key and value [B, Hkv, W, Hd] of the window, which follow the past -> [B, Q, D]. Grouped heads
        repeat consecutively."""
        past = f"past_key_{self.layer}", f"past_value_{self.layer}"
        mixed = lowering.attention(self.graph, query, key, value, past, self.spec)
        return self.graph.op(
            "Reshape", self.graph.op("Transpose", mixed, attributes={"perm": [0, 2, 1, 3]}), self.graph.ints(0, 0, -1)
        )

    def _kept(self, kind: str, make: Callable[[str], str]) -> str:
        return lowering.kept(self.graph, make, self.spec, to=f"{kind}_{self.layer}")

    def _turned(self, name: str, x: str, count: int, angles: tuple[str, str], *, query: bool, to: str = "") -> str:
        """A projection split into heads and turned: [B, W, D] -> [B, count, W, Hd]."""
        weight = Weight(self.source, self._name(name))
        return lowering.turned(self.graph, x, weight, self.spec, count, angles, query=query, to=to)

    def _linear(self, name: str, x: str) -> str:
        return lowering.linear(self.graph, x, Weight(self.source, self._name(name)), self.spec)

    def _name(self, part: str) -> str:
        return f"{ROOT}.blocks.{self.layer}.{part}.weight"


def angles_of(graph: Graph, positions: str, config: TransformerConfig) -> tuple[str, str]:
    """Cosines and sines of the rotary embedding (arXiv 2104.09864), each [B, W, Hd / 2], half-split, from positions
    [B, W]."""
    exponent = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequencies = np.float32(1.0) / np.power(np.float32(config.rope_theta), exponent)  # rounded as the reference rounds
    place = graph.op("Unsqueeze", graph.op("Cast", positions, attributes={"to": 1}), graph.ints(-1))
    angle = graph.op("Mul", place, graph.constant(frequencies, "float32"))
    return graph.op("Cos", angle), graph.op("Sin", angle)


def _norm(graph: Graph, source: Tensors, name: str, x: str, config: TransformerConfig, to: str = "") -> str:
    scale = lowering.vector(graph, Weight(source, name))
    return graph.op("RMSNormalization", x, scale, attributes={"axis": -1, "epsilon": config.rms_norm_eps}, to=to)


def _take(graph: Graph, x: str, index: str) -> str:
    """x [B, W, any] at index [B, Q, 1] -> [B, Q, any]."""
    return graph.op("GatherND", x, index, attributes={"batch_dims": 1})
