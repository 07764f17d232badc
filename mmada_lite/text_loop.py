"""The loop of texts, written once: block by block, the surest positions first. A generator of steps.

It knows a canvas, a denoiser and a sampler. It knows nothing of onnxruntime or torch, of tokenizers, or of pictures.
"""

import time
from collections.abc import Iterable, Iterator
from itertools import count

import numpy as np
from numpy.typing import NDArray

from mmada_lite.cache import Memory
from mmada_lite.canvas import Bools, Canvas, Ints
from mmada_lite.denoiser import Denoiser, Head, Prediction
from mmada_lite.reading import Reading, Step, read
from mmada_lite.sampling import Sampler
from mmada_lite.schedules import transfers
from mmada_lite.selection import above_threshold, most_confident
from mmada_lite.settings import Block, TextSettings


def decode_text(
    denoiser: Denoiser, canvas: Canvas, settings: TextSettings, sampler: Sampler, stop: Iterable[int] = ()
) -> Iterator[Step]:
    """Fill the canvas's answer block by block, the surest positions first, and yield every step.

    Ends after a block in which every row has one of the tokens `stop` (under the reference law: as its last token).
    """
    started, number, blocks = time.perf_counter(), 0, settings.blocks(canvas.start)
    total = None if settings.threshold is not None else sum(block.steps for block in blocks)
    ends = np.array(sorted(stop), dtype=np.int64)
    for block in blocks:
        quota = _quota(canvas, block, settings)
        memory: Memory | None = None
        for turn in count():
            if _finished(canvas, block, settings, turn, memory):
                break
            where = _candidates(canvas, block, memory)
            keep = settings.cache != "none" and turn == 0
            reading = read(denoiser, canvas, where, settings.guidance, memory, keep)
            guess = sampler.draw(denoiser, "text", reading.hidden, reading.mix, number, reading.positions)
            if settings.law == "sensible":
                guess = _never_mask(denoiser, "text", guess, reading, canvas.mask)
            chosen = _choose(guess, reading, settings, sampler, number, quota, turn)
            if keep:
                first = _first(where, block) if settings.law == "sensible" else block.start
                memory = Memory.after(settings.cache, reading.kept, first, block.stop, canvas.length)
            yield _commit(canvas, reading, guess, chosen, number, total, started)
            number += 1
        if ends.size and _ended(canvas, block, settings, ends):
            return


def _candidates(canvas: Canvas, block: Block, memory: Memory | None) -> Bools:
    where = canvas.masked()
    where[:, block.stop :] = False
    if memory:
        where[:, : memory.start] = False
    return where


def _first(where: Bools, block: Block) -> int:
    found = np.flatnonzero(where.any(axis=0))
    return min(block.start, int(found[0])) if found.size else block.start


def _quota(canvas: Canvas, block: Block, settings: TextSettings) -> Ints:
    """Tokens to write at each step of a block, int64 [B, steps]. The reference does not count masks left of the block."""
    first = block.start if settings.law == "reference" else 0
    masks = canvas.masked()[:, first : block.stop].sum(axis=1)
    return np.stack([transfers(int(m), block.steps) for m in masks])


def _finished(canvas: Canvas, block: Block, settings: TextSettings, turn: int, memory: Memory | None) -> bool:
    if settings.law == "sensible":
        return not _candidates(canvas, block, memory).any()
    if settings.cache == "none" and settings.threshold is None:
        return turn >= block.steps
    least = 0 if settings.cache == "none" else 2
    return turn >= least and not canvas.masked()[:, block.start : block.stop].any()


def _choose(
    guess: Prediction, reading: Reading, settings: TextSettings, sampler: Sampler, number: int, quota: Ints, turn: int
) -> Bools:
    confidence: NDArray = guess.log_probability
    if settings.order == "random":
        confidence = sampler.order("text", number, reading.positions)
    confidence = np.where(reading.valid, confidence, -np.inf)
    if settings.threshold is not None:
        return above_threshold(confidence, float(np.log(settings.threshold)))
    counts = quota[:, turn] if turn < quota.shape[1] else reading.valid.sum(axis=1)
    return most_confident(confidence, counts)


def _never_mask(denoiser: Denoiser, head: Head, guess: Prediction, reading: Reading, mask: int) -> Prediction:
    """A guess that is the mask itself would write nothing: take the best other token there (rare, so logits are paid for)."""
    wrong = (guess.token == mask) & reading.valid
    if not wrong.any():
        return guess
    logits = denoiser.logits(head, reading.hidden, reading.mix).astype(np.float64)
    logits[..., mask] = -np.inf
    best = logits.argmax(axis=-1)
    peak = np.take_along_axis(logits, best[..., None], axis=-1)
    certainty = -np.log(np.exp(logits - peak).sum(axis=-1))
    token = np.where(wrong, best, guess.token)
    return Prediction(token, np.where(wrong, certainty, guess.log_probability).astype(np.float32))


def _commit(
    canvas: Canvas, reading: Reading, guess: Prediction, chosen: Bools, number: int, total: int | None, started: float
) -> Step:
    rows, slots = np.nonzero(chosen)
    positions, tokens = reading.positions[rows, slots], guess.token[rows, slots]
    where, values = np.zeros(canvas.tokens.shape, dtype=bool), canvas.tokens.copy()
    where[rows, positions], values[rows, positions] = True, tokens
    canvas.write(where, values)
    return Step(
        index=number,
        of=total,
        rows=rows,
        positions=positions,
        tokens=tokens,
        log_probabilities=guess.log_probability[rows, slots],
        remaining=int(canvas.masked()[:, canvas.region].sum()),
        forwards=number + 1,
        seconds=time.perf_counter() - started,
    )


def _ended(canvas: Canvas, block: Block, settings: TextSettings, ends: Ints) -> bool:
    """True when every row's answer is over: a stop token among its finished tokens (the reference looks at the last only)."""
    first = block.stop - 1 if settings.law == "reference" else canvas.start
    return bool(np.isin(canvas.tokens[:, first : block.stop], ends).any(axis=1).all())
