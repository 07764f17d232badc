"""Graphs for CUDA, node by node, against what onnxruntime documents of its provider, and against the other targets' numbers."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import mmada_lite
from mmada_lite.bundle import Bundle
from mmada_lite.decoding.settings import TextSettings
from mmada_lite.errors import Error
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.ort.attention_forms import FORMS, JOINED
from mmada_lite.ort.devices import choose_device
from mmada_lite.ort.session import open_session
from mmada_lite.quant.sources import open_source

EMOJI = Path(__file__).parents[2] / "train" / "shipped" / "emoji"
HALF, FLOAT, INT64, BOOL = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
_NUMBERS = {HALF, FLOAT}
# (domain, operator) -> the types of its first input that a kernel of CUDAExecutionProvider takes, of those that graphs of ours
# have, as onnxruntime's docs/OperatorKernels.md lists them at opset 23.
KERNELS: Mapping[tuple[str, str], set[int]] = {
    **{
        ("", name): {*_NUMBERS, INT64}
        for name in ("Add", "Sub", "Mul", "Div", "Min", "Max", "ReduceMax", "ReduceSum", "CumSum")
    },
    **{("", name): _NUMBERS for name in ("Sin", "Cos", "Log", "Softmax", "MatMul", "ArgMax", "RMSNormalization")},
    **{("", name): _NUMBERS for name in ("RotaryEmbedding", "Attention")},
    **{("", name): {*_NUMBERS, INT64} for name in ("Slice", "Split", "Concat", "Transpose", "Reshape", "Squeeze", "Unsqueeze")},
    **{("", name): {*_NUMBERS, INT64} for name in ("GatherElements", "Identity")},
    ("", "Greater"): {*_NUMBERS, INT64},
    ("", "Cast"): {*_NUMBERS, INT64, BOOL},
    ("", "Where"): {BOOL},
    **{("com.microsoft", name): _NUMBERS for name in ("MatMulNBits", "SkipSimplifiedLayerNormalization", "QuickGelu")},
    ("com.microsoft", "MultiHeadAttention"): _NUMBERS,
}
GIVES = {"Greater": BOOL, "ArgMax": INT64}  # operators whose result is of another type than their first input


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """The packaged model, which is large enough for every format, for CUDA."""
    folder = tmp_path_factory.mktemp("cuda")
    bundles = {}
    for precision in ("fp16", "int8", "int4"):
        written = export_checkpoint(EMOJI, folder / precision, precision=precision, target="cuda")  # type: ignore[arg-type]
        bundles[precision] = Bundle.open(written)
    for form in FORMS:
        bundles[form] = Bundle.open(export_checkpoint(EMOJI, folder / form, target="cuda", attention=form))
    bundles["fp32"] = Bundle.open(export_checkpoint(EMOJI, folder / "fp32", precision="fp32"))
    return bundles


ON_A_CARD = ["fp16", "int8", "int4", *FORMS[1:]]
GRAPHS = ["backbone", "text_head", "image_head"]


def model_of(bundle: Bundle, graph: str) -> onnx.ModelProto:
    return onnx.load(str(bundle.graph_path(graph)), load_external_data=False)


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """The type of every value: what a node gives is of its first input's, but where the operator says otherwise."""
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        given = types[node.input[1 if node.op_type == "Where" else 0]]
        to = {attribute.name: attribute.i for attribute in node.attribute}.get("to")
        types |= dict.fromkeys(node.output, GIVES.get(node.op_type, to if node.op_type == "Cast" and to else given))
    return types


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", ON_A_CARD)
def test_every_node_has_a_kernel_on_the_card_and_none_waits_for_the_host(
    exported: dict[str, Bundle], name: str, graph: str
) -> None:
    """So that a step can be captured: the table lacks If, Loop, GatherND, and all that computes shapes."""
    model = model_of(exported[name], graph)
    types = types_of(model)
    for node in model.graph.node:
        assert (node.domain, node.op_type) in KERNELS, node.op_type
        assert types[node.input[0]] in KERNELS[node.domain, node.op_type], (node.op_type, node.name)


