"""Along one denoising trajectory: what a reference reads and writes at each step, and how another model answers the same.

A reference decodes prompts with the project's own loops and is overheard; candidates are then given the very same states.
It knows denoisers and nothing of formats, of files, or of where a candidate comes from.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mmada_lite.decoding import generate
from mmada_lite.decoding.denoiser import Denoiser, Floats, Head, Prediction, Window
from mmada_lite.decoding.generate import TextTokens
from mmada_lite.decoding.kv_cache import KeyValues
from mmada_lite.decoding.rows import chat_ids, paint_prompt, picture_prompt, thought_prompt
from mmada_lite.errors import Error
from mmada_lite.model import Model
from mmada_lite.ort.lazy import LazyDenoiser
from mmada_lite.quant.prompts import Prompt
from mmada_lite.vocabulary import with_tags

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class State:
    """One model call of a decoding. prompt: its number; windows: one a branch of guidance; mix, temperature, uniform: as
    the head was given them; written [Q]: which of the queried positions this step wrote."""

    prompt: int
    task: str
    head: Head
    windows: tuple[Window, ...]
    mix: Floats
    temperature: float
    uniform: Floats | None
    written: Bools


@dataclass(frozen=True, slots=True)
class Answers:
    """How one candidate answered, a number a prompt [prompts]: queried positions, those of them whose most probable token
    is the reference's, the sum of KL(reference || candidate) in nats, writes, and those of them that would have been
    another token by the same random number; and the seconds of each state, the candidate's and the reference's."""

    positions: Ints
    agreed: Ints
    divergence: NDArray[np.float64]
    writes: Ints
    flips: Ints
    seconds: NDArray[np.float64]
    reference_seconds: NDArray[np.float64]


class Overheard(LazyDenoiser):
    """A denoiser that keeps what it was asked in the last step."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(lambda: inner)
        self.windows: list[Window] = []
        self.call: tuple[Head, tuple[Window, ...], Floats, float, Floats | None] | None = None

    def forward(self, window: Window, *, keep: bool) -> tuple[Floats, KeyValues | None]:
        self.windows.append(replace(window, tokens=window.tokens.copy()))  # the canvas goes on changing
        return super().forward(window, keep=keep)

    def predict(self, head: Head, hidden: Floats, mix: Floats, temperature: float, uniform: Floats | None) -> Prediction:
        self.call = head, tuple(self.windows), mix, temperature, uniform
        self.windows = []
        return super().predict(head, hidden, mix, temperature, uniform)


def trajectories(model: Model, prompts: Sequence[Prompt], kept: int, seed: int = 0) -> list[State]:
    """Decode prompts with a bundle's own settings, without a cache; `kept` states of each, spread evenly over its steps.

    Paint first: pictures that are asked about are those just drawn, in turn. Of what is thought about before it is drawn the
    states are the drawing's; a thought that cannot be drawn from leaves the prompt alone, as it does for a user.
    """
    states: list[State] = []
    pictures: list[Ints] = []
    order = {"paint": 0, "ask": 1, "chat": 2, "think": 3}
    numbered = sorted(enumerate(prompts), key=lambda pair: order[pair[1].task])
    for number, prompt in numbered:
        picture = pictures[number % len(pictures)] if pictures else None
        decoded, codes = _decoded(model, prompt, number, picture, seed + number)
        if codes is not None:
            pictures.append(codes)
        picks = np.unique(np.linspace(0, len(decoded) - 1, min(kept, len(decoded))).round().astype(int))
        states += [decoded[i] for i in picks]
    return states


def thinks(model: Model) -> bool:
    """Whether a model writes a thought that it can draw from."""
    return model.bundle.image is not None and _thought(model, "a cat left of a car", 0) is not None


def _thought(model: Model, text: str, seed: int) -> str | None:
    try:
        drawing = model.paint(text, seed=seed, think=True)
        next(step for step in drawing if step.predicted_codes is not None)  # the thought is over when the picture begins
        return drawing.thought
    except Error:  # no room for one
        return None


