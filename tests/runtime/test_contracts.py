"""A bundle that contradicts itself, its graphs or its tokenizer is refused in one line that names what to look at."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tokenizers
from bundles import with_file
from onnx import helper, numpy_helper

from mmada_lite import Error, ImageSettings, TextSettings, hashing, load
from mmada_lite.bundle import Bundle
from mmada_lite.cli.main import main
from mmada_lite.contracts import json_of
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.export.checkpoint import TensorSource, read_json, save_tensors
from mmada_lite.vocabulary import Tokenizer

TEXT, IMAGE = TextSettings(answer_length=4, steps=2, block_length=4), ImageSettings(steps=2)


def changed(bundle: Path, folder: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    shutil.copytree(bundle, folder)
    content = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    edit(content)
    (folder / "bundle.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def swapped(content: dict[str, Any], one: str, other: str) -> None:
    content[one], content[other] = content[other], content[one]


CONTRADICTIONS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    **{
        f"{key} {value}": (
            lambda c, key=key, value=value: c["architecture"].update({key: value}),
            rf"architecture\.{key} is .*it can be",
        )
        for key, value in (("n_layers", 0), ("n_layers", 10**12), ("n_kv_heads", 0), ("d_model", 1 << 40), ("rms_norm_eps", 0))
    },
    "infinite": (
        lambda c: c["architecture"].update(rope_theta=10**400),
        r"rope_theta is 1e\+300; it can be 1 to 1000000000000",
    ),
    "layers": (lambda c: c["architecture"].update(n_layers=3), r"backbone\.onnx, which has 2 layers, .*n_layers is 3"),
    "heads": (lambda c: c["architecture"].update(n_heads=3), "n_heads 3 is not a multiple of n_kv_heads 2"),
    "width": (lambda c: c["architecture"].update(n_heads=2), r"d_model 32 is not 2 heads of an even size 8 \(head_dim\)"),
    "key heads": (lambda c: c["architecture"].update(n_kv_heads=4), r"past_key_0 has the length 2 on .*n_kv_heads is 4"),
    "rows": (lambda c: c["architecture"].update(vocab_size=300), r"vocabulary\.size is 284 and architecture.vocab_size 300"),
    "grid": (lambda c: c["image"].update(resolution=63), r"image\.resolution 63 is not a multiple of downsample 4"),
    "no downsample": (lambda c: c["image"].update(downsample=0), r"image\.downsample is 0; it can be 1 to"),
    "size": (lambda c: c["image"].update(resolution=4000), "has 1000000 codes, and max_sequence_length is 256"),
    "offset": (lambda c: c["vocabulary"].update(image_code_offset=0), "image_code_offset and codebook_size are at least 1"),
    "length": (lambda c: c["vocabulary"].update(image_code_offset=267, codebook_size=8), "'eot' is 267, which is a picture"),
    "special": (lambda c: swapped(c["vocabulary"]["special"], "soi", "eoi"), r"'soi' is 259, and <\|soi\|> of .* is 258"),
    "mask": (lambda c: c["vocabulary"]["special"].update(bos=264), "'bos' is 264, which is the mask"),
    "codes": (
        lambda c: c["vocabulary"].update(codebook_size=15),
        r"logits has the length 16 .*vocabulary\.codebook_size is 15",
    ),
    "target": (lambda c: c.update(target="gpu"), "target is 'gpu'; it can be cpu, cuda, tensorrt, openvino"),
    "halves": (
        lambda c: (c.update(target="cuda"), c["quantization"]["backbone"].update(format="fp16", bits=16)),
        r"past_key_0 is a tensor\(float\) where a tensor\(float16\)",
    ),
    "no graphs": (lambda c: c.update(graphs={}), "graphs has no 'embedder'"),
    "a graph": (lambda c: c["graphs"].update(x=c["graphs"]["embedder"]), "graphs has 'x', which such a model has not"),
    "swapped": (lambda c: swapped(c["graphs"], "text_head", "image_head"), r"graphs\.text_head is image_head\.onnx.*logits"),
    "renamed": (lambda c: c["graphs"]["text_head"]["outputs"].remove("entropy"), r"graphs\.text_head\.outputs have 'entropy'"),
    "weights": (lambda c: c["files"].pop("weights.bin"), "the file 'weights.bin' of the graphs is not listed"),
    "bits": (lambda c: c["quantization"]["backbone"].update(bits=4), "backbone is fp32, and its other keys are not those"),
    "format": (lambda c: c["tensors"]["embedder"].update({"wte.weight": "gpu"}), "'wte.weight' is 'gpu', which is no format"),
    "version": (lambda c: c.update(format_version=0), "does not describe a mmada-lite bundle"),
    "escape": (lambda c: c.update(name="x\x1b[2J"), r"'x\\x1b\[2J' holds a control character"),
    "depth": (lambda c: c["knows"].update(x=json.loads("[" * 40 + "]" * 40)), "it nests deeper than 32 levels"),
}


@pytest.mark.parametrize("contradiction", CONTRADICTIONS)
def test_a_contradiction_is_one_line(tiny_bundle: Path, tmp_path: Path, contradiction: str) -> None:
    edit, line = CONTRADICTIONS[contradiction]
    folder = changed(tiny_bundle, tmp_path / "b", edit)
    with pytest.raises(Error, match=line) as caught:
        load(folder, device="cpu")
    assert ("\n" in str(caught.value), "\x1b" in str(caught.value), str(folder) in str(caught.value)) == (False, False, True)


@pytest.mark.parametrize(("graph", "key"), [("image_encoder", "codes_of"), ("image_decoder", "picture_of")])
def test_what_the_image_tokenizer_gives_is_checked(tiny_bundle: Path, tmp_path: Path, graph: str, key: str) -> None:
    folder = changed(tiny_bundle, tmp_path / "b", lambda c: c["image"].update(downsample=2, resolution=16))
    model = load(folder, device="cpu")
    with pytest.raises(Error, match=rf"{graph}\.onnx .*image\.downsample is 2.* --verify"):
        model.codes_of(np_picture()) if key == "codes_of" else model.picture_of([[1, 2], [3, 4]])


def np_picture() -> Any:
    from PIL import Image

    return Image.new("RGB", (16, 16), "red")


def test_codes_lie_in_the_codebook(tiny_bundle: Path, tmp_path: Path) -> None:
    """A graph whose codes are too large is said, before a token that means something else is read."""
    model = onnx.load(str(tiny_bundle / "image_encoder.onnx"), load_external_data=False)
    (last,) = (node for node in model.graph.node if "codes" in node.output)
    last.output[0] = "plain"
    model.graph.initializer.append(numpy_helper.from_array(np.array(16), "sixteen"))
    model.graph.node.append(helper.make_node("Add", ["plain", "sixteen"], ["codes"]))
    folder = with_file(tiny_bundle, tmp_path / "b", "image_encoder.onnx", model.SerializeToString())
    with pytest.raises(Error, match=r"gives a code beyond vocabulary\.codebook_size 16"):
        load(folder, device="cpu").codes_of(np_picture())


def test_a_graph_that_fails_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = with_file(tiny_bundle, tmp_path / "b", "text_head.onnx", b"no graph")
    with pytest.raises(Error, match=r"cannot load .*text_head\.onnx"):
        load(folder, device="cpu")
    model = load(tiny_bundle, device="cpu")
    with pytest.raises(Error, match="the graph image_decoder fails in onnxruntime: "):
        model.codec.decoder.run(["pixels"], {"codes": np.zeros(3, np.float32)})


def test_info_says_what_will_not_run(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = changed(tiny_bundle, tmp_path / "b", lambda c: swapped(c["graphs"], "image_encoder", "image_decoder"))
    assert main(["info", str(folder), "--device", "cpu"]) == 1
    assert "runs here  no: " in capsys.readouterr().out
    assert main(["info", str(tiny_bundle), "--device", "cpu"]) == 0


TOKENIZERS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "swapped": (lambda c: swapped(c["added_tokens"][0], "id", "id") or c["added_tokens"][0].update(id=257), r"startoftext\|>"),
    "a gap": (lambda c: c["model"]["vocab"].update(q=400), "has the id .* ids count from 0 to"),
    "one id twice": (lambda c: c["model"]["vocab"].update(a=5), "has the id"),
    "a panic": (lambda c: c.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "library fails: Pre"),
    "a later panic": (lambda c: c.update(pre_tokenizer={"type": "FixedLength", "length": 0}), "library fails: chunk size"),
    "no list": (lambda c: c.update(added_tokens=7), "the tokenizers library fails"),
}


@pytest.mark.parametrize("fault", TOKENIZERS)
def test_a_tokenizer_whose_ids_are_not_the_files(
    tiny_bundle: Path, tmp_path: Path, fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    edit, line = TOKENIZERS[fault]
    content = json.loads((tiny_bundle / "tokenizer.json").read_text(encoding="utf-8"))
    edit(content)
    folder = with_file(tiny_bundle, tmp_path / "b", "tokenizer.json", json.dumps(content).encode())
    with pytest.raises(Error, match=line) as caught:
        load(folder, device="cpu")
    assert ("\n" in str(caught.value), capfd.readouterr().err) == (False, "")


def test_a_header_is_never_added_at_the_id_of_a_word(tiny_bundle: Path, tmp_path: Path) -> None:
    """Where the file lacks one, and an id is unused, the library would count and take a word's."""
    content = json.loads((tiny_bundle / "tokenizer.json").read_text(encoding="utf-8"))
    content["added_tokens"] = [each for each in content["added_tokens"] if each["content"] != "<|eot_id|>"]
    content["model"]["vocab"] = {word: number + (number > 30) for word, number in content["model"]["vocab"].items()}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(Error, match=r"tokenizer\.json is not a tokenizer\.json that can be used: '"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_what_training_cuts_pads_and_drops_is_undone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_checkpoint, tmp_path / "source"))
    plain = Tokenizer.from_file(source / "tokenizer.json").encode("a longer text")
    inner = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    inner.enable_truncation(2)
    inner.enable_padding(length=64)
    inner.model.dropout = 0.5
    inner.post_processor = tokenizers.processors.TemplateProcessing(single="$A $A", pair="$A $B $A", special_tokens=[])
    inner.save(str(source / "tokenizer.json"))
    assert Tokenizer.from_file(source / "tokenizer.json").encode("a longer text") == plain
    written = json.loads((export_checkpoint(source, tmp_path / "b") / "tokenizer.json").read_text(encoding="utf-8"))
    assert (written["truncation"], written["padding"], written["model"]["dropout"]) == (None, None, None)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a": ' + "9" * 5_000 + "}", '{"a": NaN}', '{"a": 1, "a": 2}', ""])
