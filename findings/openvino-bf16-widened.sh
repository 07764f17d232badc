#!/usr/bin/env bash
# OpenVINO 2026.4.1, CPU with bf16 (AVX512-BF16 or AMX): weights stored in 16 bits and widened by a Cast before MatMul, as ONNX
# models of 16 bits have them, become float32 in a compiled model, though products are asked for in bf16. The file that CACHE_DIR
# keeps shows it: four bytes a weight. A MatMul of which both sides are bf16 keeps two bytes a weight. Fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check openvino==2026.4.1 onnx==1.23.2 numpy
said=$("$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
import onnx
import openvino
from onnx import helper

SIZE = 1024
FLOAT, HALF, BRAIN = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16
if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
    sys.exit("this processor has no bf16, so that the finding cannot be seen on it")
numbers = np.random.default_rng(0).standard_normal((SIZE, SIZE), dtype=np.float32)


def model(kind, narrow):
    weights = helper.make_tensor("w", kind, [SIZE, SIZE], numbers)
    if narrow:
        nodes = [
            helper.make_node("Cast", ["x"], ["small"], to=kind),
            helper.make_node("MatMul", ["small", "w"], ["product"]),
            helper.make_node("Cast", ["product"], ["y"], to=FLOAT),
        ]
    else:
        nodes = [helper.make_node("Cast", ["w"], ["wide"], to=FLOAT), helper.make_node("MatMul", ["x", "wide"], ["y"])]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value("x", FLOAT, ["N", SIZE])], [value("y", FLOAT, ["N", SIZE])], [weights])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11).SerializeToString()


for name, kind, narrow in (("bf16 widened", BRAIN, False), ("fp16 widened", HALF, False), ("bf16 products", BRAIN, True)):
    kept = Path(sys.argv[1]) / name.replace(" ", "-")
    core = openvino.Core()
    options = {"CACHE_DIR": str(kept), "INFERENCE_PRECISION_HINT": "bf16"}
    core.compile_model(core.read_model(model(kind, narrow)), "CPU", options)
    size = sum(file.stat().st_size for file in kept.iterdir())
    print(f"{name}: {round(size / SIZE**2)} bytes a weight")
PYTHON
)
echo "$said"
[ "$said" = "bf16 widened: 4 bytes a weight
fp16 widened: 4 bytes a weight
bf16 products: 2 bytes a weight" ]
