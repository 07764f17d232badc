"""Exported graphs compute what the reference computes: hidden states, logits, choices, codes, pixels."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from recorded import recorded_vocabulary
from safetensors.numpy import load_file

from mmada_lite.bundle import Bundle
from mmada_lite.decoding.denoiser import Window
from mmada_lite.decoding.kv_cache import KeyValues
from mmada_lite.export.bundle import export_checkpoint, export_codec
from mmada_lite.export.graph import WeightFile
from mmada_lite.export.weights import Weight
from mmada_lite.ort.denoiser import OnnxDenoiser
from mmada_lite.ort.devices import choose_device
from mmada_lite.ort.session import open_session

CASES = ("mha", "gqa", "realvocab")
ONE = np.ones((1, 1), dtype=np.float32)
Exported = Callable[..., tuple[Bundle, OnnxDenoiser]]


@pytest.fixture(scope="session")
def exported(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A recorded model as an opened bundle with its sessions; each is exported once."""
    ready: dict[tuple[str, str], tuple[Bundle, OnnxDenoiser]] = {}

    def export(case: str, precision: str = "fp32") -> tuple[Bundle, OnnxDenoiser]:
        if (case, precision) not in ready:
            source = golden / "llm" / case
            target = tmp_path_factory.mktemp("bundles") / case
            export_checkpoint(source, target, precision=precision, vocabulary=recorded_vocabulary(source))  # type: ignore[arg-type]
            bundle = Bundle.open(target)
            sessions = {name: open_session(bundle.graph_path(name), choose_device("cpu")) for name in bundle.graphs}
            shape = bundle.architecture
            ready[case, precision] = bundle, OnnxDenoiser(sessions, shape.n_layers, shape.n_kv_heads, shape.head_dim)
        return ready[case, precision]

    return export


def window_over(tokens: np.ndarray, queries: np.ndarray | None = None, past: KeyValues | None = None, start: int = 0) -> Window:
    """A window over tokens [B, W] at positions from `start`."""
    positions = np.arange(start, start + tokens.shape[1])
    everything = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    return Window(tokens, positions, np.ascontiguousarray(everything if queries is None else queries), past)


def unpadded(golden: Path, case: str) -> list[tuple[dict[str, np.ndarray], int, np.ndarray, np.ndarray]]:
    """Each recorded row without its left pads: the recording, row number, kept columns, tokens [1, W]."""
    data = load_file(golden / "llm" / case / "forward.safetensors")
    kept = [np.flatnonzero(mask) for mask in data["attention_mask"]]
    return [(data, row, columns, data["input_ids"][row : row + 1, columns]) for row, columns in enumerate(kept)]


def head(denoiser: OnnxDenoiser, name: str, hidden: np.ndarray, temperature: float, uniform: np.ndarray) -> list[np.ndarray]:
    """token, log_probability, entropy and logits of one head for one row of guidance weight 1."""
    feeds = {"hidden": hidden, "mix": ONE, "temperature": np.array(temperature, np.float32), "uniform": uniform}
    outputs: list[np.ndarray] = denoiser._sessions[name].run(["token", "log_probability", "entropy", "logits"], feeds)
    return outputs


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_reference(golden: Path, exported: Exported, case: str) -> None:
    _, denoiser = exported(case)
    for data, row, columns, tokens in unpadded(golden, case):
        hidden, _ = denoiser.forward(window_over(tokens), keep=False)
        logits = denoiser.logits("text", hidden, ONE)[0]
        np.testing.assert_allclose(hidden[0], data["hidden_states_bias"][-1, row, columns], atol=2e-4)
        if case != "realvocab":
            np.testing.assert_allclose(logits, data["logits_bias"][row, columns], atol=2e-4)
            continue
        np.testing.assert_allclose(logits[:, data["columns"]], data["logits_bias_cols"][row, columns], atol=2e-4)
        total = np.log(np.exp(logits.astype(np.float64)).sum(-1))
        np.testing.assert_allclose(total, data["logits_bias_logsumexp"][row, columns], atol=2e-4)