@pytest.mark.parametrize("name", ON_A_CARD)
def test_numbers_change_their_type_where_a_graph_begins_and_ends_alone(exported: dict[str, Bundle], name: str) -> None:
    """No Cast between two layers, and none that undoes another."""
    for graph, most in (("backbone", 5), ("text_head", 4), ("image_head", 4)):
        model = model_of(exported[name], graph)
        casts = [node for node in model.graph.node if node.op_type == "Cast"]
        made = {output: node for node in model.graph.node for output in node.output}
        assert len(casts) == most, graph  # embeddings, places, cosines, sines, states; states, logits, two of drawing
        for cast in casts:
            assert cast.input[0] not in made or made[cast.input[0]].op_type != "Cast"
    layers, counted = (
        exported[name].architecture.n_layers,
        Counter(node.op_type for node in model_of(exported[name], "backbone").graph.node),
    )
    assert sum(counted.values()) <= 17 + (28 if name == "plain" else 24) * layers, counted
    assert counted["SkipSimplifiedLayerNormalization"] == 2 * layers
    products = counted["MatMulNBits"] or counted["MatMul"] - (2 * layers if name == "plain" else 0)
    assert products == 4 * layers + 1  # queries alone in the last layer, which computes fewer of them


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_what_is_quantized_is_what_the_fused_kernels_take(exported: dict[str, Bundle], name: str, graph: str) -> None:
    """docs/contrib_ops/cuda/matmul_nbits.md of onnxruntime, 6: half precision, blocks of 32, no zero points, whole tiles."""
    model = model_of(exported[name], graph)
    tensors, types = {tensor.name: tensor for tensor in model.graph.initializer}, types_of(model)
    found = 0
    for node in (node for node in model.graph.node if node.op_type == "MatMulNBits"):
        about = {attribute.name: attribute.i for attribute in node.attribute}
        assert len(node.input) == 3, "no zero points, no bias"
        assert (about["block_size"], types[node.input[0]], tensors[node.input[2]].data_type) == (32, HALF, HALF)
        assert about["N"] % (64 if about["bits"] == 4 else 32) == 0
        assert about["K"] % 32 == 0
        blocks = about["K"] // 32
        assert list(tensors[node.input[1]].dims) == [about["N"], blocks, 4 * about["bits"]]
        assert list(tensors[node.input[2]].dims) == [about["N"], blocks]
        found += 1
    assert found or (name, graph) == ("int8", "image_head")  # which is stored in half precision


def test_half_precision_changes_no_answer_and_few_codes(exported: dict[str, Bundle]) -> None:
    """The sum of the layers is in half precision for CUDA: greedy answers are those of fp32 all the same, and so are nearly all
    of a picture's 64 codes, which are drawn from what the model thinks probable."""
    questions = [f"what is {a} + {b}?" for a, b in ((3, 4), (8, 9), (47, 85), (12, 30))]
    answers = {}
    for name in ("fp32", "fp16"):
        model = mmada_lite.load(exported[name].path, device="cpu", threads=1)
        texts = [model.chat(question).result().ids.tolist() for question in questions]
        drawn = model.paint("a red apple", model.image_defaults.replace(steps=6), seed=1).result().codes.tolist()
        answers[name] = (texts, np.array(drawn))
    assert answers["fp16"][0] == answers["fp32"][0]
    assert np.count_nonzero(answers["fp16"][1] != answers["fp32"][1]) <= 4


def feeds_of(bundle: Bundle, window: int, past: int) -> dict[str, np.ndarray]:
    a, random = bundle.architecture, np.random.default_rng(past)
    feeds: dict[str, Any] = {
        "embeddings": random.standard_normal((2, window, a.d_model)).astype(np.float32),
        "positions": np.broadcast_to(np.arange(past, past + window), (2, window)).copy(),
        "rows": np.array([[window - 1, 0, 2], [1, 1, 0]]),
    }
    for layer in range(a.n_layers):
        for kind in ("key", "value"):
            feeds[f"past_{kind}_{layer}"] = random.standard_normal((2, a.n_kv_heads, past, a.head_dim)).astype(np.float16)
    return feeds


