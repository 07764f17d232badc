"""How good answers and drawings are, and what a way of decoding or a format costs in quality."""
