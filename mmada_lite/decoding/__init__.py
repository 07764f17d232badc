"""Masked-diffusion decoding: the two loops, of text and of pictures, and what they are made of. No onnxruntime, no files."""
