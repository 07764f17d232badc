"""Bundles for processors whose keys and values are in half precision: the same decodings from half of the caches' memory."""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import mmada_lite
from mmada_lite import Model
from mmada_lite.bundle import HALF_CACHES, MANIFEST, Bundle
from mmada_lite.cli.main import main
from mmada_lite.decoding.denoiser import Denoiser, Window
from mmada_lite.decoding.kv_cache import KeyValues
from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.errors import Error
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.memory_plan import Shape, caches
from mmada_lite.ort.loader import check_contracts, open_denoiser
from mmada_lite.ort.session import Device, open_session

CPU = Device("cpu", "a test's")
TEXT = TextSettings(answer_length=16, steps=8, block_length=4)
TOKENS = np.random.default_rng(0).integers(0, 100, (1, 40))
Made = dict[str, Path]


@pytest.fixture(scope="module")
def made(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Precision, with + for caches in half precision, -> the tiny checkpoint as a bundle."""
    folder = tmp_path_factory.mktemp("half")
    return {
        name: export_checkpoint(
            *(tiny_checkpoint, folder / name),
            precision=name.removesuffix("+"),  # type: ignore[arg-type]
            cache_precision="fp16" if name.endswith("+") else "fp32",
        )
        for name in ("fp32", "fp32+", "int8", "int8+", "int4+")
    }


def window(places: NDArray[np.int64], past: KeyValues | None = None) -> Window:
    queries = np.arange(len(places))[None]
    return Window(np.ascontiguousarray(TOKENS[:, places]), places, queries, past)


def kept_of(denoiser: Denoiser) -> tuple[NDArray[np.float32], KeyValues]:
    hidden, kept = denoiser.forward(window(np.arange(TOKENS.shape[1])), keep=True)
    assert kept is not None, "they were asked for"
    return hidden, kept


@pytest.mark.parametrize("name", ["fp32+", "int8+", "int4+"])
def test_a_past_equals_full_attention_to_the_last_bit_but_of_sums(made: Made, name: str) -> None:
    """What leaves is what the window itself attended to, so that it makes no difference whether it comes back."""
    denoiser = open_denoiser(Bundle.open(made[name]), CPU, 1)
    hidden, kept = kept_of(denoiser)
    assert {array.dtype for array in (*kept.keys, *kept.values)} == {np.dtype(np.float16)}
    inside = np.arange(9, 14)
    outside = np.random.default_rng(1).permutation(np.setdiff1d(np.arange(TOKENS.shape[1]), inside))
    past = KeyValues(tuple(key[:, :, outside] for key in kept.keys), tuple(value[:, :, outside] for value in kept.values))
    again, _ = denoiser.forward(window(inside, past), keep=False)
    np.testing.assert_allclose(again, hidden[:, inside], atol=2e-4)


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_they_are_those_of_float32_rounded(made: Made, name: str) -> None:
    """Of the first layer exactly; behind it states differ by what rounding did before."""
    wide, half = (kept_of(open_denoiser(Bundle.open(made[each]), CPU, 1))[1] for each in (name, f"{name}+"))
    for ours, theirs in ((half.keys, wide.keys), (half.values, wide.values)):
        np.testing.assert_array_equal(ours[0], theirs[0].astype(np.float16))
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, atol=5e-3)


@pytest.mark.parametrize("name", ["fp32+", "int8+"])
def test_one_layer_is_in_float32_at_a_time(made: Made, name: str, tmp_path: Path) -> None:
    """In the order that onnxruntime runs nodes in, what widens a layer's keys comes behind the attention of the one before."""
    bundle = Bundle.open(made[name])
    session = open_session(bundle.graph_path("backbone"), CPU, 1, profile=tmp_path / "run")
    shape = bundle.architecture
    past = np.zeros((1, shape.n_kv_heads, 3, shape.head_dim), np.float16)
    feeds = {"embeddings": np.ones((1, 2, shape.d_model), np.float32), "positions": np.array([[3, 4]]), "rows": np.array([[1]])}
    feeds |= {f"past_{kind}_{layer}": past for kind in ("key", "value") for layer in range(shape.n_layers)}
    session.run(None, feeds)
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [each["args"] for each in events if each.get("name", "").endswith("_kernel_time")]
    shapes = "int64"  # which the rounding of int8 joins too
    order = [each["op_name"] for each in ran if each["op_name"] != "Concat" or shapes not in each["output_type_shape"][0]]
    layers = " ".join(kind for kind in order if kind in ("Cast", "Concat", "Attention")).split("Attention")
    assert [layer.count("Concat") for layer in layers] == [2] * shape.n_layers + [0]
    assert [layer.count("Cast") for layer in layers] == [5] + [4] * (shape.n_layers - 1) + [0]  # the fifth: positions, once


@pytest.mark.parametrize("precision", ["int8", "int8-7bit", "int4"])
def test_the_small_model_still_adds(precision: str, tmp_path: Path) -> None:
    """States of random weights hardly tell how sharply a layer attends; those of a trained model do."""
    emoji = Path(__file__).parents[2] / "train" / "shipped" / "emoji"
    bundle = export_checkpoint(emoji, tmp_path / "b", precision=precision, cache_precision="fp16")  # type: ignore[arg-type]
    assert mmada_lite.load(bundle, device="cpu", threads=1).chat("what is 3 + 4?").result().answer == "7"


def decoded(model: Model, text: Sequence[TextSettings], image: Sequence[ImageSettings]) -> list[object]:
    answers: list[object] = [model.chat([{"role": "user", "content": "a b c"}], each).result().ids.tolist() for each in text]
    return answers + [model.paint("a b", each, seed=3).result().codes.tolist() for each in image]


def test_every_cache_of_decoding_takes_them(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way to keep keys and values decodes to the end, and what a graph is given is float16, however it was cut."""
    model = mmada_lite.load(made["fp32+"], device="cpu", threads=1)
    seen = set[tuple[np.dtype, bool]]()
    forward = model.denoiser.forward

    def watched(window: Window, *, keep: bool) -> tuple[NDArray[np.float32], KeyValues | None]:
        if window.past is not None:
            seen.update((array.dtype, window.past.length > 0) for array in (*window.past.keys, *window.past.values))
        return forward(window, keep=keep)

    monkeypatch.setattr(model.denoiser, "forward", watched)
    text = [TEXT.replace(cache=cache, guidance=guidance) for cache in ("prefix", "dual", "prompt") for guidance in (0.0, 1.0)]
    text += [TEXT.replace(cache="dual", kv_commit_every=1), TEXT.replace(cache="dual", refresh=2)]
    image = [replace(model.image_defaults, steps=6).replace(refresh=3, guidance=guidance) for guidance in (0.0, 2.0)]
    for answer in decoded(model, text, image):
        assert answer
    assert seen == {(np.dtype(np.float16), True)}


def test_a_cache_that_is_always_refreshed_is_none(made: Made) -> None:
    model = mmada_lite.load(made["fp32+"], device="cpu", threads=1)
    every = TEXT.replace(cache="dual", refresh=1)
    assert decoded(model, [every], []) == decoded(model, [TEXT], [])


def test_it_is_said_and_counted(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    wide, half = Bundle.open(made["fp32"]), Bundle.open(made["fp32+"])
    assert (wide.needs, half.needs) == ((), (HALF_CACHES,))
    counted = [caches(Shape.of(bundle), TEXT.replace(cache="dual"), ImageSettings(), 32, half=False) for bundle in (wide, half)]
    assert counted[0] == 2 * counted[1] > 0
    for name, told in (("fp32", "fp32"), ("fp32+", "fp16")):
        assert main(["info", str(made[name]), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["cache_precision"] == told
        assert main(["info", str(made[name])]) == 0
        assert f"lowered for cpu, keys and values {told}\n" in capsys.readouterr().out


def test_a_plan_knows_them(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    def planned(*options: str) -> dict[str, dict[str, int]]:
        main(["plan", "--memory", "8GB", "--json", *options])
        return {row["precision"]: row for row in json.loads(capsys.readouterr().out)["precisions"]}

    wide, half = planned("-m", "8b"), planned("-m", "8b", "--cache-precision", "fp16")
    assert half["int4"]["peak"] < 6.9e9 < wide["int4"]["peak"]
    for precision, row in half.items():
        assert 2 * row["caches"] == wide[precision]["caches"]
    own = planned("-m", str(made["fp32+"]), "--cache", "dual")
    assert own["this bundle (cpu)"]["caches"] == own["fp32"]["caches"]  # an export is planned as the bundle is
    other = planned("-m", str(made["fp32+"]), "--cache", "dual", "--cache-precision", "fp32")
    assert 2 * other["this bundle (cpu)"]["caches"] == other["fp32"]["caches"]
    assert main(["plan", "-m", "8b", "--memory", "7GB", "--cache-precision", "fp16"]) == 0
    assert "--precision int4 --cache-precision fp16" in capsys.readouterr().out
    assert main(["plan", "-m", "8b", "--memory", "7GB"]) == 1
    assert "--cache-precision fp16 keeps the same in half of the caches' memory" in capsys.readouterr().out


def test_a_graph_that_is_not_what_is_said_is_refused(made: Made, tmp_path: Path) -> None:
    for name, needs, wrong in (("fp32", [HALF_CACHES], "float16"), ("fp32+", [], "float")):
        folder = Path(shutil.copytree(made[name], tmp_path / name))
        content = json.loads((folder / MANIFEST).read_text()) | {"needs": needs}
        (folder / MANIFEST).write_text(json.dumps(content))
        with pytest.raises(Error, match=rf"past_key_0 is a tensor\(float\d*\) where a tensor\({wrong}\) is needed"):
            check_contracts(Bundle.open(folder), CPU)


def test_an_older_program_refuses_it_by_name(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmada_lite.bundle.NEEDS", ())
    with pytest.raises(Error, match="the model needs 'float16_caches', which this program does not have"):
        Bundle.open(made["fp32+"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "cuda"], "graphs for cuda keep keys and values in half precision; leave --cache-precision out"),
        (["--target", "tensorrt", "--precision", "fp32"], "graphs for tensorrt keep keys and values in fp32, as its"),
        (["--target", "web"], "--cache-precision fp16 is for programs, and a browser keeps keys and values in fp32"),
    ],
)
def test_where_it_makes_no_sense_it_is_refused_in_a_line(
    options: list[str], message: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "bundle"
    assert main(["export", str(tiny_checkpoint), "-o", str(output), "--cache-precision", "fp16", *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not output.exists()


def test_plans_and_needs_of_a_card_are_refused(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-m", "8b", "--memory", "8GB", "--device", "cuda", "--cache-precision", "fp16"]) == 2
    assert "--cache-precision is for processors" in capsys.readouterr().err
    folder = Path(shutil.copytree(made["fp32+"], tmp_path / "card"))
    content = json.loads((folder / MANIFEST).read_text()) | {"target": "cuda"}
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(Error, match=re.escape("needs 'float16_caches', which is for cpu and openvino, and target is 'cuda'")):
        Bundle.open(folder)