@pytest.mark.parametrize("case", ["mha", "gqa"])
def test_half_precision_weights_stay_close(golden: Path, exported: Exported, case: str) -> None:
    bundle, denoiser = exported(case, "fp16")
    for data, row, columns, tokens in unpadded(golden, case):
        logits = denoiser.logits("text", denoiser.forward(window_over(tokens), keep=False)[0], ONE)[0]
        expected = data["logits_bias"][row, columns]
        assert np.abs(logits - expected).max() < 0.1
        assert (logits.argmax(-1) == expected.argmax(-1)).mean() > 0.9
    assert bundle.size < 0.6 * exported(case)[0].size
    assert {group.format for group in bundle.quantization.values()} == {"fp16"}


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("case", ["mha", "gqa"])
def test_a_past_equals_full_attention_in_any_order(golden: Path, exported: Exported, case: str, precision: str) -> None:
    """Keys and values that a full pass made, fed back around a window, give what the full pass gives there. In int8 the
    operator of attention joins them itself."""
    _, denoiser = exported(case, precision)
    tokens = unpadded(golden, case)[1][3]
    hidden, kept = denoiser.forward(window_over(tokens), keep=True)
    assert kept is not None
    window = slice(9, 14)
    outside = np.random.default_rng(0).permutation([i for i in range(tokens.shape[1]) if not 9 <= i < 14])
    past = KeyValues(tuple(k[:, :, outside] for k in kept.keys), tuple(v[:, :, outside] for v in kept.values))
    again, fresh = denoiser.forward(window_over(tokens[:, window], past=past, start=9), keep=True)
    # Exact at every layer, since outside the window the past holds what the full pass left there.
    np.testing.assert_allclose(again, hidden[:, window], atol=2e-4)
    assert fresh is not None
    for ours, theirs in zip((*fresh.keys, *fresh.values), (*kept.keys, *kept.values), strict=True):
        np.testing.assert_allclose(ours, theirs[:, :, window], atol=2e-4)


