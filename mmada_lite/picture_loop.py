"""The loop of pictures, written once: all codes at once, the surest kept by the schedule. A generator of steps.

It knows a canvas, a denoiser and a sampler. It knows nothing of onnxruntime or torch, of texts, or of pixels.
"""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from mmada_lite.canvas import Bools, Canvas, Ints
from mmada_lite.denoiser import Denoiser
from mmada_lite.randomness import gumbel
from mmada_lite.reading import Step, read
from mmada_lite.sampling import Sampler
from mmada_lite.schedules import masked_after, noise_temperatures
from mmada_lite.selection import remask_least_confident
from mmada_lite.settings import ImageSettings

_KNOWN = np.log(np.finfo(np.float32).max)  # confidence of a given code in the reference's ranking
_LEAST = np.float32(np.log(np.float32(1e-20)))


def decode_image(denoiser: Denoiser, canvas: Canvas, settings: ImageSettings, sampler: Sampler) -> Iterator[Step]:
    """Draw the canvas's masked codes in `settings.steps` steps, keep the surest by the schedule, and yield every step."""
    started = time.perf_counter()
    region, length = canvas.region, canvas.stop - canvas.start
    reference = settings.law == "reference"
    unknown = canvas.masked()[:, region].sum(axis=1)
    plans = [masked_after(settings.schedule, length if reference else int(n), settings.steps) for n in unknown]
    plan = np.stack(plans)  # [B, steps] codes left masked
    temperatures = noise_temperatures(settings.temperature, settings.steps)
    everywhere = np.broadcast_to(np.arange(canvas.start, canvas.stop), (canvas.rows, length))
    for k in range(settings.steps):
        masked = canvas.masked()
        open_codes, given = masked[:, region], canvas.tokens[:, region]
        guess, confidence = given.copy(), np.full(given.shape, _KNOWN if reference else np.inf, dtype=np.float32)
        if open_codes.any():
            reading = read(denoiser, canvas, masked, settings.guidance)
            drawn = sampler.draw(denoiser, "image", reading.hidden, reading.mix, k, reading.positions)
            rows, slots = np.nonzero(reading.valid)
            at = (rows, reading.positions[rows, slots] - canvas.start)
            guess[at] = drawn.token[rows, slots] + canvas.code_offset
            confidence[at] = np.maximum(drawn.log_probability[rows, slots], _LEAST)
        surest = confidence.copy()
        noise = gumbel(sampler.order("image", k, everywhere)) if temperatures[k] > 0 else np.zeros_like(confidence)
        confidence += np.float32(temperatures[k]) * noise
        again = remask_least_confident(confidence, _left(open_codes, plan[:, k], reference, settings.steps - 1 - k))
        tokens = np.where(again, canvas.mask, guess)
        rows, slots = np.nonzero(tokens != given)
        whole = canvas.tokens.copy()
        whole[:, region] = tokens
        canvas.write(whole != canvas.tokens, whole)
        yield Step(
            index=k,
            of=settings.steps,
            rows=rows,
            positions=slots + canvas.start,
            tokens=tokens[rows, slots],
            log_probabilities=surest[rows, slots],
            remaining=int(canvas.masked().sum()),
            forwards=k + 1,
            seconds=time.perf_counter() - started,
            guess=guess - canvas.code_offset,
        )


def _left(open_codes: Bools, planned: Ints, reference: bool, steps_left: int) -> Ints:
    """How many codes go back to mask: fewer than now. The reference keeps at least one, even at the end; otherwise each
    later step keeps at least one to draw, and nothing is left after the last."""
    most: Ints = open_codes.sum(axis=1) - 1
    if reference:
        return np.maximum(np.minimum(most, planned), 1)
    wanted = np.maximum(planned, steps_left) if steps_left else np.zeros_like(planned)
    return np.maximum(np.minimum(most, wanted), 0)


def final_codes(steps: Sequence[Step]) -> Ints:
    """The picture's codes [B, N] after the last step: complete also under the reference law, whose canvas keeps a mask."""
    last = steps[-1].guess
    assert last is not None, "these were steps of a text"
    return last
