"""Checkpoint folders: both layouts against their full-size manifests, exact reading and writing, every way to be broken."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from mmada_lite.errors import Error
from mmada_lite.export.checkpoint import TensorSource, TransformerConfig, VQConfig, read_json, save_tensors

GOLDEN = Path(__file__).parents[1] / "golden"
MODELS = ("mha", "gqa", "realvocab")


def manifest(name: str) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    content = read_json(GOLDEN / name)
    return content, {tensor: tuple(item["shape"]) for tensor, item in content["tensors"].items()}


@pytest.fixture
def gqa(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "llm" / "gqa", tmp_path / "gqa"))


def opened(folder: Path) -> TensorSource:
    source = TensorSource.open(folder)
    source.verify(TransformerConfig.load(folder).expected_tensors())
    return source


def test_the_layouts_are_those_of_the_published_models() -> None:
    content, tensors = manifest("llm/real_8b_manifest.json")
    config = TransformerConfig.from_json(content["config"])
    assert config.expected_tensors() == tensors
    assert sum(int(np.prod(shape)) for shape in config.expected_tensors().values()) == content["n_params"]
    content, tensors = manifest("vq/real_magvitv2_manifest.json")
    assert VQConfig.from_json({"_class_name": "MAGVITv2"}).expected_tensors() == tensors
    towers = {"encoder": content["encoder_args"], "decoder": content["decoder_args"]}
    assert VQConfig.from_json(towers).expected_tensors() == tensors


@pytest.mark.parametrize("name", MODELS)
def test_config_json_goes_around(name: str) -> None:
    content = read_json(GOLDEN / "llm" / name / "config.json")
    config = TransformerConfig.from_json(content)
    written = config.to_json()
    assert TransformerConfig.from_json(written) == config
    ours = {"transformers_version", "torch_dtype"}  # who wrote the file, and how its weights are stored
    assert {key: value for key, value in written.items() if key not in ours} == {
        key: value for key, value in content.items() if key not in ours
    }


def test_vq_config_goes_around() -> None:
    config = VQConfig.load(GOLDEN / "vq")
    assert VQConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize("name", MODELS)
def test_reading_equals_the_safetensors_library(name: str) -> None:
    source = opened(GOLDEN / "llm" / name)
    for path in source.files:
        with safe_open(path, "np") as library:
            for tensor in library.keys():  # noqa: SIM118
                expected = library.get_tensor(tensor)
                assert source.read(tensor).dtype == expected.dtype
                np.testing.assert_array_equal(source.read(tensor), expected)
                np.testing.assert_array_equal(source.read(tensor, slice(3, 9)), expected[3:9])


def test_bfloat16_is_exact_and_rounds_to_even(tmp_path: Path) -> None:
    values = np.array([0.0, -0.0, 1.0, 1.00390625, 1.01171875, -3.3895e38, 1e-40, np.inf, -np.inf, np.nan], np.float32)
    save_tensors(tmp_path, {"x": values}, {}, dtype="bfloat16")
    source = TensorSource.open(tmp_path)
    expected = np.array([0, 0x8000, 0x3F80, 0x3F80, 0x3F82, 0xFF7F, 1, 0x7F80, 0xFF80, 0x7FC0], np.uint16)
    np.testing.assert_array_equal(source.read("x").view(np.uint32) >> 16, expected)
    assert source.dtype("x") == "BF16"
    assert source.read("x").dtype == np.float32


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_shards_hold_what_one_file_holds(tmp_path: Path, dtype: str) -> None:
    source = opened(GOLDEN / "llm" / "gqa")
    config = TransformerConfig.load(GOLDEN / "llm" / "gqa").to_json()
    for folder, limit in (("one", None), ("many", 100_000)):
        save_tensors(tmp_path / folder, ((name, source.read(name)) for name in source.names), config, dtype, limit)
    one, many = opened(tmp_path / "one"), opened(tmp_path / "many")
    assert len(one.files) == 1
    assert len(many.files) > 3
    for name in source.names:
        np.testing.assert_array_equal(one.read(name), many.read(name))
        np.testing.assert_allclose(one.read(name), source.read(name), rtol=2**-8 if dtype != "float32" else 0, atol=1e-7)


def test_saving_again_replaces_shards_and_leaves_no_debris(tmp_path: Path) -> None:
    save_tensors(tmp_path, {"a": np.ones((8, 4), np.float32), "b": np.zeros(4, np.int64)}, {}, max_shard_size=64)
    assert (tmp_path / "model.safetensors.index.json").exists()
    save_tensors(tmp_path, {"a": np.full((2,), 7, np.float32)}, {"new": True})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    np.testing.assert_array_equal(TensorSource.open(tmp_path).read("a"), [7, 7])


def test_a_failed_save_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tensors(tmp_path, {"a": np.ones(3, np.float32)}, {"old": True})

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmada_lite.export.safetensors_io._write_json", full_disk)
    with pytest.raises(Error, match="No space left on device"):
        save_tensors(tmp_path, {"a": np.zeros(3, np.float32)}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    np.testing.assert_array_equal(TensorSource.open(tmp_path).read("a"), np.ones(3))


def test_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Error, match="float32, float16, bfloat16"):
        save_tensors(tmp_path, {}, {}, dtype="int4")


def rewritten(folder: Path, change: dict[str, np.ndarray | None]) -> None:
    """Save the folder again with some tensors replaced, added or (None) left out."""
    source, config = TensorSource.open(folder), read_json(folder / "config.json")
    tensors = {name: source.read(name) for name in source.names} | change
    save_tensors(folder, {name: values for name, values in tensors.items() if values is not None}, config)


def test_wrong_tensors_are_named(gqa: Path) -> None:
    layer = "model.transformer.blocks.1"
    narrow, stranger = np.ones((160, 32)), np.ones(2)
    rewritten(gqa, {f"{layer}.k_proj.weight": None, "lm_head.weight": stranger, f"{layer}.up_proj.weight": narrow})
    with pytest.raises(Error) as caught:
        opened(gqa)
    message = str(caught.value)
    assert f"missing {layer}.k_proj.weight" in message
    assert "unexpected lm_head.weight" in message
    assert f"{layer}.up_proj.weight is [160, 32] and should be [160, 64]" in message
    assert "\n" not in message


def test_a_truncated_shard(gqa: Path) -> None:
    shard = gqa / "model-00003-of-00007.safetensors"
    content = shard.read_bytes()
    for length in (len(content) - 1, 300, 5, 0):
        shard.write_bytes(content[:length])
        with pytest.raises(Error, match=r"model-00003-of-00007\.safetensors: not a readable safetensors file"):
            TensorSource.open(gqa)


def test_an_absent_shard(gqa: Path) -> None:
    (gqa / "model-00002-of-00007.safetensors").unlink()
    with pytest.raises(Error, match=r"model-00002-of-00007\.safetensors: this shard is absent"):
        TensorSource.open(gqa)


def test_shards_in_the_wrong_place(gqa: Path) -> None:
    (gqa / "model-00002-of-00007.safetensors").write_bytes((gqa / "model-00003-of-00007.safetensors").read_bytes())
    with pytest.raises(Error, match=r"model-00002-of-00007\.safetensors: lacks model"):
        TensorSource.open(gqa)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", "{", "cannot be read as JSON"),
        ("config.json", "[1]", "holds a JSON list where an object is needed"),
        ("model.safetensors.index.json", "{nonsense", "cannot be read as JSON"),
        ("model.safetensors.index.json", '{"weight_map": [1]}', "has no weight_map"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "../secret.safetensors"}}', "no plain file name"),
    ],
)
def test_broken_json(gqa: Path, file: str, text: str, message: str) -> None:
    (gqa / file).write_text(text)
    with pytest.raises(Error, match=message):
        opened(gqa)


def header_file(folder: Path, header: bytes, data: bytes = b"") -> Path:
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    return folder


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"not json", "not a readable"),
        (b"[]", "not a readable"),
        (b'{"a": {"dtype": "F32"}}', "not a readable"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', "byte range of a"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}', "byte range of a"),
        (b'{"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}', "F8_E4M3, which is not supported"),
    ],
)
def test_a_forged_header(tmp_path: Path, header: bytes, message: str) -> None:
    with pytest.raises(Error, match=message):
        TensorSource.open(header_file(tmp_path, header, b"\0" * 4))


def test_folders_without_weights(tmp_path: Path) -> None:
    with pytest.raises(Error, match="no such folder"):
        TensorSource.open(tmp_path / "nowhere")
    with pytest.raises(Error, match=r"neither model\.safetensors nor an index"):
        TensorSource.open(tmp_path)
    with pytest.raises(Error, match=r"config\.json: no such file"):
        TransformerConfig.load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(Error, match=r"a pickle that is not loaded.*torch\.load\('pytorch_model\.bin'.*weights_only=True"):
        TensorSource.open(tmp_path)
    header_file(tmp_path, b"{}")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.safetensors")
    assert TensorSource.open(tmp_path).names == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("alibi", True), ("layer_norm_type", "default"), ("include_bias", True), ("include_qkv_bias", True),
        ("bias_for_layer_norm", True), ("weight_tying", True), ("tie_word_embeddings", True), ("activation_type", "gelu"),
        ("attention_layer_norm", True), ("input_emb_norm", True), ("scale_logits", True), ("rope", False),
        ("block_type", "sequential"), ("multi_query_attention", True), ("w_clip_vit", True), ("clip_qkv", 8.0),
        ("rope_scaling", {"type": "linear"}), ("block_group_size", 4),
    ],
)  # fmt: skip
def test_unsupported_options_are_refused_by_name(key: str, value: object) -> None:
    content = read_json(GOLDEN / "llm" / "mha" / "config.json")
    with pytest.raises(Error, match=rf"{key} = .* is not supported"):
        TransformerConfig.from_json(content | {key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": None}, "d_model is missing"),
        ({"rope": None}, "rope is missing"),
        ({"n_layers": 0}, "n_layers must be a whole number above zero, not 0"),
        ({"n_layers": "2"}, "n_layers must be a whole number"),
        ({"rope_theta": "big"}, "rope_theta must be a number"),
        ({"n_heads": 5}, "does not split"),
        ({"n_kv_heads": 3}, "not a multiple of n_kv_heads"),
        ({"mask_token_id": 272}, "not below the vocabulary size 272"),
    ],
)
def test_impossible_numbers(change: dict[str, Any], message: str) -> None:
    with pytest.raises(Error, match=message):
        TransformerConfig.from_json(read_json(GOLDEN / "llm" / "mha" / "config.json") | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook_size": 4096}, "codebook_size is 4096, but the other settings imply 8192"),
        ({"downsample_factor": 16}, "downsample_factor is 16"),
        ({"attn_resolutions": [16]}, "attn_resolutions"),
        ({"double_z": True}, "double_z"),
        ({"group_norm_groups": 64}, "do not split into group_norm_groups 64"),
        ({"resolution": 66}, "resolution 66 is not a multiple"),
        ({"z_channels": 0}, "z_channels must be"),
        ({"encoder": {"ch": 32}}, "encoder must be an object"),
        ({"encoder": {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": [1]}}, "one number per level"),
        ({"encoder": {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": [1, 1]}}, "different numbers of levels"),
    ],
)
def test_impossible_image_tokenizers(change: dict[str, Any], message: str) -> None:
    with pytest.raises(Error, match=message):
        VQConfig.from_json(read_json(GOLDEN / "vq" / "config.json") | change)


def test_checkpoints_are_read_without_torch() -> None:
    code = "import sys, mmada_lite.export.checkpoint; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
