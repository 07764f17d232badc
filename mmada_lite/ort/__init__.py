"""The graphs of a bundle on onnxruntime: devices, sessions, denoisers, engines."""
