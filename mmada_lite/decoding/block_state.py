"""The state of one block of a text: which positions are queried, which are written, when keys and values are computed anew, and
when the block or the text is over.

It holds what one block carries from step to step. It calls no model and writes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from mmada_lite.decoding.candidates import Candidates
from mmada_lite.decoding.canvas import Bools, Canvas, Ints, among, closed_holes
from mmada_lite.decoding.constraint import Constraint, still_possible
from mmada_lite.decoding.kv_cache import CachedContext, KeyValues, KVBuffer
from mmada_lite.decoding.sampling import Sampler
from mmada_lite.decoding.schedules import transfers
from mmada_lite.decoding.selection import above_threshold, entropy_bounded, most_confident, unbroken_run
from mmada_lite.decoding.settings import Block, TextAcceleration, TextSettings


@dataclass(slots=True)
class BlockState:
    """One block while it is decoded. buffers, spare_buffers: memory for the keys and values of the cached
    context, one for each branch of guidance, used by one block after another, and in turn while a past grows; closing: ids
    that end a thought; prompt: with cache "prompt", the keys and values that every block after the first begins with;
    steps_done: in this block; context: those that cached steps attend to."""

    canvas: Canvas
    block: Block
    settings: TextSettings
    sampler: Sampler
    stop_tokens: Ints
    buffers: tuple[KVBuffer, KVBuffer]
    spare_buffers: tuple[KVBuffer, KVBuffer]
    closing: Ints
    prompt: CachedContext | None
    constraints: Sequence[Constraint]
    steps_done: int = 0
    context: CachedContext | None = None
    _quota: Ints = field(init=False)
    _unwritten: Candidates | None = None  # the last candidates, less what was written
    _at_refresh: tuple[Ints, NDArray[np.floating]] | None = None  # tokens, probabilities [B, L] when all was computed
    _drift: float = 0.0  # mean change of probability since
    _thoughts_at_refresh: int = 0  # rows whose thought was over when all was computed
    _thought_ended: bool = False  # more are now, and what follows is to be read with the whole thought

    def __post_init__(self) -> None:
        """The quota: tokens to write at each step, int64 [B, steps]. The reference does not count masks left of the block."""
        first = self.block.start if self.settings.mode == "reference" else 0
        masks = self.canvas.masked()[:, first : self.block.stop].sum(axis=1)
        self._quota = np.stack([transfers(int(m), self.block.steps) for m in masks])

    @property
    def acceleration(self) -> TextAcceleration:
        return self.settings.acceleration

    @property
    def end(self) -> int:
        """Where the row ends that a step reads: what lies beyond is far and masked (DPad, arXiv 2508.14148)."""
        if self.acceleration.suffix_window is None:
            return self.canvas.length
        near = self.block.stop + max(self.acceleration.suffix_window, self.acceleration.lookahead)
        return max(min(self.canvas.length, near), int(self.canvas.tails.max()))

    def queried(self, canvas: Canvas, computes_all: bool) -> Bools:
        """The positions to predict, [B, L]: masks of the block, of what is left of it, and of what it reaches."""
        queried = self._open(canvas, self.block.stop + self.acceleration.lookahead)
        if self.context and not computes_all:
            queried[:, : self.context.start] = False
            queried[:, self.context.stop :] = False
        return queried

    def finished(self) -> bool:
        acceleration, canvas, block = self.acceleration, self.canvas, self.block
        if self.settings.mode == "default":
            still_open = self._open(canvas, block.stop)
            return not (still_open[:, self.context.start :] if self.context else still_open).any()
        if acceleration.cache == "none" and acceleration.threshold is None:
            return self.steps_done >= block.steps
        least = 0 if acceleration.cache == "none" else 2
        return self.steps_done >= least and not canvas.masked()[:, block.start : block.stop].any()

    def computes_all(self) -> bool:
        """Whether the next call computes all and keeps its keys and values: a block's first, and when they are stale."""
        if self.acceleration.cache == "none":
            return False
        if self.steps_done == 0 or (self.acceleration.refresh is not None and self.steps_done % self.acceleration.refresh == 0):
            return True
        if self._thought_ended:
            return True
        return self.acceleration.refresh_drift is not None and self._drift > self.acceleration.refresh_drift

    def context_of(self, computes_all: bool) -> CachedContext | None:
        """The cached context of the next call. One that computes all has none, or the prompt that an earlier block kept, behind
        which it computes all."""
        if not computes_all:
            return self.context
        return None if self.prompt is None or self.steps_done else replace(self.prompt, stop=self.end)

    def cache(self, kept: Sequence[KeyValues], queried: Bools) -> None:
        """Keep the keys and values of a call that computed all and queried these positions [B, L]."""
        start, acceleration, prompt = self.block.start, self.acceleration, self.context_of(True)
        if self.settings.mode == "default":
            start = min(start, int(queried.any(axis=0).argmax()))
        self.context = CachedContext.after(
            acceleration.cache, kept, start, self.block.stop, self.end, self.buffers, acceleration.speculative_steps, prompt
        )
        if acceleration.cache == "prompt" and prompt is None:
            first = min(self.canvas.start, start)
            self.prompt = CachedContext(tuple(branch.shrunk(first) for branch in kept), first, self.end)
            for buffer, past in zip(self.buffers, self.prompt.pasts, strict=False):
                buffer.begun(past, self.end - self.context.stop + self.context.start)  # this block's cut does, later ones will
        self._at_refresh, self._thoughts_at_refresh, self._thought_ended = None, self._thoughts_over(), False

    def commits(self) -> bool:
        """Whether so many positions of the window are written, before the next call, that their keys and values are committed
        to the past then."""
        least, context = self.acceleration.kv_commit_every, self.context
        return least is not None and context is not None and int(self._written(context).sum()) >= least

    def commit(self, kept: Sequence[KeyValues]) -> None:
        """Let what was written before a call over the window join the past as the call left it (dKV-Cache, arXiv 2505.15781:
        keys of a token are worth keeping one step after it is written)."""
        assert self.context is not None, "positions leave a window once there is one"
        written = self._written(self.context)
        if not written.all():
            self.buffers, self.spare_buffers = self.spare_buffers, self.buffers
            self.context = self.context.committed(kept, written, self.buffers)

    def _written(self, context: CachedContext) -> Bools:
        """Of the window's positions, those at which no row has a mask."""
        written: Bools = np.logical_and.reduce(~self.canvas.masked()[:, context.window], axis=0)
        return written

    def choose(self, candidates: Candidates, step: int) -> Bools:
        """What step `step` of the text writes of its candidates, [B, Q]."""
        chosen = self._choose(candidates, step, self.steps_done)
        if self.acceleration.early_stop is not None and self.stop_tokens.size:
            chosen |= self._coming_end(candidates, float(np.log(self.acceleration.early_stop)))
        return still_possible(self.constraints, candidates, chosen, self.canvas.tokens, self.canvas)

    def advance(self, candidates: Candidates) -> None:
        """A step is done: what is left of its candidates serves the next draft, and how far they moved the next refresh."""
        self.steps_done += 1
        self._unwritten = candidates.without(~np.take_along_axis(self.canvas.masked(), candidates.positions, axis=1))
        self._thought_ended = self.context is not None and self._thoughts_over() > self._thoughts_at_refresh
        if self.acceleration.refresh_drift is not None:
            self._measure_drift(self._unwritten)

    def drafts(self, step: int) -> Canvas:
        """The canvases of the next call: as things stand, and as they would stand if the last candidates held for more steps.

        A step from the canvas that its draft foresaw is the very step that would have come (self-speculative decoding,
        arXiv 2510.04147): so every one is checked, and the first that was foreseen wrongly is the last that counts.
        """
        if self.acceleration.speculative_steps == 1:
            return self.canvas
        drafts, unwritten = [self.canvas.tokens[0]], self._unwritten
        while unwritten is not None and len(drafts) < self.acceleration.speculative_steps:
            ahead = len(drafts) - 1
            chosen = self._choose(unwritten, step + ahead, self.steps_done + ahead)
            chosen = still_possible(self.constraints, unwritten, chosen, drafts[-1][None], self.canvas)
            draft = drafts[-1].copy()
            draft[unwritten.positions[chosen]] = unwritten.token[chosen]
            draft = closed_holes(self.canvas, draft[None], self.stop_tokens)[0]
            unwritten = unwritten.without((draft != self.canvas.mask)[unwritten.positions])
            if not (unwritten.valid & (unwritten.positions < self.block.stop)).any():
                break
            drafts.append(draft)
        return _as_batch(self.canvas, np.stack(drafts))

    def _open(self, canvas: Canvas, stop: int) -> Bools:
        """Masks [B, L] before `stop` of the rows whose text may still change."""
        masked = canvas.masked()
        masked[:, stop:] = False
        if self.acceleration.early_stop is not None:
            masked[over(canvas, self.stop_tokens)] = False
        return masked

    def _choose(self, candidates: Candidates, step: int, steps_done: int) -> Bools:
        acceleration = self.acceleration
        if acceleration.thought_first and self.closing.size:
            candidates = self._without_waiting(candidates)
        inside = candidates.valid & (candidates.positions < self.block.stop)
        confidence: NDArray[np.floating] = candidates.confidence
        if self.settings.order == "random":
            confidence = self.sampler.order("text", step, candidates.positions)
        ranked = np.where(inside, confidence, -np.inf)
        if acceleration.entropy_bound is not None:
            assert candidates.entropy is not None
            return entropy_bounded(ranked, candidates.entropy, acceleration.entropy_bound)
        if acceleration.threshold is None:
            counts = self._quota[:, steps_done] if steps_done < self._quota.shape[1] else inside.sum(axis=1)
            return most_confident(ranked, counts)
        least = float(np.log(acceleration.threshold))
        chosen = above_threshold(ranked, least)
        if not acceleration.lookahead:
            return chosen
        complete = (chosen | ~inside).all(axis=1, keepdims=True)
        return chosen | (unbroken_run(confidence >= least, candidates.valid & ~inside) & complete)

    def _without_waiting(self, candidates: Candidates) -> Candidates:
        """The candidates, less those behind the end of a thought, written or predicted, before which something is open."""
        tokens = self.canvas.tokens.copy()
        rows, slots = np.nonzero(candidates.positions >= self.canvas.start)
        tokens[rows, candidates.positions[rows, slots]] = candidates.token[rows, slots]
        answers = self._answer_starts(tokens)[:, None]
        thinks = (candidates.valid & (candidates.positions < answers)).any(axis=1, keepdims=True)
        return replace(candidates, valid=candidates.valid & ((candidates.positions < answers) | ~thinks))

    def _answer_starts(self, tokens: Ints) -> Ints:
        """Where what follows a thought begins, [B]: behind the first end of one; the length of the row where there is none."""
        last = tokens.shape[1] - self.closing.size + 1
        matches = np.stack([tokens[:, n : last + n] == token for n, token in enumerate(self.closing)])
        ends: Bools = np.logical_and.reduce(matches, axis=0)
        ends[:, : self.canvas.start] = False
        starts: Ints = np.where(ends.any(axis=1), ends.argmax(axis=1) + self.closing.size, tokens.shape[1])
        return starts

    def _thoughts_over(self) -> int:
        """Rows whose thought is written to its end, where what follows waits for it."""
        if not (self.acceleration.thought_first and self.closing.size):
            return 0
        tokens = self.canvas.tokens
        answers = self._answer_starts(tokens)[:, None]
        thought = np.arange(tokens.shape[1]) < answers
        return int(((answers[:, 0] < tokens.shape[1]) & ~(self.canvas.masked() & thought).any(axis=1)).sum())

    def _coming_end(self, candidates: Candidates, least: float) -> Bools:
        """The first open position of a row where all candidates are stop tokens and that one has more than the log probability
        `least`, [B, Q]."""
        ending = (among(candidates.token, self.stop_tokens) | ~candidates.valid).all(axis=1)
        rows, first = np.arange(len(candidates.valid)), candidates.valid.argmax(axis=1)
        certain = candidates.valid[rows, first] & (candidates.log_probability[rows, first] > least)
        chosen = np.zeros(candidates.valid.shape, dtype=bool)
        chosen[rows, first] = ending & certain & (candidates.positions[rows, first] >= self.canvas.tails)
        return chosen

    def _measure_drift(self, unwritten: Candidates) -> None:
        """How far candidates moved since all was computed: the mean change of probability, where another token counts whole."""
        rows, slots = np.nonzero(unwritten.valid)
        at, token = (rows, unwritten.positions[rows, slots]), unwritten.token[rows, slots]
        probability = np.exp(unwritten.log_probability[rows, slots])
        if self._at_refresh is None:
            shape = self.canvas.tokens.shape
            self._at_refresh, self._drift = (np.zeros(shape, dtype=np.int64), np.zeros(shape)), 0.0
            self._at_refresh[0][at], self._at_refresh[1][at] = token, probability
            return
        before, was = self._at_refresh[0][at], self._at_refresh[1][at]  # what is open now was open then
        change = np.where(before == token, np.abs(probability - was), np.maximum(probability, was))
        self._drift = float(change.mean()) if change.size else 0.0


def over(canvas: Canvas, stop_tokens: Ints) -> Bools:
    """Rows [B] whose text cannot change any more: a stop token stands in the answer's tail and no mask before it."""
    ended = among(canvas.tokens, stop_tokens) & (np.arange(canvas.length) >= canvas.tails[:, None])
    masked = canvas.masked()
    first = np.where(masked.any(axis=1), masked.argmax(axis=1), canvas.length)
    finished: Bools = ended.any(axis=1) & (ended.argmax(axis=1) < first)
    return finished


def _as_batch(canvas: Canvas, tokens: Ints) -> Canvas:
    """A canvas of one row as a batch that differs in what is written: tokens [B, L]."""
    batch = len(tokens)
    unconditional = None if canvas.unconditional is None else canvas.unconditional.repeat(batch, axis=0)
    if unconditional is not None and canvas.shared is not None:
        unconditional[:, canvas.shared + canvas.shift] = tokens[:, canvas.shared]
    return replace(canvas, tokens=tokens, editable=canvas.editable.repeat(batch, axis=0), unconditional=unconditional)
