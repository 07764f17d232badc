#!/usr/bin/env bash
# OpenVINO 2026.4.1: ONNX's QuantizeLinear in blocks (opset 21), with a free number of rows, cannot be read ("Cannot get length
# of dynamic dimension"), though onnxruntime reads it and the blocked axis is of a fixed length. With fixed rows it is read.
# Our own reading of the operator stands in mmada_lite/ort/openvino.py. Fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check openvino==2026.4.1 onnx==1.23.2 numpy
said=$("$folder/venv/bin/python" - <<'PYTHON'
import onnx
import openvino
from onnx import helper

floats, bytes_, value = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8, helper.make_tensor_value_info
for rows in ("W", 3):
    inputs = [value("x", floats, [rows, 8]), value("scale", floats, [rows, 1]), value("zero", bytes_, [rows, 1])]
    nodes = [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"], axis=1, block_size=8)]
    graph = helper.make_graph(nodes, "g", inputs, [value("y", bytes_, [rows, 8])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11).SerializeToString()
    try:
        openvino.Core().read_model(model)
        print("read")
    except Exception as error:
        print("refused" if "Cannot get length of dynamic dimension" in str(error) else error)
PYTHON
)
echo "$said"
[ "$said" = "refused
read" ]