def test_queries_choose_what_leaves_the_backbone(golden: Path, exported: Exported) -> None:
    _, denoiser = exported("gqa")
    data = unpadded(golden, "gqa")[1][0]
    tokens = data["input_ids"]
    hidden, kept = denoiser.forward(window_over(tokens), keep=True)
    queries = np.array([[5, 2, 2], [0, 23, 7], [1, 1, 1]])
    chosen, same = denoiser.forward(window_over(tokens, queries), keep=True)
    np.testing.assert_allclose(chosen, np.take_along_axis(hidden, queries[..., None], axis=1), atol=1e-5)
    assert kept is not None
    assert same is not None
    for ours, theirs in zip((*kept.keys, *kept.values), (*same.keys, *same.values), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_positions_matter_only_relatively(golden: Path, exported: Exported) -> None:
    _, denoiser = exported("mha")
    tokens = unpadded(golden, "mha")[0][3]
    near, _ = denoiser.forward(window_over(tokens), keep=False)
    far, _ = denoiser.forward(window_over(tokens, start=100), keep=False)
    np.testing.assert_allclose(near, far, atol=2e-4)


def test_mix_guides_before_the_head(exported: Exported) -> None:
    _, denoiser = exported("gqa")
    hidden = np.random.default_rng(0).standard_normal((2, 6, 64), dtype=np.float32)
    apart = denoiser.logits("text", hidden, np.eye(2, dtype=np.float32))
    mixed = denoiser.logits("text", hidden, np.array([[4.5, -3.5]], np.float32))
    np.testing.assert_allclose(mixed[0], 4.5 * apart[0] - 3.5 * apart[1], atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_the_image_head_is_the_code_columns(exported: Exported, case: str) -> None:
    bundle, denoiser = exported(case)
    first, count = bundle.vocabulary.image_code_offset, bundle.vocabulary.codebook_size
    hidden = np.random.default_rng(1).standard_normal((1, 5, bundle.architecture.d_model), dtype=np.float32)
    text, image = denoiser.logits("text", hidden, ONE), denoiser.logits("image", hidden, ONE)
    np.testing.assert_allclose(image, text[..., first : first + count], atol=1e-5)
    assert (denoiser.predict("image", hidden, ONE, 0.0, None).token == image.argmax(-1)).all()


@pytest.mark.parametrize("case", CASES)
def test_greedy_takes_the_most_probable_and_measures_it(exported: Exported, case: str) -> None:
    bundle, denoiser = exported(case)
    hidden = 3 * np.random.default_rng(2).standard_normal((1, 40, bundle.architecture.d_model), dtype=np.float32)
    token, log_probability, entropy, logits = head(denoiser, "text_head", hidden, 0.0, np.full((1, 40), 0.9, np.float32))
    expected = log_softmax(logits)
    np.testing.assert_array_equal(token, logits.argmax(-1))
    np.testing.assert_allclose(log_probability, expected.max(-1), atol=5e-6)
    np.testing.assert_allclose(entropy, -(np.exp(expected) * expected).sum(-1), atol=2e-5)


def test_of_equal_logits_the_lowest_index_wins(exported: Exported) -> None:
    _, denoiser = exported("mha")
    token, log_probability, entropy, _ = head(
        denoiser, "text_head", np.zeros((1, 3, 64), np.float32), 0.0, np.zeros((1, 3), np.float32)
    )
    assert (token == 0).all()
    np.testing.assert_allclose(log_probability, -math.log(272), atol=1e-6)
    np.testing.assert_allclose(entropy, math.log(272), atol=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_drawing_inverts_the_cumulative_distribution(exported: Exported, case: str, temperature: float) -> None:
    bundle, denoiser = exported(case)
    rng = np.random.default_rng(3)
    hidden = rng.standard_normal((1, 200, bundle.architecture.d_model), dtype=np.float32)
    uniform = rng.random((1, 200), dtype=np.float32)
    uniform[0, :4] = 0, 1 - 2**-24, 1 - 2**-23, 1e-7
    token, log_probability, _, logits = head(denoiser, "text_head", hidden, temperature, uniform)
    scaled = logits.astype(np.float64) / temperature
    rising = np.exp(scaled - scaled.max(-1, keepdims=True)).cumsum(-1)
    expected = (rising <= uniform[..., None] * rising[..., -1:]).sum(-1)
    # Where a boundary lies within float32 rounding of the draw, the neighbour is as right.
    edges = np.take_along_axis(rising / rising[..., -1:], token[..., None], -1)[..., 0]
    assert ((token == expected) | (np.abs(edges - uniform) < 2e-6) | (np.abs(token - expected) <= 1)).all()
    assert (token == expected)[0, 4:].mean() > 0.98
    np.testing.assert_allclose(
        log_probability, np.take_along_axis(log_softmax(logits), token[..., None], -1)[..., 0], atol=2e-5
    )


def test_a_draw_never_takes_an_impossible_token(exported: Exported) -> None:
    """At a low temperature all but the best token underflow to probability zero, whatever the uniform number."""
    _, denoiser = exported("mha")
    hidden = 30 * np.random.default_rng(4).standard_normal((1, 64, 64), dtype=np.float32)
    uniform = np.tile(np.array([0, 1e-30, 0.5, 1 - 2**-24], np.float32), 16)[None]
    token, _, _, logits = head(denoiser, "text_head", hidden, 0.01, uniform)
    np.testing.assert_array_equal(token, logits.argmax(-1))


@pytest.mark.parametrize("number", [0, 1])
def test_codec_equals_the_reference(golden: Path, tmp_path: Path, number: int) -> None:
    paths = export_codec(golden / "vq", tmp_path / "vq")
    encoder, decoder = (open_session(paths[name], choose_device("cpu")) for name in ("image_encoder", "image_decoder"))
    data = {key.removeprefix(f"img{number}."): value for key, value in load_file(golden / "vq" / "io.safetensors").items()}
    (codes,) = encoder.run(["codes"], {"pixels": data["pixels"]})
    np.testing.assert_array_equal(codes.reshape(data["codes"].shape), data["codes"])
    for given, expected in (("codes", "decoded"), ("random_codes", "random_decoded")):
        (pixels,) = decoder.run(None, {"codes": data[given].reshape(codes.shape)})
        np.testing.assert_allclose(pixels, data[expected], atol=1e-4)


def test_transposing_in_chunks_loses_nothing(tmp_path: Path) -> None:
    """A matrix of several chunks arrives as its transpose, bit for bit."""
    matrix = np.random.default_rng(0).standard_normal((4096, 1100), dtype=np.float32)

    class Source:
        def shape(self, name: str) -> tuple[int, ...]:
            return matrix.shape

        def read(self, name: str, rows: slice | None = None) -> np.ndarray:
            return matrix if rows is None else matrix[rows]

    weight = Weight(Source(), "w", (5, 4000))
    assert len(list(weight.chunks())) > 1
    with WeightFile(tmp_path / "w.bin", lambda name, size: None) as weights:
        weights.append("pad", (3,), np.dtype("float32"), [np.zeros(3)], transposed=False)
        offset, length = weights.append("w", weight.shape, np.dtype("float32"), weight.chunks(), transposed=True)
    stored = np.fromfile(tmp_path / "w.bin", np.float32, offset=offset, count=length // 4).reshape(1100, 3995)
    np.testing.assert_array_equal(stored, matrix[5:4000].T)


def test_a_bound_past_serves_its_own_windows_alone(exported: Exported) -> None:
    """Steps of a block lean on one past, which is bound once: other tokens, pasts and windows give what they gave before."""
    _, denoiser = exported("mha")
    tokens = np.arange(12, dtype=np.int64)[None] + 20

    def states(given: np.ndarray, past: KeyValues) -> np.ndarray:
        return denoiser.forward(window_over(given, past=past, start=8), keep=False)[0]

    def past_of(given: np.ndarray) -> KeyValues:
        kept = denoiser.forward(window_over(given), keep=True)[1]
        assert kept is not None
        return kept

    pasts, windows = (past_of(tokens[:, :8]), past_of(tokens[:, 2:10])), (tokens[:, 8:], tokens[:, 7:11], tokens[:, 9:])
    alone = {}
    for p, past in enumerate(pasts):
        for w, window in enumerate(windows):
            denoiser._last = None
            alone[p, w] = states(window, past)
    for p, w in ((0, 0), (0, 1), (0, 0), (1, 0), (1, 2), (0, 2), (1, 2), (1, 1), (0, 1)):
        np.testing.assert_array_equal(states(windows[w], pasts[p]), alone[p, w])
    last = denoiser._last
    states(windows[0], pasts[0])
    assert denoiser._last is last, "bound anew for the same past"
    assert not np.array_equal(alone[0, 0], alone[1, 0])


def test_a_head_that_makes_few_logits_at_a_time_says_the_same(exported: Exported) -> None:
    """A large model's head goes through its rows piece by piece: also those of a guided pair, and drawn ones."""
    bundle, whole_at_once = exported("mha")
    a = bundle.architecture
    by_pieces = OnnxDenoiser(
        whole_at_once._sessions, a.n_layers, a.n_kv_heads, a.head_dim, most_logits=3 * 4 * a.vocab_size + 5
    )
    runs: list[int] = []
    head_run = by_pieces._run
    by_pieces._run = lambda graph, *given: runs.append(1) or head_run(graph, *given)  # type: ignore
    random = np.random.default_rng(0)
    hidden, pair = random.standard_normal((2, 8, a.d_model), np.float32), np.array([[2.5, -1.5]], np.float32)
    uniform = random.random((1, 8), np.float32)
    for mix, states, temperature, drawn in ((pair, hidden, 0.0, None), (ONE, hidden[:1], 0.7, uniform)):
        runs.clear()
        predicted = by_pieces.predict("text", states, mix, temperature, drawn)
        assert len(runs) == 3
        expected = whole_at_once.predict("text", states, mix, temperature, drawn)
        np.testing.assert_array_equal(predicted.token, expected.token)
        np.testing.assert_allclose(predicted.log_probability, expected.log_probability, atol=1e-5)
        np.testing.assert_allclose(predicted.entropy, expected.entropy, atol=1e-5)  # type: ignore[arg-type]
