"""The loop of texts, written once: block by block, the surest positions first. A generator of steps.

It knows a canvas, a denoiser and a sampler. It knows nothing of onnxruntime or torch, of tokenizers, or of pictures.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from mmada_lite.cache import Memory, Room
from mmada_lite.canvas import Bools, Canvas, Ints
from mmada_lite.course import Course
from mmada_lite.denoiser import Denoiser
from mmada_lite.errors import Error
from mmada_lite.guesses import Guesses, guess
from mmada_lite.reading import Step, read
from mmada_lite.sampling import Sampler
from mmada_lite.settings import Block, TextSettings


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
    ends, rooms, others = np.array(sorted(stop), dtype=np.int64), (Room(), Room()), (Room(), Room())
    prompt: Memory | None = None
    for block in blocks:
        course = Course(canvas, block, settings, sampler, ends, rooms, others, np.array(closing, dtype=np.int64), prompt=prompt)
        while not course.finished():
            keep = course.computes_all()
            settling = not keep and course.settling()
            drafts = canvas if keep else course.drafted(number)
            where = course.asked(drafts, keep)
            reading = read(denoiser, drafts, where, settings.guidance, course.leaning(keep), keep or settling, course.end)
            guesses = guess(denoiser, reading, settings, sampler, number, canvas.mask)
            calls += 1
            if keep:
                course.remember(reading.kept, where)
            elif settling:
                course.settle(reading.kept)
            if reading.kept:
                reading = replace(reading, kept=())  # their cuts are remembered: a second copy would outlive the block's steps
            for row in range(drafts.rows // canvas.rows):
                mine = guesses if drafts.rows == canvas.rows else guesses.row(row)
                chosen = course.choose(mine, number)
                yield _commit(canvas, mine, chosen, number, calls, total, started)
                number += 1
                course.advance(mine, chosen)
                if course.finished() or course.computes_all() or not _foreseen(canvas, drafts, row + 1):
                    break
        if ends.size and _ended(canvas, block, settings, ends):
            return
        prompt = course.prompt


def _foreseen(canvas: Canvas, drafts: Canvas, row: int) -> bool:
    """Whether the next draft is how the canvas now stands."""
    return row < drafts.rows and bool((drafts.tokens[row] == canvas.tokens[0]).all())


def _commit(
    canvas: Canvas, guesses: Guesses, chosen: Bools, number: int, calls: int, total: int | None, started: float
) -> Step:
    rows, slots = np.nonzero(chosen)
    positions, tokens = guesses.positions[rows, slots], guesses.token[rows, slots]
    where, values = np.zeros(canvas.tokens.shape, dtype=bool), canvas.tokens.copy()
    where[rows, positions], values[rows, positions] = True, tokens
    canvas.write(where, values)
    return Step(
        index=number,
        of=total,
        rows=rows,
        positions=positions,
        tokens=tokens,
        log_probabilities=guesses.log_probability[rows, slots],
        remaining=int(canvas.masked()[:, canvas.region].sum()),
        forwards=calls,
        seconds=time.perf_counter() - started,
    )


def _ended(canvas: Canvas, block: Block, settings: TextSettings, ends: Ints) -> bool:
    """True when every row's answer is over: a stop token among its finished tokens (the reference looks at the last only)."""
    first = block.stop - 1 if settings.law == "reference" else canvas.start
    return bool(np.isin(canvas.tokens[:, first : block.stop], ends).any(axis=1).all())
