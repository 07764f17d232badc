"""From a checkpoint on disk to a bundle of ONNX graphs. The runtime never imports this."""