@pytest.mark.parametrize("past", [0, 9])
def test_all_ways_to_attend_give_the_same(exported: dict[str, Bundle], past: int) -> None:
    outputs = ["hidden", "key_1", "value_1"]
    results = {}
    for form in FORMS:
        session = open_session(exported[form].graph_path("backbone"), choose_device("cpu"), 1)
        results[form] = session.run(outputs, feeds_of(exported[form], 5, past))
    for form in FORMS[1:]:
        for made, wanted in zip(results[form], results[JOINED], strict=True):
            np.testing.assert_allclose(made.astype(np.float32), wanted.astype(np.float32), atol=0.03)


def test_drawing_needs_no_if(exported: dict[str, Bundle]) -> None:
    """Both ways are computed: at every temperature the token is the one that the head with an If gives."""
    width = exported["fp32"].architecture.d_model
    random = np.random.default_rng(0)
    hidden = random.standard_normal((2, 7, width)).astype(np.float32)
    feeds: dict[str, Any] = {"hidden": hidden, "mix": np.array([[2.5, -1.5]], np.float32)}
    feeds["uniform"] = random.random((1, 7)).astype(np.float32)
    for graph in ("text_head", "image_head"):
        sessions = [open_session(exported[name].graph_path(graph), choose_device("cpu"), 1) for name in ("fp16", "fp32")]
        drawn = []
        for temperature in (0.0, 0.0001, 1.0, 50.0):
            feeds["temperature"] = np.array(temperature, np.float32)
            halves, whole = (session.run(["token", "log_probability", "entropy"], feeds) for session in sessions)
            np.testing.assert_array_equal(halves[0], whole[0])
            np.testing.assert_allclose(halves[1], whole[1], atol=0.02)
            drawn.append(halves[0])
        np.testing.assert_array_equal(drawn[0], drawn[1])
        assert (drawn[0] != drawn[3]).any()


def test_grouped_heads_attend_by_two_ways_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The tiny model has fewer heads of keys than of queries."""
    for form in ("joined", "attention"):
        export_checkpoint(tiny_checkpoint, tmp_path / form, target="cuda", attention=form)
    for form in ("mha", "plain"):
        with pytest.raises(
            Error, match=f"--attention {form} needs as many heads of keys as of queries.*use --attention joined"
        ):
            export_checkpoint(tiny_checkpoint, tmp_path / form, target="cuda", attention=form)
        assert not (tmp_path / form).exists()
    with pytest.raises(Error, match="no way to attend is called 'flash'; use one of joined, attention, mha, plain"):
        export_checkpoint(tiny_checkpoint, tmp_path / "x", target="cuda", attention="flash")


def test_a_bundle_for_cuda_can_be_quantized_like_its_checkpoint(exported: dict[str, Bundle]) -> None:
    """Its matrices are stacked; each is found again, in half precision."""
    ours, theirs = open_source(exported["fp16"].path).tensors, open_source(EMOJI).tensors
    names = [f"model.transformer.blocks.{layer}.{part}.weight" for layer in (0, 1) for part in ("q_proj", "v_proj", "up_proj")]
    for name in (*names, "model.transformer.blocks.0.ff_norm.weight", "model.transformer.ff_out.weight"):
        assert ours.shape(name) == theirs.shape(name)
        np.testing.assert_array_equal(ours.read(name), theirs.read(name).astype(np.float16))
        np.testing.assert_array_equal(ours.read(name, slice(3, 9)), ours.read(name)[3:9])


def test_the_way_of_settings_is_not_lost(exported: dict[str, Bundle]) -> None:
    """Sampling at a temperature goes by the same numbers in both forms of the head."""
    settings = TextSettings(answer_length=12, steps=12, block_length=12, temperature=0.7)
    texts = []
    for name in ("fp32", "fp16"):
        model = mmada_lite.load(exported[name].path, device="cpu", threads=1)
        texts.append(model.chat("what is 3 + 4?", settings, seed=3).result().ids.tolist())
    assert texts[0] == texts[1]
