"""The course of one block of a text: which positions are asked for, which are written, when keys and values are computed
anew, and when the block or the text is over.

It holds what one block remembers between its steps. It calls no model and writes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from mmada_lite.decoding.candidates import Candidates
from mmada_lite.decoding.canvas import Bools, Canvas, Ints
from mmada_lite.decoding.kv_cache import CachedContext, KeyValues, KVBuffer
from mmada_lite.decoding.sampling import Sampler
from mmada_lite.decoding.schedules import transfers
from mmada_lite.decoding.selection import above_threshold, entropy_bounded, most_confident, unbroken_run
from mmada_lite.decoding.settings import Block, TextSettings


@dataclass(slots=True)
class BlockState:
    """One block on its way. ends: stop tokens; buffers, spare_buffers: where cuts of keys and values stand, a branch each,
    one block after another, and in turn while a past grows; closing: ids that end a thought; turn: steps done in this block;
    context: what cached steps lean on."""

    canvas: Canvas
    block: Block
    settings: TextSettings
    sampler: Sampler
    ends: Ints
    buffers: tuple[KVBuffer, KVBuffer]
    spare_buffers: tuple[KVBuffer, KVBuffer]
    closing: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    turn: int = 0
    context: CachedContext | None = None
    prompt: CachedContext | None = None  # with cache "prompt": what every block after the first begins on
    _quota: Ints = field(init=False)
    _left: Candidates | None = None  # the last candidates, less what was written
    _then: tuple[Ints, NDArray[np.floating]] | None = None  # tokens and probabilities [B, L] when all was computed; -1: none
    _moved: float = 0.0
    _thought: int = 0  # rows whose thought was over when all was computed
    _concludes: bool = False  # more are now, and what follows is to be read with the whole thought

    def __post_init__(self) -> None:
        """The quota: tokens to write at each step, int64 [B, steps]. The reference does not count masks left of the block."""
        first = self.block.start if self.settings.law == "reference" else 0
        masks = self.canvas.masked()[:, first : self.block.stop].sum(axis=1)
        self._quota = np.stack([transfers(int(m), self.block.steps) for m in masks])

    @property
    def end(self) -> int:
        """Where the row ends that a step reads: what lies beyond is far and masked (DPad, arXiv 2508.14148)."""
        if self.settings.suffix is None:
            return self.canvas.length
        return min(self.canvas.length, self.block.stop + max(self.settings.suffix, self.settings.reach))

    def asked(self, canvas: Canvas, computes_all: bool) -> Bools:
        """The positions to guess, [B, L]: masks of the block, of what is left of it, and of what it reaches."""
        where = self._open(canvas, self.block.stop + self.settings.reach)
        if self.context and not computes_all:
            where[:, : self.context.start] = False
            where[:, self.context.stop :] = False
        return where

    def finished(self) -> bool:
        settings, canvas, block = self.settings, self.canvas, self.block
        if settings.law == "sensible":
            where = self._open(canvas, block.stop)
            return not (where[:, self.context.start :] if self.context else where).any()
        if settings.cache == "none" and settings.threshold is None:
            return self.turn >= block.steps
        least = 0 if settings.cache == "none" else 2
        return self.turn >= least and not canvas.masked()[:, block.start : block.stop].any()

    def computes_all(self) -> bool:
        """Whether the next call computes all and keeps its keys and values: a block's first, and when they are old."""
        if self.settings.cache == "none":
            return False
        if self.turn == 0 or (self.settings.refresh is not None and self.turn % self.settings.refresh == 0):
            return True
        if self._concludes:
            return True
        return self.settings.drift is not None and self._moved > self.settings.drift

    def leaning(self, computes_all: bool) -> CachedContext | None:
        """What the next call leans on: what it computes all of is the whole row, or all that lies behind a prompt that was kept
        by an earlier block."""
        if not computes_all:
            return self.context
        return None if self.prompt is None or self.turn else replace(self.prompt, stop=self.end)

    def remember(self, kept: Sequence[KeyValues], where: Bools) -> None:
        """Keep what a call that computed all left behind."""
        start, settings, leant = self.block.start, self.settings, self.leaning(True)
        if settings.law == "sensible":
            start = min(start, int(where.any(axis=0).argmax()))
        self.context = CachedContext.after(
            settings.cache, kept, start, self.block.stop, self.end, self.buffers, settings.draft, leant
        )
        if settings.cache == "prompt" and leant is None:
            first = min(self.canvas.start, start)
            self.prompt = CachedContext(tuple(branch.shrunk(first) for branch in kept), first, self.end)
            for buffer, past in zip(self.buffers, self.prompt.pasts, strict=False):
                buffer.begun(past, self.end - self.context.stop + self.context.start)  # this block's cut does, later ones will
        self._then, self._thought, self._concludes = None, self._thoughts_over(), False

    def settling(self) -> bool:
        """Whether so many positions of the window are done, before the next call, that they leave it then."""
        settle, context = self.settings.settle, self.context
        return settle is not None and context is not None and int(self._done(context).sum()) >= settle

    def settle(self, kept: Sequence[KeyValues]) -> None:
        """Let what was done before a call over the window join the past as the call left it (dKV-Cache, arXiv 2505.15781:
        keys of a token are worth keeping one step after it is written)."""
        assert self.context is not None, "a window has settled positions once there is a window"
        done = self._done(self.context)
        if not done.all():
            self.buffers, self.spare_buffers = self.spare_buffers, self.buffers
            self.context = self.context.settled(kept, done, self.buffers)

    def _done(self, context: CachedContext) -> Bools:
        """Of the window's positions, those at which no row has a mask."""
        found: Bools = np.logical_and.reduce(~self.canvas.masked()[:, context.window], axis=0)
        return found

    def choose(self, candidates: Candidates, number: int) -> Bools:
        """What step `number` writes of its candidates, [B, Q]."""
        chosen = self._choose(candidates, number, self.turn)
        if self.settings.early_stop is not None and self.ends.size:
            chosen |= self._coming_end(candidates, float(np.log(self.settings.early_stop)))
        return chosen

    def advance(self, candidates: Candidates, chosen: Bools) -> None:
        """A step is done: what is left of its candidates serves the next draft, and how far they moved the next refresh."""
        self.turn += 1
        self._left = candidates.without(chosen)
        self._concludes = self.context is not None and self._thoughts_over() > self._thought
        if self.settings.drift is not None:
            self._measure_drift(self._left)

    def drafted(self, number: int) -> Canvas:
        """The canvases of the next call: as things stand, and as they would stand if the last candidates held for more steps.

        A step from the canvas that its draft foresaw is the very step that would have come (self-speculative decoding,
        arXiv 2510.04147): so every one is checked, and the first that was foreseen wrongly is the last that counts.
        """
        if self.settings.draft == 1:
            return self.canvas
        rows, left = [self.canvas.tokens[0]], self._left
        while left is not None and len(rows) < self.settings.draft:
            ahead = len(rows) - 1
            chosen = self._choose(left, number + ahead, self.turn + ahead)
            row, left = rows[-1].copy(), left.without(chosen)
            row[left.positions[chosen]] = left.token[chosen]
            if not (left.valid & (left.positions < self.block.stop)).any():
                break
            rows.append(row)
        return _rows_of(self.canvas, np.stack(rows))

    def _open(self, canvas: Canvas, stop: int) -> Bools:
        where = canvas.masked()
        where[:, stop:] = False
        if self.settings.early_stop is not None:
            where[over(canvas, self.ends)] = False
        return where

    def _choose(self, candidates: Candidates, number: int, turn: int) -> Bools:
        settings = self.settings
        if settings.thought_first and self.closing.size:
            candidates = self._without_what_waits(candidates)
        inside = candidates.valid & (candidates.positions < self.block.stop)
        confidence: NDArray[np.floating] = candidates.confidence
        if settings.order == "random":
            confidence = self.sampler.order("text", number, candidates.positions)
        ranked = np.where(inside, confidence, -np.inf)
        if settings.entropy_bound is not None:
            assert candidates.entropy is not None
            return entropy_bounded(ranked, candidates.entropy, settings.entropy_bound)
        if settings.threshold is None:
            counts = self._quota[:, turn] if turn < self._quota.shape[1] else inside.sum(axis=1)
            return most_confident(ranked, counts)
        least = float(np.log(settings.threshold))
        chosen = above_threshold(ranked, least)
        if not settings.reach:
            return chosen
        complete = (chosen | ~inside).all(axis=1, keepdims=True)
        return chosen | (unbroken_run(confidence >= least, candidates.valid & ~inside) & complete)

    def _without_what_waits(self, candidates: Candidates) -> Candidates:
        """The candidates, less those behind the end of a thought, written or guessed, before which something is open."""
        tokens = self.canvas.tokens.copy()
        rows, slots = np.nonzero(candidates.positions >= self.canvas.start)
        tokens[rows, candidates.positions[rows, slots]] = candidates.token[rows, slots]
        behind = self._behind_thoughts(tokens)[:, None]
        thinks = (candidates.valid & (candidates.positions < behind)).any(axis=1, keepdims=True)
        return replace(candidates, valid=candidates.valid & ((candidates.positions < behind) | ~thinks))

    def _behind_thoughts(self, tokens: Ints) -> Ints:
        """Where what follows a thought begins, [B]: behind the first end of one; the length of the row where there is none."""
        last = tokens.shape[1] - self.closing.size + 1
        found = np.stack([tokens[:, n : last + n] == token for n, token in enumerate(self.closing)])
        ends: Bools = np.logical_and.reduce(found, axis=0)
        ends[:, : self.canvas.start] = False
        behind: Ints = np.where(ends.any(axis=1), ends.argmax(axis=1) + self.closing.size, tokens.shape[1])
        return behind

    def _thoughts_over(self) -> int:
        """Rows whose thought is written to its end, where what follows waits for it."""
        if not (self.settings.thought_first and self.closing.size):
            return 0
        tokens = self.canvas.tokens
        behind = self._behind_thoughts(tokens)[:, None]
        thought = np.arange(tokens.shape[1]) < behind
        return int(((behind[:, 0] < tokens.shape[1]) & ~(self.canvas.masked() & thought).any(axis=1)).sum())

    def _coming_end(self, candidates: Candidates, least: float) -> Bools:
        """The first open position of a row where all candidates are stop tokens and that one is surer than `least`, [B, Q]."""
        ending = (_among(candidates.token, self.ends) | ~candidates.valid).all(axis=1)
        rows, first = np.arange(len(candidates.valid)), candidates.valid.argmax(axis=1)
        sure = candidates.valid[rows, first] & (candidates.log_probability[rows, first] > least)
        found = np.zeros(candidates.valid.shape, dtype=bool)
        found[rows, first] = ending & sure & (candidates.positions[rows, first] >= self.canvas.start)
        return found

    def _measure_drift(self, left: Candidates) -> None:
        """How far candidates moved since all was computed: the mean change of probability, where another token counts whole."""
        rows, slots = np.nonzero(left.valid)
        at, token = (rows, left.positions[rows, slots]), left.token[rows, slots]
        probability = np.exp(left.log_probability[rows, slots])
        if self._then is None:
            shape = self.canvas.tokens.shape
            self._then, self._moved = (np.full(shape, -1, dtype=np.int64), np.zeros(shape)), 0.0
            self._then[0][at], self._then[1][at] = token, probability
            return
        before, was = self._then[0][at], self._then[1][at]
        change = np.where(before == token, np.abs(probability - was), np.maximum(probability, was))[before >= 0]
        self._moved = float(change.mean()) if change.size else 0.0


def over(canvas: Canvas, ends: Ints) -> Bools:
    """Rows [B] whose text cannot change any more: a stop token stands in the answer and no mask before it."""
    ended = _among(canvas.tokens, ends)
    ended[:, : canvas.start] = False
    masked = canvas.masked()
    first = np.where(masked.any(axis=1), masked.argmax(axis=1), canvas.length)
    found: Bools = ended.any(axis=1) & (ended.argmax(axis=1) < first)
    return found


def _among(tokens: Ints, few: Ints) -> Bools:
    """Where a token is one of a few: as np.isin, which takes seven times as long for so few."""
    found = np.zeros(tokens.shape, dtype=bool)
    for one in few:
        found |= tokens == one
    return found


def _rows_of(canvas: Canvas, tokens: Ints) -> Canvas:
    """A canvas of one row as several that differ in what is written."""
    rows = len(tokens)
    unconditional = None if canvas.unconditional is None else canvas.unconditional.repeat(rows, axis=0)
    if unconditional is not None and canvas.shared is not None:
        unconditional[:, canvas.shared + canvas.shift] = tokens[:, canvas.shared]
    return replace(canvas, tokens=tokens, editable=canvas.editable.repeat(rows, axis=0), unconditional=unconditional)