def test_json_of_any_form_is_one_line(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        json_of(text)
    for name, source in (("bundle.json", tiny_bundle), ("config.json", tiny_checkpoint), ("tokenizer.json", tiny_checkpoint)):
        folder = Path(shutil.copytree(source, tmp_path / name))
        (folder / name).write_text(text, encoding="utf-8")
        with pytest.raises(Error, match=name) as caught:
            load(folder, device="cpu") if name == "bundle.json" else export_checkpoint(folder, tmp_path / "out")
        assert "\n" not in str(caught.value)


NUMBERS: dict[str, tuple[str, float, str]] = {
    "a norm": ("model.transformer.blocks.0.attn_norm.weight", 1e38, "fp32"),
    "a last norm": ("model.transformer.ln_f.weight", np.inf, "fp32"),
    "a matrix": ("model.transformer.blocks.1.q_proj.weight", 1e38, "int8"),
    "a table": ("model.transformer.wte.weight", -1e38, "int4"),
    "a whole matrix": ("model.transformer.blocks.1.ff_out.weight", 1e38, "fp32"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_what_no_format_holds_is_named(tiny_checkpoint: Path, tmp_path: Path, name: str) -> None:
    tensor, value, precision = NUMBERS[name]
    source = Path(shutil.copytree(tiny_checkpoint, tmp_path / "source"))
    tensors = TensorSource.open(source)
    values = {each: np.array(tensors.read(each)) for each in tensors.names}
    values[tensor].reshape(-1)[3] = value
    save_tensors(source, values, read_json(source / "config.json"))
    with pytest.raises(Error, match=f"{tensor} holds"):
        export_checkpoint(source, tmp_path / "b", precision=precision)  # type: ignore[arg-type]
    assert not (tmp_path / "b").exists()


def test_whole_numbers_are_no_weights(tiny_checkpoint: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_checkpoint, tmp_path / "source"))
    tensors = TensorSource.open(source)
    values = {each: np.array(tensors.read(each)) for each in tensors.names}
    name = "model.transformer.blocks.0.q_proj.weight"
    save_tensors(source, values | {name: values[name].astype(np.int8)}, read_json(source / "config.json"))
    with pytest.raises(Error, match=f"{name} is I8, whole numbers without a scale"):
        export_checkpoint(source, tmp_path / "b")


@pytest.mark.parametrize(("file", "change"), [("config", {"rope_theta": 1e999}), ("vq/config", {"z_channels": 10**9})])
def test_numbers_of_a_checkpoint_have_bounds(tiny_checkpoint: Path, tmp_path: Path, file: str, change: dict[str, Any]) -> None:
    source = Path(shutil.copytree(tiny_checkpoint, tmp_path / "source"))
    content = read_json(source / f"{file}.json") | change
    text = json.dumps(content).replace("Infinity", "1e999")
    (source / f"{file}.json").write_text(text, encoding="utf-8")
    with pytest.raises(Error, match=rf"config\.json: {next(iter(change))} is .*; it can be"):
        export_checkpoint(source, tmp_path / "b")


def test_a_checkpoint_without_pictures_says_so(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(tiny_checkpoint, tmp_path / "source"))
    shutil.rmtree(source / "vq")
    assert main(["export", str(source), "-o", str(tmp_path / "b")]) == 0
    assert "neither sees nor draws, since its source has no folder vq" in capsys.readouterr().err


@pytest.fixture
def large(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle that counts as large, with a changed byte that no number shows; the cache folder is the test's own."""
    monkeypatch.setattr("mmada_lite.bundle.HASHED_UP_TO", 0)
    monkeypatch.setattr("mmada_lite.hashing.HASHED_UP_TO", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(tiny_bundle, tmp_path / "large"))


def damage(bundle: Path) -> None:
    data = bytearray((bundle / "weights.bin").read_bytes())
    data[8] ^= 1
    (bundle / "weights.bin").write_bytes(data)


def test_a_large_bundle_is_hashed_before_its_first_result(large: Path) -> None:
    damage(large)
    model = load(large, device="cpu")
    for use in (
        lambda: model.chat("a", TEXT).result(),
        lambda: model.paint("a", IMAGE).result(),
        lambda: model.picture_of([[1, 2], [3, 4]]),
    ):
        with pytest.raises(Error, match=r"weights\.bin was edited or damaged: its sha256"):
            use()


def test_a_large_bundle_is_hashed_once(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr(Bundle, "check_hashes", lambda self: hashed.append(self.path))
    for times in (1, 1):
        load(large, device="cpu").chat("a", TEXT).result()
        assert len(hashed) == times
    damage(large)
    load(large, device="cpu").chat("a", TEXT).result()
    assert len(hashed) == 2
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("no folder")
    load(large, device="cpu").chat("a", TEXT).result()
    assert len(hashed) == 3


def test_small_bundles_are_hashed_when_they_are_opened(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert hashing.hash_in_background(replace(bundle))() is None
