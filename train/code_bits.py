"""What image codes have in common, learned together: a code of a lookup-free quantizer is a row of signs (MAGVIT-v2, arXiv
2310.05737), so its embedding and its column of the head may lean on a vector for each sign. Only training knows of it: `merge`
adds the vectors to the tables, and the model is the plain one again. Knows no loop and no data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmada_lite.train.model import MMaDA

PREFIX = "code_bits."
_TABLES = {"read": "model.transformer.wte.weight", "write": "model.transformer.ff_out.weight"}


class CodeBits(nn.Module):
    """Vectors [bits, d_model] of the signs of a code, for reading (embedding) and writing (head). They begin at zero."""

    signs: Tensor

    def __init__(self, vocab_size: int, codes: int, d_model: int) -> None:
        super().__init__()
        self.register_buffer("signs", sign_table(vocab_size, codes), persistent=False)
        bits = self.signs.shape[1]
        self.read, self.write = nn.Parameter(torch.zeros(bits, d_model)), nn.Parameter(torch.zeros(bits, d_model))

    def embed(self, tokens: Tensor) -> Tensor:
        """What is added to the embeddings of tokens [B, W]: [B, W, d_model], nothing for text."""
        return self.signs[tokens] @ self.read

    def logits(self, hidden: Tensor) -> Tensor:
        """What is added to the logits [..., V] of hidden states."""
        return (hidden @ self.write.T) @ self.signs.T


@contextmanager
def leaning(model: MMaDA, bits: CodeBits) -> Iterator[None]:
    """Inside, the model's embedding adds the vectors of the signs."""
    hook = model.transformer.wte.register_forward_hook(lambda _, inputs, output: output + bits.embed(inputs[0]))
    try:
        yield
    finally:
        hook.remove()


def merge(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the plain model (names as a checkpoint has them) from those of an objective, `model.` before them and
    CodeBits, where there are some, under `code_bits.`."""
    plain = {name.removeprefix("model."): tensor for name, tensor in weights.items() if not name.startswith(PREFIX)}
    for part, table in _TABLES.items():
        if PREFIX + part in weights:
            vectors = weights[PREFIX + part]
            codes = 2 ** len(vectors)
            plain[table] = plain[table] + sign_table(len(plain[table]), codes).to(vectors) @ vectors
    return plain


def sign_table(vocab_size: int, codes: int) -> Tensor:
    """[vocab_size, bits]: -1 or 1 for the bits of the codes, which are the last rows, and 0 for the text before them."""
    bits = (codes - 1).bit_length()
    numbers = torch.arange(codes)[:, None] >> torch.arange(bits)
    return torch.cat([torch.zeros(vocab_size - codes, bits), (numbers & 1) * 2.0 - 1])
