#!/usr/bin/env bash
# MatMulNBits with weight_prepacked=1 says that its weights lie as CUDA's fused kernels read them. onnxruntime's CPU provider takes
# no notice: it reads the same bytes as if they lay plainly, computes with other weights, and says nothing.
# Seen: 1.32.0 gives the same product with the attribute and without it. Fails when that changes, as when it is refused.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2
ORT_DISABLE_TELEMETRY=1 env/bin/python - <<'PY'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

random = np.random.default_rng(0)
weights, scales = random.integers(0, 256, (64, 2, 16), np.uint8), np.ones((64, 2), np.float32)
x = random.standard_normal((2, 64)).astype(np.float32)


def product(**packed):
    about = {"K": 64, "N": 64, "bits": 4, "block_size": 32, **packed}
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", **about)
    given, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 64]) for name in "xy")
    constants = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(scales, "s")]
    graph = helper.make_graph([node], "g", [given], [made], constants)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11).SerializeToString()
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


plain, packed = product(), product(weight_prepacked=1)
print("the same product:", bool((plain == packed).all()))
raise SystemExit(not (plain == packed).all())
PY
