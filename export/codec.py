"""The image tokenizer (MAGVIT-v2, lookup-free quantization, arXiv 2310.05737) as two ONNX graphs: pixels to codes and
codes to pixels.

Height, width and batch are free. It knows the convolutional network and how a code's bits are laid out; it knows
nothing of the tokens that stand for codes in the transformer.
"""

import numpy as np

from mmada_lite.export import lowering
from mmada_lite.export.checkpoint import Tensors, Tower, VQConfig
from mmada_lite.export.graph import Graph
from mmada_lite.export.lowering import WeightSpec
from mmada_lite.export.weights import Weight


def build_image_encoder(graph: Graph, source: Tensors, spec: WeightSpec, config: VQConfig) -> None:
    """pixels [B, 3, H, W] in -1..1 -> codes int64 [B, h, w]; channel 0 of the encoding is the most significant bit. And
    magnitude [B], the mean size of the encoding, since codes alone would hide numbers that are not finite."""
    layers = _Layers(graph, source, spec, config, "encoder")
    x = layers.conv("conv_in", graph.input("pixels", "float32", ("B", 3, "H", "W")))
    tower: Tower = config.encoder
    for level, blocks in enumerate(tower.num_res_blocks):
        for block in range(blocks):
            x = layers.residual(f"down.{level}.block.{block}", x)
        if level + 1 < len(tower.ch_mult):
            x = layers.downsample(f"down.{level}.downsample.conv", x)
    x = layers.conv("conv_out", layers.activated("norm_out", layers.middle(x)))
    z = layers.conv("quant_conv", x)  # [B, z, h, w]
    bits = graph.op("Cast", graph.op("Greater", z, graph.constant(0.0, "float32")), attributes={"to": 1})
    powers = graph.constant(2.0 ** np.arange(config.z_channels - 1, -1, -1).reshape(1, -1, 1, 1), "float32")
    total = graph.op("ReduceSum", graph.op("Mul", bits, powers), graph.ints(1), attributes={"keepdims": 0})
    graph.op("Cast", total, attributes={"to": 7}, to="codes")
    graph.output("codes", "int64", ("B", "h", "w"))
    graph.op("ReduceMean", graph.op("Abs", z), graph.ints(1, 2, 3), attributes={"keepdims": 0}, to="magnitude")
    graph.output("magnitude", "float32", ("B",))


def build_image_decoder(graph: Graph, source: Tensors, spec: WeightSpec, config: VQConfig) -> None:
    """codes int64 [B, h, w] -> pixels [B, 3, H, W], nominally -1..1 and not clamped."""
    layers = _Layers(graph, source, spec, config, "decoder")
    codes = graph.op("Unsqueeze", graph.input("codes", "int64", ("B", "h", "w")), graph.ints(1))
    x = layers.conv("conv_in", layers.conv("post_quant_conv", _signs(graph, codes, config.z_channels)))
    x = layers.middle(x)
    tower: Tower = config.decoder
    for level in reversed(range(len(tower.ch_mult))):
        for block in range(tower.num_res_blocks[level]):
            x = layers.residual(f"up.{level}.block.{block}", x)
        if level:
            x = layers.upsample(f"up.{level}.upsample.conv", x)
    layers.conv("conv_out", layers.activated("norm_out", x), to="pixels")
    graph.output("pixels", "float32", ("B", 3, "H", "W"))


def _signs(graph: Graph, codes: str, bits: int) -> str:
    """Codes [B, 1, h, w] -> +1 or -1 per bit [B, bits, h, w], the most significant first.

    Bit k is floor(c / 2^k) - 2 floor(c / 2^(k+1)), exact in float32 and known to every device, which integer bit
    operations are not.
    """
    order = np.arange(bits - 1, -1, -1).reshape(1, -1, 1, 1)
    number = graph.op("Cast", codes, attributes={"to": 1})
    low = graph.op("Floor", graph.op("Mul", number, graph.constant(2.0**-order, "float32")))
    high = graph.op("Floor", graph.op("Mul", number, graph.constant(2.0 ** -(order + 1), "float32")))
    bit = graph.op("Sub", low, graph.op("Mul", high, graph.constant(2.0, "float32")))
    return graph.op("Sub", graph.op("Mul", bit, graph.constant(2.0, "float32")), graph.constant(1.0, "float32"))


