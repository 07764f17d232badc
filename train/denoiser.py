"""The torch model as a denoiser, so that training, evaluation and parity use the project's one pair of decoding loops.

Arrays come and go as numpy; on a GPU every step copies its hidden states, which training's own rollouts can afford.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmada_lite.decoding.denoiser import Floats, Head, Prediction, Window
from mmada_lite.decoding.kv_cache import KeyValues
from mmada_lite.train.model import MMaDA


class TorchDenoiser:
    """`codes` is the slice of the vocabulary that the image head reads: image_code_offset and the codebook after it."""

    def __init__(self, model: MMaDA, codes: slice) -> None:
        self.model, self.codes = model, codes
        self._device = next(model.parameters()).device

    @torch.inference_mode()
    def forward(self, window: Window, *, keep: bool) -> tuple[Floats, KeyValues | None]:
        positions = np.broadcast_to(window.positions, window.tokens.shape)
        past = None
        if window.past is not None:
            pairs = zip(window.past.keys, window.past.values, strict=True)
            past = [(self._tensor(key), self._tensor(value)) for key, value in pairs]
        output = self.model(self._tensor(window.tokens), self._tensor(positions), past, self._tensor(window.queries))
        if not keep:
            return _array(output.hidden), None
        keys, values = zip(*output.present, strict=True)
        return _array(output.hidden), KeyValues(_arrays(keys), _arrays(values))

    @torch.inference_mode()
    def predict(self, head: Head, hidden: Floats, mix: Floats, temperature: float, uniform: Floats | None) -> Prediction:
        logits = self._logits(head, hidden, mix)  # [N, Q, V]
        if temperature > 0:
            assert uniform is not None, "a draw needs its uniform numbers"
            total = torch.softmax(logits / temperature, dim=-1).cumsum(dim=-1)
            token = (total <= self._tensor(uniform)[..., None] * total[..., -1:]).sum(dim=-1)
            token = token.clamp(max=logits.shape[-1] - 1)
        else:
            token = logits.argmax(dim=-1)
        chosen = torch.log_softmax(logits, dim=-1).gather(-1, token[..., None])[..., 0]
        return Prediction(token.cpu().numpy(), _array(chosen))

    @torch.inference_mode()
    def logits(self, head: Head, hidden: Floats, mix: Floats) -> Floats:
        return _array(self._logits(head, hidden, mix))

    def _logits(self, head: Head, hidden: Floats, mix: Floats) -> Tensor:
        states = self._tensor(hidden)
        mixed = torch.einsum("nr,rqd->nqd", self._tensor(mix).to(states.dtype), states)
        return self.model.logits(mixed, self.codes if head == "image" else None).float()

    def _tensor(self, array: NDArray) -> Tensor:
        dtype = next(self.model.parameters()).dtype
        tensor = torch.from_numpy(np.require(array, requirements=["C", "W"])).to(self._device, copy=True)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _array(tensor: Tensor) -> Floats:
    return tensor.float().cpu().numpy()


def _arrays(tensors: Sequence[Tensor]) -> tuple[Floats, ...]:
    return tuple(_array(tensor) for tensor in tensors)
