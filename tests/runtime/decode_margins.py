"""How far every step of a decoding was from writing something else: gaps between tokens, between positions, to a threshold.

A denoiser that passes everything on and asks for all logits beside, and selections that note the gap they chose by. Where a
gap cannot be had exactly the smaller number is noted. It decides nothing itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from mmada_lite import Model
from mmada_lite.decoding import block_state, image
from mmada_lite.decoding.denoiser import Denoiser, Floats, Head, Prediction, Window
from mmada_lite.decoding.image_cache import ImageCache

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
FARTHEST = 9.0  # a larger gap is as good as this one


class Margins:
    """The smallest gap since `take` was called last."""

    def __init__(self, inner: Denoiser, mask: int) -> None:
        self._inner, self._mask = inner, mask
        self._least = self._window = self._drawn = FARTHEST
        self._gaps: NDArray[np.float64] = np.zeros((0, 0))  # of the last greedy predictions, [B, Q]

    def take(self) -> float:
        """The margin of the step that was just done; what a partial step of a picture computes was decided by earlier ones."""
        least, self._least = min(self._least, self._window), FARTHEST
        return least

    def start(self) -> None:
        """Forget an earlier decoding."""
        self._least = self._window = FARTHEST

    def forward(self, window: Window, *, keep: bool) -> tuple[Floats, Any]:
        return self._inner.forward(window, keep=keep)

    def logits(self, head: Head, hidden: Floats, mix: Floats) -> Floats:
        return self._inner.logits(head, hidden, mix)

    def predict(self, head: Head, hidden: Floats, mix: Floats, temperature: float, uniform: Floats | None) -> Prediction:
        prediction = self._inner.predict(head, hidden, mix, temperature, uniform)
        logits = self._inner.logits(head, hidden, mix).astype(np.float64)
        if temperature > 0:
            assert uniform is not None
            gaps = edge_distance(logits / temperature, prediction.token, uniform)
        elif head == "text":
            gaps, near = greedy_gap(logits, self._mask)
            self._note(near)
        else:
            gaps, _ = greedy_gap(logits)
        # What is drawn has a probability that leaps with it, so that a position which is not written counts too; so does all
        # of a picture. The most probable token's is continuous: there the gaps of what is written are enough.
        self._gaps = np.full_like(gaps, FARTHEST) if temperature > 0 or head == "image" else gaps
        self._drawn = float(gaps.min()) if temperature > 0 or head == "image" else FARTHEST
        self._note(self._drawn)
        return prediction

    def written(self, chosen: Bools) -> Bools:
        self._note(float(self._gaps[chosen].min(initial=FARTHEST)))
        return chosen

    def all_guessed(self) -> None:
        """For rules that read the tokens of positions which are not written."""
        self._note(float(self._gaps.min(initial=FARTHEST)))

    def ranked(self, scores: NDArray[np.floating], counts: Ints) -> None:
        """The counts[b] highest of each row [B, N] are taken: the gap to the next one."""
        self._note(rank_gap(scores, counts))

    def near_threshold(self, confidence: NDArray[np.floating], least: float) -> None:
        finite = confidence[np.isfinite(confidence)]
        self._note(float(np.abs(finite - least).min(initial=FARTHEST)))
        if not (finite >= least).any():  # then the surest alone
            self.ranked(confidence, np.ones(len(confidence), dtype=np.int64))

    def window_chosen(self, scores: NDArray[np.floating], counts: Ints) -> None:
        """What partial steps compute is decided by all that the full step guessed, written or not."""
        self._window = min(rank_gap(scores, np.full(len(scores), counts.max())), self._drawn)

    def _note(self, gap: float) -> None:
        self._least = min(self._least, max(0.0, gap))


def greedy_gap(logits: NDArray[np.float64], mask: int | None = None) -> tuple[NDArray[np.float64], float]:
    """Between the two most probable tokens other than the mask [B, Q]; and how near the mask comes to be one of them, since a
    guess that would be the mask gets another confidence."""
    near = FARTHEST
    if mask is not None:
        others = np.delete(logits, mask, axis=-1)
        near = float(np.abs(others.max(axis=-1) - logits[..., mask]).min(initial=FARTHEST))
        logits = others
    best = np.partition(logits, -2, axis=-1)[..., -2:]
    return best[..., 1] - best[..., 0], near


def edge_distance(logits: NDArray[np.float64], token: Ints, uniform: Floats) -> NDArray[np.float64]:
    """From the uniform number [B, Q] to the nearer edge of the drawn token's interval of the cumulative distribution."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    ends = np.cumsum(weights, axis=-1)
    ends /= ends[..., -1:]
    high = np.take_along_axis(ends, token[..., None], axis=-1)[..., 0]
    low = np.where(token > 0, np.take_along_axis(ends, np.maximum(token - 1, 0)[..., None], axis=-1)[..., 0], 0.0)
    distance: NDArray[np.float64] = np.minimum(high - uniform, uniform - low)
    return distance


def rank_gap(scores: NDArray[np.floating], counts: Ints) -> float:
    """The smallest gap [B, N] between the counts[b]-th highest of a row and the next; where a row is taken whole, or not at
    all, or infinities part, there is no choice."""
    gaps = [FARTHEST]
    for row, count in zip(np.sort(np.asarray(scores, np.float64), axis=1)[:, ::-1], counts, strict=True):
        if 0 < count < len(row) and np.isfinite(row[count - 1]) and np.isfinite(row[count]):
            gaps.append(float(row[count - 1] - row[count]))
    return min(gaps)


@contextmanager
def measured(model: Model) -> Iterator[Margins]:
    """Within, every decoding of the model is measured."""
    margins = Margins(model.denoiser, model.vocabulary.special.mask)
    most_confident, above_threshold = block_state.most_confident, block_state.above_threshold
    remask, choose, wait = image.remask_least_confident, ImageCache.choose, block_state.BlockState._without_waiting

    def counted(confidence: Any, counts: Any) -> Any:
        margins.ranked(confidence, counts)
        return margins.written(most_confident(confidence, counts))

    def sure(confidence: Any, least: float) -> Any:
        margins.near_threshold(confidence, least)
        return margins.written(above_threshold(confidence, least))

    def remasked(confidence: Any, counts: Any) -> Any:
        margins.ranked(-confidence, counts)
        return remask(confidence, counts)

    def partial(cache: ImageCache, scores: Any, counts: Any) -> None:
        margins.window_chosen(scores, counts)
        choose(cache, scores, counts)

    def waiting(self: block_state.BlockState, candidates: Any) -> Any:
        margins.all_guessed()
        return wait(self, candidates)

    with (
        mock.patch.object(model, "denoiser", margins),
        mock.patch.object(block_state, "most_confident", counted),
        mock.patch.object(block_state, "above_threshold", sure),
        mock.patch.object(image, "remask_least_confident", remasked),
        mock.patch.object(ImageCache, "choose", partial),
        mock.patch.object(block_state.BlockState, "_without_waiting", waiting),
    ):
        yield margins


def code_margin(encoder: str, pixels: Floats) -> float:
    """How near the image tokenizer came to another code: the smallest latent, of which a code is the signs."""
    import onnx
    import onnxruntime

    graph = onnx.load(encoder)  # with its weights
    (signs,) = (node.input[0] for node in graph.graph.node if node.op_type == "Greater")
    graph.graph.output.append(onnx.helper.make_tensor_value_info(signs, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return float(np.abs(session.run([signs], {"pixels": pixels})[0]).min())