class _Layers:
    """The parts that both towers are built from; names are relative to the tower."""

    def __init__(self, graph: Graph, source: Tensors, spec: WeightSpec, config: VQConfig, tower: str) -> None:
        self.graph, self.source, self.spec, self.config, self.tower = graph, source, spec, config, tower

    def conv(self, name: str, x: str, *, stride: int = 1, padded: bool = True, to: str = "") -> str:
        """A convolution as its weight says, 3x3 or 1x1; `padded` keeps height and width."""
        weight = self._weight(f"{name}.weight")
        side = weight.shape[-1]
        edge = side // 2 if padded else 0
        attributes = {"kernel_shape": [side, side], "strides": [stride, stride], "pads": [edge] * 4}
        kernel, bias = lowering.plain(self.graph, weight, self.spec), lowering.vector(self.graph, self._weight(f"{name}.bias"))
        return self.graph.op("Conv", x, kernel, bias, attributes=attributes, to=to)

    def residual(self, name: str, x: str) -> str:
        shortcut = f"{name}.nin_shortcut"
        inner = self.conv(f"{name}.conv1", self.activated(f"{name}.norm1", x))
        inner = self.conv(f"{name}.conv2", self.activated(f"{name}.norm2", inner))
        out, into = self._weight(f"{name}.conv1.weight").shape[:2]
        return self.graph.op("Add", self.conv(shortcut, x) if out != into else x, inner)

    def activated(self, name: str, x: str) -> str:
        """Group norm, then x * sigmoid(x)."""
        normed = self._group_norm(name, x)
        return self.graph.op("Mul", normed, self.graph.op("Sigmoid", normed))

    def middle(self, x: str) -> str:
        return self.residual("mid.block_2", self._attention("mid.attn_1", self.residual("mid.block_1", x)))

    def downsample(self, name: str, x: str) -> str:
        """Halved: a zero row below and a zero column at the right, then stride 2."""
        padded = self.graph.op("Pad", x, self.graph.ints(0, 0, 0, 0, 0, 0, 1, 1))
        return self.conv(name, padded, stride=2, padded=False)

    def upsample(self, name: str, x: str) -> str:
        scales = self.graph.constant([1.0, 1.0, 2.0, 2.0], "float32")
        attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self.conv(name, self.graph.op("Resize", x, "", scales, attributes=attributes))

    def _attention(self, name: str, x: str) -> str:
        """One head over all places: x [B, c, h, w] -> x + proj(softmax(q k / sqrt(c)) v)."""
        graph = self.graph
        normed = self._group_norm(f"{name}.norm", x)
        query, key, value = (
            graph.op("Reshape", self.conv(f"{name}.{part}", normed), graph.ints(0, 0, -1)) for part in "qkv"
        )  # [B, c, hw]
        scale = graph.constant(self._weight(f"{name}.q.weight").shape[0] ** -0.5, "float32")
        scores = graph.op("Mul", graph.op("MatMul", graph.op("Transpose", query, attributes={"perm": [0, 2, 1]}), key), scale)
        shares = graph.op("Softmax", scores, attributes={"axis": -1})  # [B, hw, hw], over keys
        mixed = graph.op("MatMul", value, graph.op("Transpose", shares, attributes={"perm": [0, 2, 1]}))  # [B, c, hw]
        return graph.op("Add", x, self.conv(f"{name}.proj_out", graph.op("Reshape", mixed, graph.op("Shape", x))))

    def _group_norm(self, name: str, x: str) -> str:
        """Written as an instance norm over groups: onnxruntime has that kernel, and takes GroupNormalization apart
        into many passes."""
        graph, groups = self.graph, self.config.group_norm_groups
        grouped = graph.op("Reshape", x, graph.ints(0, groups, -1))
        ones, zeros = graph.constant(np.ones(groups), "float32"), graph.constant(np.zeros(groups), "float32")
        normed = graph.op("InstanceNormalization", grouped, ones, zeros, attributes={"epsilon": self.config.group_norm_eps})
        scale, bias = (
            graph.op("Reshape", lowering.vector(graph, self._weight(f"{name}.{part}")), graph.ints(1, -1, 1, 1))
            for part in ("weight", "bias")
        )
        return graph.op("Add", graph.op("Mul", graph.op("Reshape", normed, graph.op("Shape", x)), scale), bias)

    def _weight(self, name: str) -> Weight:
        return Weight(self.source, f"{self.tower}.{name}")
