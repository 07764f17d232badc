"""How likely given tokens are under a masked model: in one pass, along the order in which the loop would write them, or by
LLaDA's Monte Carlo law; and the most likely of a few choices for a hole.

A token's log likelihood is the log softmax of the head's logits over the whole vocabulary without the mask, which is never
written; sums are float64. It knows ids, a denoiser and a canvas; it knows nothing of words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmada_lite.decoding.candidates import candidates_of
from mmada_lite.decoding.canvas import Bools, Canvas, Ints
from mmada_lite.decoding.denoiser import Denoiser
from mmada_lite.decoding.forward import Forward, run_forward
from mmada_lite.decoding.sampling import PhiloxSampler, Stream, uniform
from mmada_lite.decoding.settings import MOST_CHOICES, Law, TextSettings
from mmada_lite.errors import Error

Doubles = NDArray[np.float64]
LAWS: tuple[str, ...] = get_args(Law)
MOST_ROWS = 16  # of one model call
END = -1  # in place of an id: any token that ends a text


@dataclass(frozen=True, slots=True)
class Scores:
    """Log likelihoods in nats. by_place [B, N]: of each scored id of an answer, 0 elsewhere; log_likelihood [B]: their sums;
    order [B, N]: at which forward of the chain, from 0, a place was scored, -1 elsewhere and for the other laws."""

    by_place: Doubles
    order: Ints
    model_calls: int

    @property
    def log_likelihood(self) -> Doubles:
        total: Doubles = self.by_place.sum(axis=1)
        return total


@dataclass(frozen=True, slots=True)
class Chosen:
    """The likeliest of k choices. index: which; answer [N]: with it in the hole; positions, log_likelihoods [K]: the places of
    the answer that it takes, with its end, and their scores; log_likelihood, probability [k]: of all, in the order given."""

    index: int
    answer: Ints
    positions: Ints
    by_place: Doubles
    log_likelihood: Doubles
    probability: Doubles
    model_calls: int


def score(
    denoiser: Denoiser,
    prompts: ArrayLike,
    answers: ArrayLike,
    scored: ArrayLike,
    mask: int,
    *,
    law: Law = "chain",
    guidance: float = 0.0,
    block_length: int | None = None,
    draws: int = 128,
    seed: int = 0,
    rows: int = MOST_ROWS,
) -> Scores:
    """How likely the ids of answers [N] or [B, N] are where `scored` [N] or [B, N] is true, given all their other ids and the
    prompts [P] or [B, P]. Masks that are not scored stay masks.

    law: "one_pass" masks all scored ids at once and adds up their marginals: one forward. "chain" starts there and writes one
    id a forward, where the loop at temperature 0 would write next: the most confident place, the leftmost among equals, in the
    first block (of `block_length` scored ids; None: all are one) that is not full. Over all answers of one length these
    probabilities add up to 1. "monte_carlo" masks l of the L scored ids, l drawn from 1..L and then which, and takes L / l
    times the sum of their log likelihoods, `draws` times, and the mean (LLaDA, arXiv 2502.09992, algorithm 3): an estimate of a
    lower bound of what a random order gives. The numbers of draw k are those of the seed at row k, whichever answer it is for.
    rows: answers, or draws of one, that share a forward. Raises Error for another law, a scored mask, nothing scored, and
    arrays that do not fit each other.
    """
    given, before, where = _rows_of(prompts, answers, scored)
    if law not in LAWS:
        raise Error(f"no law is called {law!r}; use one of {', '.join(LAWS)}")
    if not where.any(axis=1).all():
        raise Error("no id of the answer is to be scored; say which")
    if (given[where] == mask).any():
        raise Error("a mask is to be scored; only ids that are given have a likelihood")
    if rows < 1 or draws < 1 or (block_length is not None and block_length < 1):
        raise Error("rows, draws and block_length are whole numbers of at least 1")
    if law == "monte_carlo":
        return _monte_carlo(denoiser, before, given, where, mask, guidance, draws, seed, rows)
    parts = []
    for first in range(0, len(given), rows):
        part = slice(first, first + rows)
        hidden = np.where(where[part], mask, given[part])
        canvas = _canvas(before[part], hidden, where[part], mask, guidance)
        if law == "one_pass":
            parts.append(_one_pass(denoiser, canvas, given[part], guidance))
        else:
            parts.append(_chain(denoiser, canvas, given[part], guidance, block_length=block_length))
    return _joined(parts)


def choose(
    denoiser: Denoiser,
    prompt: ArrayLike,
    answers: Sequence[Sequence[int]],
    choices: Sequence[Sequence[int]],
    mask: int,
    stop: frozenset[int],
    *,
    guidance: float = 0.0,
    rows: int = MOST_ROWS,
) -> Chosen:
    """The likeliest of a few choices of ids at the one hole of an answer [N], behind a prompt [P]: each by its chain, as in
    `score`. answers: one [1, N] for all choices, or one for each. A choice that is shorter than its hole is followed by the end
    of a text, which is as likely as all `stop` tokens together; what lies behind that does not count. The first of equally
    likely ones is chosen.

    Choices with answers of one length share their forwards, up to `rows`. Raises Error for no choice or above 64, for empty and
    equal ones, for one that is longer than its hole, and for an answer that has not exactly one hole.
    """
    given = [np.asarray(each, dtype=np.int64) for each in (answers if len(answers) > 1 else [*answers] * len(choices))]
    _check(choices, given, mask)
    together: dict[int, list[int]] = {}  # length of an answer -> its choices
    for number, answer in enumerate(given):
        together.setdefault(len(answer), []).append(number)
    found: dict[int, tuple[Ints, Ints, Doubles]] = {}  # choice -> the answer, its places [K] and their scores [K]
    calls = 0
    for numbers in together.values():
        for first in range(0, len(numbers), rows):
            part = numbers[first : first + rows]
            holed, targets = np.stack([given[number] for number in part]), np.stack([given[number] for number in part])
            closing = []
            for line, number in enumerate(part):
                start, stop_place = _hole(given[number], mask)
                ids = [*choices[number], END][: stop_place - start]
                targets[line, start : start + len(ids)] = ids
                closing.append(stop_place if stop_place < holed.shape[1] else 0)
            where = targets != holed
            canvas = _canvas(np.tile(np.asarray(prompt, dtype=np.int64), (len(part), 1)), holed, where, mask, guidance)
            scores = _chain(denoiser, canvas, targets, guidance, stop=tuple(sorted(stop)), closing=closing)
            calls += scores.model_calls
            for line, number in enumerate(part):
                filled, places = canvas.tokens[line, canvas.start :], np.flatnonzero(where[line])
                found[number] = filled, places, scores.by_place[line, places]
    totals = np.array([found[number][2].sum() for number in range(len(choices))])
    weights = np.exp(totals - totals.max())
    best = int(totals.argmax())
    return Chosen(best, *found[best], totals, weights / weights.sum(), calls)


def _rows_of(prompts: ArrayLike, answers: ArrayLike, scored: ArrayLike) -> tuple[Ints, Ints, Bools]:
    """Answers [B, N], their prompts [B, P] and what is scored [B, N]."""
    given = np.atleast_2d(np.asarray(answers, dtype=np.int64))
    before = np.atleast_2d(np.asarray(prompts, dtype=np.int64))
    where = np.atleast_2d(np.asarray(scored, dtype=bool))
    if len(before) not in (1, len(given)) or where.shape[1] != given.shape[1] or len(where) not in (1, len(given)):
        raise Error(f"the answers are {given.shape}, the prompts {before.shape} and what is scored {where.shape}; give as many")
    return given, np.repeat(before, len(given) // len(before), axis=0), np.repeat(where, len(given) // len(where), axis=0)


def _canvas(prompts: Ints, answers: Ints, open_places: Bools, mask: int, guidance: float) -> Canvas:
    """Prompts [B, P] and answers [B, N], of which the open places may be written."""
    tokens = np.concatenate([prompts, answers], axis=1)
    editable = np.concatenate([np.zeros(prompts.shape, dtype=bool), open_places], axis=1)
    canvas = Canvas(tokens, editable, prompts.shape[1], tokens.shape[1], mask)
    if guidance > 0:
        canvas.unconditional = np.concatenate([np.full(prompts.shape, mask), answers], axis=1)
        canvas.shared = np.arange(canvas.start, canvas.stop)
    return canvas


def _one_pass(denoiser: Denoiser, canvas: Canvas, targets: Ints, guidance: float) -> Scores:
    forward = run_forward(denoiser, canvas, canvas.masked(), guidance)
    law = _log_softmax(denoiser, forward, canvas.mask)
    by_place = np.zeros(targets.shape)
    rows, slots = np.nonzero(forward.valid)
    places = forward.positions[rows, slots] - canvas.start
    by_place[rows, places] = law[rows, slots, targets[rows, places]]
    return Scores(by_place, np.full(targets.shape, -1), 1)


def _chain(
    denoiser: Denoiser,
    canvas: Canvas,
    targets: Ints,
    guidance: float,
    *,
    block_length: int | None = None,
    stop: tuple[int, ...] = (),
    closing: Sequence[int] = (),
) -> Scores:
    """Write the targets [B, N], one place a row and a forward, where the loop would. closing [B]: up to which place of each
    answer an end fills its hole, as the loop closes one that has something given behind it; 0 where it does not."""
    by_place, order = np.zeros(targets.shape), np.full(targets.shape, -1)
    settings = TextSettings()  # of which a candidate needs to know that masks are not written
    sampler = PhiloxSampler(0, 0.0, canvas.start)
    calls = 0
    block = (canvas.editable.cumsum(axis=1) - 1) // (block_length or canvas.length)  # cut from what is masked, as the loop does
    while (open_places := canvas.masked()).any():
        queried = open_places & (block == np.where(open_places, block, block.max() + 1).min(axis=1, keepdims=True))
        forward = run_forward(denoiser, canvas, queried, guidance)
        candidates = candidates_of(denoiser, forward, settings, sampler, calls, canvas.mask)
        law = _log_softmax(denoiser, forward, canvas.mask)
        slots = np.where(forward.valid, candidates.confidence, -np.inf).argmax(axis=1)
        written, tokens = np.zeros(canvas.tokens.shape, dtype=bool), canvas.tokens.copy()
        for row in map(int, np.flatnonzero(forward.valid.any(axis=1))):
            position, own = int(forward.positions[row, slots[row]]), law[row, slots[row]]
            place = position - canvas.start
            target = int(targets[row, place])
            ends = target == END
            token = stop[int(own[list(stop)].argmax())] if ends else target
            by_place[row, place] = np.logaddexp.reduce(own[list(stop)]) if ends else own[target]
            order[row, place] = calls
            written[row, position], tokens[row, position] = True, token
            if ends and closing[row]:
                behind = slice(position, canvas.start + closing[row])
                canvas.editable[row, behind], written[row, behind], tokens[row, behind] = True, True, token
        canvas.write(written, tokens)
        calls += 1
    return Scores(by_place, order, calls)


def _monte_carlo(
    denoiser: Denoiser,
    prompts: Ints,
    answers: Ints,
    scored: Bools,
    mask: int,
    guidance: float,
    draws: int,
    seed: int,
    rows: int,
) -> Scores:
    by_place, calls = np.zeros(answers.shape), 0
    for row, (answer, where) in enumerate(zip(answers, scored, strict=True)):
        places = np.flatnonzero(where)
        for first in range(0, draws, rows):
            hidden = np.zeros((min(rows, draws - first), answers.shape[1]), dtype=bool)
            hidden[:, places] = _drawn(places.size, seed, np.arange(first, first + len(hidden)))
            holed = np.where(hidden, mask, answer)
            canvas = _canvas(np.tile(prompts[row], (len(hidden), 1)), holed, hidden, mask, guidance)
            scores = _one_pass(denoiser, canvas, np.tile(answer, (len(hidden), 1)), guidance)
            weights = places.size / hidden.sum(axis=1, keepdims=True)
            by_place[row] += (scores.by_place * weights).sum(axis=0) / draws
            calls += 1
    return Scores(by_place, np.full(answers.shape, -1), calls)


def _drawn(count: int, seed: int, draws: Ints) -> Bools:
    """Which of `count` scored ids the draws [K] mask, [K, count]: l = 1 + floor(u * count) of them, those with the l smallest
    numbers."""
    shares = uniform(seed, Stream.SCORE_COUNT, 0, draws, 0).astype(np.float64)
    numbers = uniform(seed, Stream.SCORE_PLACES, 0, draws[:, None], np.arange(count))
    rank = np.argsort(np.argsort(numbers, axis=1, kind="stable"), axis=1, kind="stable")
    masked: Bools = rank < 1 + (shares * count).astype(np.int64)[:, None]
    return masked


def _log_softmax(denoiser: Denoiser, forward: Forward, mask: int) -> Doubles:
    """[B, Q, V], nats, minus infinity at the mask. Raises Error where the model's numbers are not finite."""
    logits = denoiser.logits("text", forward.hidden, forward.mix).astype(np.float64)
    if not np.isfinite(logits[forward.valid]).all():
        raise Error("the model's numbers are not finite; check the bundle with `mmada-lite info FOLDER --verify`")
    logits[..., mask] = -np.inf
    logits -= logits.max(axis=-1, keepdims=True)
    law: Doubles = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return law


