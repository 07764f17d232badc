#!/usr/bin/env bash
# onnxruntime 1.32.0, CPU: com.microsoft.MatMulIntegerToFloat is documented to take a_scale as a scalar or as one number a column
# of A. What it takes beside a scalar is one number a ROW of A, of shape [M, 1] or [1, M, 1], with exact results; one dimension of
# K numbers, as documented, and one of M numbers are refused when it runs. Fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2 numpy
said=$("$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx import helper

M, K, N = 3, 4, 5
random, kinds, value = np.random.default_rng(0), onnx.TensorProto, helper.make_tensor_value_info
a = random.integers(0, 256, (M, K), dtype=np.uint8)
b = random.integers(-127, 128, (K, N), dtype=np.int8)
columns = np.float32(2) ** np.arange(N, dtype=np.float32)
onnxruntime.set_default_logger_severity(4)
for name, shape in (("[K]", [K]), ("[M]", [M]), ("[M, 1]", [M, 1]), ("[1, M, 1]", [1, M, 1])):
    scale = np.float32(2) ** -np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    node = helper.make_node(
        "MatMulIntegerToFloat", ["a", "b", "a_scale", "b_scale", "a_zero"], ["y"], domain="com.microsoft"
    )
    fixed = [
        helper.make_tensor("b", kinds.INT8, [K, N], b.tobytes(), raw=True),
        helper.make_tensor("b_scale", kinds.FLOAT, [N], columns),
        helper.make_tensor("a_zero", kinds.UINT8, [], [128]),
    ]
    inputs = [value("a", kinds.UINT8, [M, K]), value("a_scale", kinds.FLOAT, shape)]
    graph = helper.make_graph([node], "g", inputs, [value("y", kinds.FLOAT, None)], fixed)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    try:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        (y,) = session.run(None, {"a": a, "a_scale": scale})
        sums = (a.astype(np.int64) - 128) @ b
        print(name, "a row each" if np.array_equal(y.reshape(M, N), sums * scale.reshape(-1, 1) * columns) else "other numbers")
    except Exception:
        print(name, "refused")
PYTHON
)
echo "$said"
[ "$said" = "[K] refused
[M] refused
[M, 1] a row each
[1, M, 1] a row each" ]
