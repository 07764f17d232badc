"""The loop of texts, written once: block by block, the most confident positions first. A generator of steps.

It knows a canvas, a denoiser and a sampler. It knows nothing of onnxruntime or torch, of tokenizers, or of pictures.
"""

import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from mmada_lite.decoding.block_state import BlockState
from mmada_lite.decoding.candidates import Candidates, candidates_of
from mmada_lite.decoding.canvas import Bools, Canvas, Ints, closed_holes
from mmada_lite.decoding.constraint import Constraint, constrained
from mmada_lite.decoding.denoiser import Denoiser
from mmada_lite.decoding.forward import Step, run_forward
from mmada_lite.decoding.kv_cache import CachedContext, KVBuffer
from mmada_lite.decoding.sampling import Sampler
from mmada_lite.decoding.settings import Block, TextSettings
from mmada_lite.errors import Error


def decode_text(
    denoiser: Denoiser,
    canvas: Canvas,
    settings: TextSettings,
    sampler: Sampler,
    stop: Iterable[int] = (),
    closing: Sequence[int] = (),
    constraints: Sequence[Constraint] = (),
) -> Iterator[Step]:
    """Fill the canvas's answer block by block, the most confident positions first, and yield every step.

    The blocks are cut from what is masked when it begins, so that so many masks take the steps of an answer of that length,
    wherever they stand. Ends after a block in which every row has one of the tokens `stop` (in mode reference: as its last
    token), with `early_stop` as soon as every row's text can no longer change. With `thought_first` what stands behind the
    tokens `closing` waits for what stands before them. With constraints, one a row, no id is written that they do not allow,
    and no step writes so much that what is left cannot be; so there may be more steps. Raises Error for drafts of several rows.
    """
    acceleration = settings.acceleration
    if (ahead := acceleration.speculative_steps) > 1 and canvas.batch > 1:
        raise Error(
            f"speculative_steps {ahead} checks one answer at a time and here are {canvas.batch}; use speculative_steps 1"
        )
    started, step, model_calls = time.perf_counter(), 0, 0
    places = canvas.start + np.flatnonzero(canvas.masked()[:, canvas.region].any(axis=0))
    settings = settings.for_length(len(places))
    blocks = [Block(int(places[b.start]), int(places[b.stop - 1]) + 1, b.steps) for b in settings.blocks(0)]
    total = None if settings.adaptive or acceleration.thought_first or constraints else sum(block.steps for block in blocks)
    stop_tokens, closing_tokens = np.array(sorted(stop), dtype=np.int64), np.array(closing, dtype=np.int64)
    buffers, spare = (KVBuffer(), KVBuffer()), (KVBuffer(), KVBuffer())
    prompt: CachedContext | None = None
    for block in blocks:
        state = BlockState(
            canvas,
            block,
            settings,
            sampler,
            stop_tokens,
            buffers,
            spare,
            closing_tokens,
            prompt,
            constraints,
        )
        while not state.finished():
            computes_all = state.computes_all()
            commits = not computes_all and state.commits()
            drafts = canvas if computes_all else state.drafts(step)
            queried, context = state.queried(drafts, computes_all), state.context_of(computes_all)
            if computes_all:
                state.context = None  # it is replaced: no memory for both
            forward = run_forward(denoiser, drafts, queried, settings.guidance, context, computes_all or commits, state.end)
            head = constrained(denoiser, constraints, drafts, forward)
            candidates = candidates_of(head, forward, settings, sampler, step, canvas.mask)
            model_calls += 1
            if computes_all:
                state.cache(forward.kept, queried)
            elif commits:
                state.commit(forward.kept)
            del forward  # what it kept is cut and cached: a second copy would outlive the block's steps
            for draft in range(drafts.batch // canvas.batch):
                own = candidates if drafts.batch == canvas.batch else candidates.row(draft)
                chosen = state.choose(own, step)
                yield _commit(canvas, own, chosen, stop_tokens, step, model_calls, total, started)
                step += 1
                state.advance(own)
                if state.finished() or state.computes_all() or not _foreseen(canvas, drafts, draft + 1):
                    break
        if stop_tokens.size and _ended(canvas, block, settings, stop_tokens):
            return
        prompt = state.prompt


def _foreseen(canvas: Canvas, drafts: Canvas, draft: int) -> bool:
    """Whether there is such a draft and it is how the canvas now stands."""
    return draft < drafts.batch and bool((drafts.tokens[draft] == canvas.tokens[0]).all())


def _commit(
    canvas: Canvas,
    candidates: Candidates,
    chosen: Bools,
    stop: Ints,
    step: int,
    model_calls: int,
    total: int | None,
    started: float,
) -> Step:
    """Write what was chosen, and close the holes that end with it."""
    rows, slots = np.nonzero(chosen)
    places = rows, candidates.positions[rows, slots]
    written, values = np.zeros(canvas.tokens.shape, dtype=bool), canvas.tokens.copy()
    log_probabilities = np.zeros(canvas.tokens.shape, dtype=np.float32)
    log_probabilities[places] = candidates.log_probability[rows, slots]
    written[places], values[places] = True, candidates.token[rows, slots]
    closed = closed_holes(canvas, values, stop)
    written |= closed != values
    canvas.write(written, closed)
    rows, positions = np.nonzero(written)
    return Step(
        index=step,
        total_steps=total,
        rows=rows,
        positions=positions,
        tokens=closed[rows, positions],
        log_probabilities=log_probabilities[rows, positions],
        remaining=int(canvas.masked()[:, canvas.region].sum()),
        model_calls=model_calls,
        seconds=time.perf_counter() - started,
    )


def _ended(canvas: Canvas, block: Block, settings: TextSettings, stop: Ints) -> bool:
    """True when every row's answer is over: a stop token among its finished tokens (the reference looks at the last only)."""
    first = block.stop - 1 if settings.mode == "reference" else canvas.start
    ends = np.isin(canvas.tokens[:, first : block.stop], stop) & (np.arange(first, block.stop) >= canvas.tails[:, None])
    return bool(ends.any(axis=1).all())
