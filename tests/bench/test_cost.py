"""The written cost of a decode: it counts what the loops really ask for, and grows as arithmetic says."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from conftest import MockDenoiser

from mmada_lite.bench.speed import cost
from mmada_lite.bench.timed import Clock, TimedDenoiser
from mmada_lite.bundle import Architecture
from mmada_lite.decoding.generate import TextTokens, complete, draw
from mmada_lite.decoding.rows import paint_prompt, unconditional_prompt
from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.vocabulary import Vocabulary

SHAPE = Architecture(64, 3, 4, 2, 16, 96, 144, 10000.0, 1e-5, 512)
MODEL = cost.Transformer(
    SHAPE,
    32,
    {"backbone": "int8", "text_head": "int8", "image_head": "int8"},
    {"backbone": 3000, "text_head": 900, "image_head": 200},
)
RATES = cost.Rates({"int8": {1: 1e9, 100: 1e11}, "fp32": {1: 1e9}}, {1: 1e10}, {1: 1e9}, 1e9, 1e-6)


def matrices() -> int:
    """Weights of the body that a token is multiplied with."""
    keys = SHAPE.n_kv_heads * SHAPE.head_dim
    layer = 2 * SHAPE.d_model**2 + 2 * SHAPE.d_model * keys + 3 * SHAPE.d_model * SHAPE.mlp_hidden_size
    return SHAPE.n_layers * layer


@pytest.mark.parametrize("window", [1, 7, 64])
def test_a_forward_multiplies_every_weight_by_every_token(window: int) -> None:
    pieces = cost.forward(MODEL, window, 5, window)
    assert cost.matrix_flops(pieces) == 2 * matrices() * window
    assert sum(p.bytes for p in pieces if p.kind == "matrix") == pytest.approx(MODEL.bytes["backbone"])
    attention = sum(p.flops for p in pieces if p.kind == "attention")
    assert attention == 4 * SHAPE.n_layers * SHAPE.d_model * window * (window + 5)


def test_doubling_the_window_doubles_products_and_quadruples_attention() -> None:
    once, twice = (cost.forward(MODEL, w, 0, w) for w in (50, 100))
    assert cost.matrix_flops(twice) == 2 * cost.matrix_flops(once)
    flops = [sum(p.flops for p in pieces if p.kind == "attention") for pieces in (once, twice)]
    assert flops[1] == 4 * flops[0]
    assert cost.matrix_flops(cost.forward(MODEL, 50, 0, 50, batch=2)) == 2 * cost.matrix_flops(once)


def counted(forwards: Sequence[tuple[int, int, int, int]]) -> float:
    return sum(cost.matrix_flops(cost.forward(MODEL, w, past, rows, batch)) for batch, w, past, rows in forwards)


@pytest.mark.parametrize("cache", ["none", "prefix", "dual", "prompt", "settled"])
@pytest.mark.parametrize(("answer", "block", "steps"), [(12, 12, 12), (12, 4, 6), (10, 4, 5), (9, 2, 9)])
@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_text_costs_what_the_loop_asks_for(
    vocabulary: Vocabulary, cache: str, answer: int, block: int, steps: int, guidance: float
) -> None:
    kept = {"cache": "dual", "kv_commit_every": 2} if cache == "settled" else {"cache": cache}
    settings = TextSettings(answer_length=answer, block_length=block, steps=steps, guidance=guidance).replace(**kept)  # type: ignore[arg-type]
    watched = TimedDenoiser(MockDenoiser({p: p % 40 for p in range(30)}, {p: 1 / (2 + p) for p in range(30)}), Clock())
    taken = list(complete(watched, [1, 2, 3, 4, 5], settings, TextTokens.of(vocabulary.special, None)).steps)
    said = list(cost.text(MODEL, 5, settings))
    assert len(said) == len(taken)
    assert sum(map(cost.matrix_flops, said)) == counted(watched.clock.forwards)


@pytest.mark.parametrize(("unknown", "steps", "guidance"), [(16, 5, 2.0), (16, 16, 0.0), (7, 3, 1.0), (3, 3, 0.0)])
def test_drawing_costs_what_the_loop_asks_for(vocabulary: Vocabulary, unknown: int, steps: int, guidance: float) -> None:
    settings = ImageSettings(steps=steps, guidance=guidance)
    prompt, nothing = paint_prompt([1, 2, 3], vocabulary), unconditional_prompt(vocabulary)
    watched = TimedDenoiser(MockDenoiser(dict.fromkeys(range(40), 7)), Clock())
    taken = list(draw(watched, prompt, np.zeros(16), np.arange(16) < unknown, settings, vocabulary).steps)
    lengths = tuple(len(ids) + 17 for ids in ((prompt, nothing) if guidance else (prompt,)))
    said = list(cost.drawing(MODEL, lengths, unknown, settings))
    assert len(said) == len(taken)
    assert sum(map(cost.matrix_flops, said)) == counted(watched.clock.forwards)


def test_caches_make_a_decode_cheaper() -> None:
    plain = TextSettings(answer_length=64, block_length=16, steps=64)
    settings = [plain.replace(cache=c) for c in ("none", "prefix", "dual", "prompt")]  # type: ignore[arg-type]
    none, prefix, dual, prompt = (sum(cost.predicted(s, RATES) for s in cost.text(MODEL, 100, each)) for each in settings)
    assert none > prefix > dual > prompt


def test_a_head_is_asked_for_its_own_columns() -> None:
    text, image = cost.head(MODEL, "text_head", 9), cost.head(MODEL, "image_head", 9)
    assert cost.matrix_flops(text, "head") == 2 * 9 * 64 * 144
    assert cost.matrix_flops(image, "head") == 2 * 9 * 64 * 32
    assert cost.predicted(cost.head(MODEL, "text_head", 9, drawn=True), RATES) > cost.predicted(text, RATES)


def test_a_piece_takes_the_longer_of_arithmetic_and_traffic() -> None:
    assert RATES.seconds(cost.Piece("matrix", "head", 2e9, 1e9, 1, "int8")) == 2.0
    assert RATES.seconds(cost.Piece("matrix", "head", 2e9, 5e9, 1, "int8")) == 5.0
    assert RATES.seconds(cost.Piece("memory", "copying", bytes=3e9)) == 3.0
    assert RATES.seconds(cost.Piece("nodes", "head", 1000)) == pytest.approx(1e-3)
    assert RATES.seconds(cost.Piece("elementwise", "head", bytes=2e9, tokens=50)) == 2.0


def test_rates_are_those_measured_and_between_them_a_power_law() -> None:
    rates = {1: 10.0, 100: 1000.0, 400: 2000.0}
    assert [cost.at(rates, n) for n in rates] == pytest.approx(list(rates.values()))
    assert cost.at(rates, 10) == pytest.approx(100.0)
    assert cost.at(rates, 200) == pytest.approx(1000 * math.sqrt(2))
    assert cost.at(rates, 5000) == 2000.0
    assert cost.at({32: 7.0}, 1) == cost.at({32: 7.0}, 99) == 7.0
