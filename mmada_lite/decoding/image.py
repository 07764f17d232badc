"""The loop of pictures, written once: all codes at once, the most confident kept by the schedule. A generator of steps.

It knows a canvas, a denoiser and a sampler. It knows nothing of onnxruntime or torch, of texts, or of pixels.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmada_lite.decoding.canvas import Bools, Canvas, Ints
from mmada_lite.decoding.denoiser import Denoiser, Floats
from mmada_lite.decoding.forward import Step, draw_tokens
from mmada_lite.decoding.image_cache import ImageCache
from mmada_lite.decoding.sampling import Sampler, gumbel
from mmada_lite.decoding.schedules import masked_after, noise_temperatures
from mmada_lite.decoding.selection import remask_least_confident
from mmada_lite.decoding.settings import ImageSettings

_KNOWN = np.float32(np.log(np.finfo(np.float32).max))  # confidence of a given code in the reference's ranking
_LEAST = np.float32(np.log(np.float32(1e-20)))


def decode_image(denoiser: Denoiser, canvas: Canvas, settings: ImageSettings, sampler: Sampler) -> Iterator[Step]:
    """Draw the canvas's masked codes in `settings.steps` steps, keep the most confident by the schedule, yield every step."""
    started, model_calls = time.perf_counter(), 0
    rule, cache = _Rule.of(canvas, settings, sampler), ImageCache(denoiser, canvas, settings)
    codes = canvas.tokens[:, canvas.region].copy()
    for k in range(settings.steps):
        masked, given = canvas.masked(), canvas.tokens[:, canvas.region]
        open_codes = masked[:, canvas.region]
        confidence = np.where(open_codes, np.float32(-np.inf), rule.known)  # [B, N]
        if open_codes.any():
            forward, model_calls = cache.forward(k, masked), model_calls + 1
            drawn = draw_tokens(denoiser, "image", forward, sampler, k)
            rows, slots = np.nonzero(forward.valid)
            at = (rows, forward.positions[rows, slots] - canvas.start)
            codes[at] = drawn.token[rows, slots] + canvas.code_offset
            confidence[at] = np.maximum(drawn.log_probability[rows, slots], _LEAST)
        again = remask_least_confident(confidence + rule.noise(k), rule.left(open_codes, k))
        again &= canvas.editable[:, canvas.region]  # much noise makes even a given code of the reference's uncertain
        tokens = np.where(again, canvas.mask, codes)
        rows, slots = np.nonzero(tokens != given)
        canvas.put(rows, slots + canvas.start, tokens[rows, slots])
        if cache.partial_until is not None:
            cache.choose(*rule.promising(confidence, open_codes, again, k, cache.partial_until))
        yield Step(
            index=k,
            total_steps=settings.steps,
            rows=rows,
            positions=slots + canvas.start,
            tokens=tokens[rows, slots],
            log_probabilities=confidence[rows, slots],
            remaining=int(canvas.masked().sum()),
            model_calls=model_calls,
            seconds=time.perf_counter() - started,
            predicted_codes=codes - canvas.code_offset,
        )


@dataclass(frozen=True, slots=True)
class _Rule:
    """Which codes stay masked. plan [B, steps]: how many; temperatures [steps]: of the confidence noise; positions [B, N]:
    of the codes on the canvas; known: the confidence of a code that is not in question."""

    settings: ImageSettings
    sampler: Sampler
    plan: Ints
    temperatures: NDArray[np.float64]
    positions: Ints
    known: np.float32

    @classmethod
    def of(cls, canvas: Canvas, settings: ImageSettings, sampler: Sampler) -> "_Rule":
        length, reference = canvas.stop - canvas.start, settings.mode == "reference"
        unknown = canvas.masked()[:, canvas.region].sum(axis=1)
        plan = np.stack([masked_after(settings.schedule, length if reference else int(n), settings.steps) for n in unknown])
        positions = np.broadcast_to(np.arange(canvas.start, canvas.stop), (canvas.batch, length))
        temperatures = noise_temperatures(settings.temperature, settings.steps)
        return cls(settings, sampler, plan, temperatures, positions, _KNOWN if reference else np.float32(np.inf))

    def noise(self, k: int) -> Floats:
        """What step k adds to the confidence of every code, float32 [B, N]."""
        if not self.temperatures[k] > 0:
            return np.zeros(self.positions.shape, dtype=np.float32)
        return np.float32(self.temperatures[k]) * gumbel(self.sampler.order("image", k, self.positions))

    def left(self, open_codes: Bools, k: int) -> Ints:
        """How many codes of each row go back to mask after step k: fewer than now. The reference keeps at least one, even at
        the end; otherwise each later step keeps at least one to draw, and nothing is left after the last."""
        most: Ints = open_codes.sum(axis=1) - 1
        planned, later = self.plan[:, k], self.settings.steps - 1 - k
        if self.settings.mode == "reference":
            return np.maximum(np.minimum(most, planned), 1)
        wanted = np.maximum(planned, later) if later else np.zeros_like(planned)
        return np.maximum(np.minimum(most, wanted), 0)

    def promising(self, confidence: Floats, open_codes: Bools, again: Bools, k: int, until: int) -> tuple[Floats, Ints]:
        """After a full step k with partial ones up to `until`: a score [B, N] of every code and how many [B] to compute.

        First those that step k wrote, since what was kept of them is that of a mask; then the masked ones by their best
        chance in one of the partial steps, with the noise that they will meet there.
        """
        chance = np.max([confidence + self.noise(later) for later in range(k + 1, until)], axis=0)
        score = np.where(again, chance, np.where(open_codes, np.float32(np.inf), np.float32(-np.inf)))
        written, masked = (open_codes & ~again).sum(axis=1), again.sum(axis=1)
        ratio = self.settings.acceleration.candidate_ratio
        if ratio is None:
            return score, written + masked
        wanted = np.ceil(ratio * (masked - self.left(again, until - 1))).astype(np.int64)
        return score, written + np.minimum(masked, wanted)
