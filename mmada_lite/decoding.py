"""The two loops, written once: text block by block, pictures all at once. Both are generators of steps.

They know a canvas, a denoiser and a sampler. They know nothing of onnxruntime or torch, of tokenizers, or of pixels.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from mmada_lite.cache import KeyValues, Memory
from mmada_lite.canvas import Bools, Canvas, Ints
from mmada_lite.denoiser import Denoiser, Floats, Head, Prediction, Window
from mmada_lite.randomness import gumbel
from mmada_lite.sampling import Sampler
from mmada_lite.schedules import masked_after, noise_temperatures, transfers
from mmada_lite.selection import above_threshold, most_confident, remask_least_confident
from mmada_lite.settings import Block, ImageSettings, TextSettings

_KNOWN = np.log(np.finfo(np.float32).max)  # confidence of a given code in the reference's ranking
_LEAST = np.float32(np.log(np.float32(1e-20)))


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did. rows, positions, tokens, log_probabilities [K]: the changes, in canvas coordinates.

    index counts from 0, `of` is the number of steps expected (None with a threshold); remaining: masks left to write;
    forwards: model calls so far, a guided pair counting as one; seconds since decoding began; guess [B, N]: for a
    picture, the codes as they stand if everything still masked were taken at its present guess.
    """

    index: int
    of: int | None
    rows: Ints
    positions: Ints
    tokens: Ints
    log_probabilities: Floats
    remaining: int
    forwards: int
    seconds: float
    guess: Ints | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """Hidden states [R, Q, D] of the queried positions [B, Q] (valid [B, Q] where a row has fewer), and how to mix them."""

    hidden: Floats
    mix: Floats
    positions: Ints
    valid: Bools
    kept: tuple[KeyValues, ...]


def read(
    denoiser: Denoiser, canvas: Canvas, where: Bools, guidance: float, memory: Memory | None = None, keep: bool = False
) -> Reading:
    """One model call over the window (all of the row, or what `memory` leaves), for the positions `where` [B, L]."""
    positions, valid = _queried(where)
    hidden, kept = [], []
    for branch, tokens in enumerate(canvas.branches()):
        shift = canvas.shift if branch else 0
        start, stop = (memory.start + shift, memory.stop + shift) if memory else (0, tokens.shape[1])
        window = Window(
            tokens=np.ascontiguousarray(tokens[:, start:stop]),
            positions=np.arange(start, stop, dtype=np.int64),
            rows=np.clip(positions + shift - start, 0, stop - start - 1),
            past=memory.pasts[branch] if memory else None,
        )
        states, cache = denoiser.forward(window, keep=keep)
        hidden.append(states)
        if cache is not None:
            kept.append(cache)
    stacked = hidden[0] if len(hidden) == 1 else np.concatenate(hidden)
    return Reading(stacked, _mix(canvas.rows, guidance, len(hidden)), positions, valid, tuple(kept))


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


def _mix(rows: int, guidance: float, branches: int) -> NDArray[np.float32]:
    """[B, R]: (1 + g) * conditional - g * unconditional; the head is linear, so this may come before it."""
    identity = np.eye(rows, dtype=np.float32)
    if branches == 1:
        return identity
    return np.concatenate([np.float32(1 + guidance) * identity, np.float32(-guidance) * identity], axis=1)


def _queried(where: Bools) -> tuple[Ints, Bools]:
    """Positions [B, Q] that are true, left to right; short rows repeat position 0 and are marked invalid."""
    longest = max(1, int(where.sum(axis=1).max()))
    positions = np.zeros((where.shape[0], longest), dtype=np.int64)
    valid = np.zeros(positions.shape, dtype=bool)
    for row, flags in enumerate(where):
        found = np.flatnonzero(flags)
        positions[row, : found.size], valid[row, : found.size] = found, True
    return positions, valid


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


def final_codes(steps: Sequence[Step]) -> Ints:
    """The picture's codes [B, N] after the last step: complete also under the reference law, whose canvas keeps a mask."""
    last = steps[-1].guess
    assert last is not None, "these were steps of a text"
    return last