def _joined(parts: Sequence[Scores]) -> Scores:
    by_place, order = np.concatenate([part.by_place for part in parts]), np.concatenate([part.order for part in parts])
    return Scores(by_place, order, sum(part.model_calls for part in parts))


def _hole(answer: Ints, mask: int) -> tuple[int, int]:
    """From and to which place the one hole of an answer lies."""
    open_places = np.flatnonzero(answer == mask)
    if answer.ndim != 1 or not open_places.size or open_places[-1] - open_places[0] + 1 != open_places.size:
        raise Error("choices are for one hole, a run of masks, and the answer has none or more; leave one")
    return int(open_places[0]), int(open_places[-1]) + 1


def _check(choices: Sequence[Sequence[int]], answers: Sequence[Ints], mask: int) -> None:
    if not 1 <= len(choices) <= MOST_CHOICES:
        raise Error(f"there are {len(choices)} choices; give 1 to {MOST_CHOICES}")
    if len(answers) != len(choices):
        raise Error(f"there are {len(choices)} choices and {len(answers)} answers; give one for all, or one for each")
    seen: dict[tuple[int, ...], int] = {}
    for number, (choice, answer) in enumerate(zip(choices, answers, strict=True), 1):
        ids, (start, stop) = tuple(map(int, choice)), _hole(answer, mask)
        if not ids or mask in ids or min(ids) < 0:
            raise Error(f"choice {number} is empty or holds the mask; give ids of text")
        if (twin := seen.setdefault(ids, number)) != number:
            raise Error(f"choices {twin} and {number} are the same tokens; leave one out")
        if len(ids) > stop - start:
            raise Error(f"choice {number} takes {len(ids)} tokens and the hole has {stop - start}; make the hole longer")