def _decoded(model: Model, prompt: Prompt, number: int, picture: Ints | None, seed: int) -> tuple[list[State], Ints | None]:
    special, overheard = model.vocabulary.special, Overheard(model.denoiser)
    if prompt.task in ("paint", "think"):
        count, text = model.codec.grid**2, model.tokenizer.encode(prompt.text)
        thought = _thought(model, prompt.text, seed) if prompt.task == "think" else None
        ids = paint_prompt(text, model.vocabulary)
        if thought is not None:
            ids = thought_prompt(text, model.tokenizer.encode(with_tags(thought)), model.vocabulary)
        every = np.ones(count, dtype=bool)
        image = model.image_defaults.replace(refresh=1, unconditional_every=1, guidance_from=0.0, guidance_to=1.0)
        decoding = generate.draw(overheard, ids, np.zeros(count), every, image, model.vocabulary, seed=seed)
    else:
        before = [] if prompt.task == "chat" or picture is None else picture_prompt(picture, model.vocabulary)
        row = before + chat_ids(model.tokenizer, model.vocabulary, [{"role": "user", "content": prompt.text}])
        tokens = TextTokens.of(special, model.tokenizer)
        decoding = generate.complete(overheard, row, model.text_defaults.replace(cache="none"), tokens, seed=seed)
    states = []
    for step in decoding.steps:
        assert overheard.call is not None
        head, windows, mix, temperature, uniform = overheard.call
        written = np.isin(windows[0].queries[0], step.positions)
        states.append(State(number, prompt.task, head, windows, mix, temperature, uniform, written))
    return states, decoding.codes[0] if prompt.task == "paint" else None


def answer(denoiser: Denoiser, state: State) -> Floats:
    """The logits [Q, V] of a state."""
    hidden = np.concatenate([denoiser.forward(window, keep=False)[0] for window in state.windows])
    logits: Floats = denoiser.logits(state.head, hidden, state.mix)[0]
    return logits


def compare(reference: Denoiser, candidate: Denoiser, states: Sequence[State], prompts: int) -> Answers:
    """How a candidate answers the states, beside the reference: they take turns at each state, so that their times are of one
    and the same machine."""
    answer(candidate, states[0])  # warm
    counts = np.zeros((4, prompts), np.int64)  # positions, agreed, writes, flips
    divergence, seconds = np.zeros(prompts), np.zeros((2, len(states)))
    for number, state in enumerate(states):
        logits = []
        for which, denoiser in enumerate((reference, candidate)):
            started = time.perf_counter()
            logits.append(answer(denoiser, state))
            seconds[which, number] = time.perf_counter() - started
        theirs, ours = map(log_softmax, logits)
        flipped = written_tokens(theirs, state) != written_tokens(ours, state)
        agreed = theirs.argmax(-1) == ours.argmax(-1)
        counts[:, state.prompt] += np.array((len(agreed), agreed.sum(), state.written.sum(), flipped[state.written].sum()))
        divergence[state.prompt] += (np.exp(theirs) * (theirs - ours)).sum()
    positions, agreements, writes, flips = counts
    return Answers(positions, agreements, divergence, writes, flips, seconds[1], seconds[0])


def log_softmax(logits: Floats) -> NDArray[np.float64]:
    wide: NDArray[np.float64] = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(-1, keepdims=True))
    return wide


def written_tokens(certain: NDArray[np.float64], state: State) -> Ints:
    """The token [Q] that decoding would write at each position: the most probable, or the one that the state's own
    uniform number draws."""
    if state.temperature == 0 or state.uniform is None:
        best: Ints = certain.argmax(-1)
        return best
    cumulative = np.exp(log_softmax((certain / state.temperature).astype(np.float32))).cumsum(-1)
    drawn: Ints = (cumulative <= state.uniform[0][:, None] * cumulative[:, -1:]).sum(-1)
    bounded: Ints = np.minimum(drawn, certain.shape[-1] - 1)
    return bounded
