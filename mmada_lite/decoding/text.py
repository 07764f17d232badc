"""The loop of texts, written once: block by block, the surest positions first. A generator of steps.

It knows a canvas, a denoiser and a sampler. It knows nothing of onnxruntime or torch, of tokenizers, or of pictures.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from mmada_lite.decoding.block_state import BlockState
from mmada_lite.decoding.candidates import Candidates, candidates_of
from mmada_lite.decoding.canvas import Bools, Canvas, Ints
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
) -> Iterator[Step]:
    """Fill the canvas's answer block by block, the surest positions first, and yield every step.

    Ends after a block in which every row has one of the tokens `stop` (under the reference law: as its last token), with
    `early_stop` as soon as every row's text can no longer change. With `thought_first` what stands behind the tokens `closing`
    waits for what stands before them. Raises Error for drafts of several rows.
    """
    if settings.draft > 1 and canvas.rows > 1:
        raise Error(f"draft {settings.draft} checks one answer at a time and here are {canvas.rows}; use draft 1")
    started, number, calls, blocks = time.perf_counter(), 0, 0, settings.blocks(canvas.start)
    total = None if settings.adaptive or settings.thought_first else sum(block.steps for block in blocks)
    ends, buffers, spare = np.array(sorted(stop), dtype=np.int64), (KVBuffer(), KVBuffer()), (KVBuffer(), KVBuffer())
    prompt: CachedContext | None = None
    for block in blocks:
        state = BlockState(
            canvas, block, settings, sampler, ends, buffers, spare, np.array(closing, dtype=np.int64), prompt=prompt
        )
        while not state.finished():
            keep = state.computes_all()
            settling = not keep and state.settling()
            drafts = canvas if keep else state.drafted(number)
            where = state.asked(drafts, keep)
            forward = run_forward(denoiser, drafts, where, settings.guidance, state.leaning(keep), keep or settling, state.end)
            candidates = candidates_of(denoiser, forward, settings, sampler, number, canvas.mask)
            calls += 1
            if keep:
                state.remember(forward.kept, where)
            elif settling:
                state.settle(forward.kept)
            if forward.kept:
                forward = replace(forward, kept=())  # their cuts are remembered: a second copy would outlive the block's steps
            for row in range(drafts.rows // canvas.rows):
                mine = candidates if drafts.rows == canvas.rows else candidates.row(row)
                chosen = state.choose(mine, number)
                yield _commit(canvas, mine, chosen, number, calls, total, started)
                number += 1
                state.advance(mine, chosen)
                if state.finished() or state.computes_all() or not _foreseen(canvas, drafts, row + 1):
                    break
        if ends.size and _ended(canvas, block, settings, ends):
            return
        prompt = state.prompt


def _foreseen(canvas: Canvas, drafts: Canvas, row: int) -> bool:
    """Whether the next draft is how the canvas now stands."""
    return row < drafts.rows and bool((drafts.tokens[row] == canvas.tokens[0]).all())


def _commit(
    canvas: Canvas, candidates: Candidates, chosen: Bools, number: int, calls: int, total: int | None, started: float
) -> Step:
    rows, slots = np.nonzero(chosen)
    positions, tokens = candidates.positions[rows, slots], candidates.token[rows, slots]
    where, values = np.zeros(canvas.tokens.shape, dtype=bool), canvas.tokens.copy()
    where[rows, positions], values[rows, positions] = True, tokens
    canvas.write(where, values)
    return Step(
        index=number,
        total_steps=total,
        rows=rows,
        positions=positions,
        tokens=tokens,
        log_probabilities=candidates.log_probability[rows, slots],
        remaining=int(canvas.masked()[:, canvas.region].sum()),
        model_calls=calls,
        seconds=time.perf_counter() - started,
    )


def _ended(canvas: Canvas, block: Block, settings: TextSettings, ends: Ints) -> bool:
    """True when every row's answer is over: a stop token among its finished tokens (the reference looks at the last only)."""
    first = block.stop - 1 if settings.law == "reference" else canvas.start
    return bool(np.isin(canvas.tokens[:, first : block.stop], ends).any(axis=1).all())
