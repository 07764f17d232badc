"""What the plan says against what processes take, what bundles hold, and what the published model is known to be."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from tiny_checkpoint import SPECIAL, write_tokenizer

from mmada_lite import memory_plan
from mmada_lite.bundle import LOGITS, Bundle
from mmada_lite.cli.main import main
from mmada_lite.decoding import settings
from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.errors import Error
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.export.checkpoint import TransformerConfig
from mmada_lite.export.codec_vq import Tower, VQConfig
from mmada_lite.export.lowering import Target
from mmada_lite.memory_plan import PRECISIONS, PUBLISHED, TASKS, Shape, activations, bytes_of, caches, need, stored
from mmada_lite.ort.session import Device, exact_int8, open_session

ROOT = Path(__file__).parents[2]
SMALL = ROOT / "train" / "shipped" / "emoji"
TEXT = TextSettings(answer_length=32, steps=2, block_length=32)
WITHIN = 0.07
PROMPT = 30  # tokens of the questions below with what stands around them
# Load, ask about a picture, paint one; the kernel keeps the highest resident size of a process.
MEASURE = """
import re, sys
from dataclasses import replace
from PIL import Image
import mmada_lite
model = mmada_lite.load(sys.argv[1], device="cpu", threads=1)
text = mmada_lite.TextSettings(answer_length=32, steps=2, block_length=32)
model.ask(Image.new("RGB", (64, 64), "red"), "what is this?", text).text
model.paint("a red apple", replace(model.image_defaults, steps=2)).picture
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024)
"""


def size_s(folder: Path) -> Path:
    """A checkpoint of random weights: two layers of size S, pictures of 128 pixels with 16 x 16 codes."""
    import torch

    from mmada_lite.train.model import MMaDA
    from mmada_lite.train.vq import MagViT

    folder.mkdir()
    words, codes = write_tokenizer(folder / "tokenizer.json"), 1024
    config = TransformerConfig(
        d_model=1024, n_layers=2, n_heads=16, n_kv_heads=16, mlp_hidden_size=3072, vocab_size=words + codes, rope_theta=10000.0,
        rms_norm_eps=1e-5, mask_token_id=256 + SPECIAL.index("<|mdm_mask|>"), eos_token_id=256 + SPECIAL.index("<|endoftext|>"),
        max_sequence_length=1024, codebook_size=codes, llm_vocab_size=words, num_vq_tokens=256,
    )  # fmt: skip
    tower = Tower(ch=32, ch_mult=(1, 2, 2, 4), num_res_blocks=(1, 1, 1, 1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MMaDA(config)
        model.initialize()
        model.save(folder, "float32")
        MagViT(VQConfig(tower, tower, z_channels=10, resolution=128)).save(folder / "vq", "float32")
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not say what a process took")
@pytest.mark.parametrize(("source", "precision"), [("small", "fp32"), ("small", "int8"), ("size S", "int8")])
def test_the_plan_is_within_seven_percent_of_what_is_taken(source: str, precision: str, tmp_path: Path) -> None:
    checkpoint = SMALL if source == "small" else size_s(tmp_path / "checkpoint")
    folder = export_checkpoint(checkpoint, tmp_path / "bundle", precision=precision)  # type: ignore[arg-type]
    bundle = Bundle.open(folder)
    planned = need(Shape.of(bundle), bundle.quantization, TEXT, prompt=PROMPT).peak
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    taken = int(done.stdout)
    exact = precision != "int8" or exact_int8()  # kernels that cannot overflow hold more, which the plan does not count
    within = WITHIN if exact else WITHIN + 0.03
    assert abs(planned / taken - 1) <= within, f"planned {planned / 1e6:.1f} MB, taken {taken / 1e6:.1f} MB"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_stored_bytes_are_those_of_an_exported_bundle(tiny_checkpoint: Path, tmp_path: Path, precision: str) -> None:
    target: Target = "tensorrt" if precision == "fp8" else "cpu"
    written = export_checkpoint(tiny_checkpoint, tmp_path / "b", precision=precision, target=target)  # type: ignore[arg-type]
    bundle = Bundle.open(written)
    planned = stored(Shape.of(bundle), precision, target)
    assert set(planned) == set(bundle.quantization)
    for name, group in bundle.quantization.items():
        stored_as = planned[name]
        if name != "codec":  # its norms are float32 in every precision, which the plan passes over
            assert stored_as.bytes == group.bytes, name
        assert (stored_as.format, stored_as.bits, stored_as.block, stored_as.scale) == (
            group.format,
            group.bits,
            group.block,
            group.scale,
        )


def test_the_published_model_is_the_recorded_one(golden: Path) -> None:
    recorded = json.loads((golden / "llm" / "real_8b_manifest.json").read_text())
    config = TransformerConfig.from_json(recorded["config"])
    shape = PUBLISHED["8b"]
    for name in shape.architecture.__slots__:
        assert getattr(shape.architecture, name) == getattr(config, name), name
    codec = json.loads((golden / "vq" / "real_magvitv2_manifest.json").read_text())
    assert shape.codec_parameters == codec["n_parameters"]
    assert (shape.codes, shape.image) == (config.codebook_size, shape.image)
    groups = stored(shape, "fp16")
    transformer = sum(groups[name].bytes or 0 for name in ("embedder", "backbone", "text_head"))
    vectors = 2 * 4096 * (2 * 32 + 1)  # norms are float32 in a bundle, and bfloat16 as published
    assert transformer == recorded["bytes_bf16"] + vectors


def test_more_of_anything_takes_more() -> None:
    shape = PUBLISHED["8b"]
    text = TextSettings(answer_length=128, steps=64, block_length=32).replace(cache="dual")
    peaks = [need(shape, stored(shape, precision), text).peak for precision in ("int4", "int8", "fp16")]
    assert peaks == sorted(peaks)
    groups = stored(shape, "int4")
    least = need(shape, groups, text).peak
    for longer in (text.replace(answer_length=512), text.replace(guidance=1.0)):
        assert need(shape, groups, longer).peak > least
    assert need(shape, groups, text.replace(block_length=8)).peak < least
    assert need(shape, groups, text.replace(block_length=128)).peak == least  # a large model's head makes few logits at a time
    plain, partial = ImageSettings(), ImageSettings().replace(refresh=4)
    none = text.replace(cache="none")
    assert caches(shape, none, plain, 32, half=False) == 0
    assert caches(shape, none, partial, 32, half=False) == 4 * 2 * 32 * 4096 * 4 * (1024 + 32)  # a guided pair, kept and cut
    kept = 2 * 32 * 4096 * 2 * (1024 + 32)  # on a card one row's count to activations, and are cut an eighth at a time
    assert caches(shape, none, partial.replace(guidance=0.0), 32, half=True, on_card=True) == kept // 8
    assert caches(shape, none, partial, 32, half=True, on_card=True) == kept + kept // 8
    assert need(shape, groups, text, image=partial).peak > least  # two rows of a drawing hold more than one of an answer
    card = need(shape, groups, text, device="cuda")
    assert card.peak < card.card_peak
    answer, drawing = (need(shape, groups, text, tasks=(task,)) for task in TASKS)  # a large model's, one at a time
    assert (answer.host["codec"], drawing.host["caches"]) == (0, 0)
    assert drawing.host["codec"] > 0 < answer.host["caches"]
    assert need(shape, groups, text) == max(answer, drawing, key=lambda one: one.peak)
    assert sum(card.disk.values()) == sum(group.bytes or 0 for group in groups.values())


DUAL = TextSettings(answer_length=128, steps=64, block_length=32).replace(cache="dual")


def test_int4_answers_in_less_than_six_gigabytes_of_a_card() -> None:
    shape = PUBLISHED["8b"]
    for device in ("cuda", "tensorrt", "rtx"):
        counted = need(shape, stored(shape, "int4"), DUAL, device=device, tasks=("answer",))
        assert counted.card_peak < 6e9
        assert counted.card["codec"] == 0


def test_a_large_model_on_a_card_is_counted_a_side_at_a_time() -> None:
    shape = PUBLISHED["8b"]
    groups = stored(shape, "int4")
    apart, whole = (need(shape, groups, DUAL, device="cuda", at_once=at_once) for at_once in (False, True))
    assert apart.card["codec"] == 0 < whole.card["codec"]
    assert apart.card_peak < whole.card_peak - 1.5e9
    narrow = replace(shape, architecture=replace(shape.architecture, n_layers=2, d_model=1024), codec_parameters=10**9)
    alone = need(narrow, stored(narrow, "int4"), DUAL, device="cuda")  # here the image tokenizer is what takes most
    assert alone.card["weights"] == 0 < alone.card["codec"]


FLOATS = (
    *(("cuda", "", "fp16", 2, 2), ("cuda", "", "fp32", 4, 4), ("cuda", "cpu", "fp16", 4, 4)),
    *(("tensorrt", "", "int4", 2, 2), ("rtx", "", "fp32", 4, 4)),
    *(("openvino", "", "fp16", 4, 4), ("openvino:gpu", "", "fp16", 2, 4), ("openvino:gpu", "", "fp32", 4, 4)),
    *(("openvino:gpu", "", "bf16", 4, 4), ("openvino:npu", "", "int4", 4, 4), ("cpu", "", "fp16", 4, 4)),
)


@pytest.mark.parametrize(("device", "target", "precision", "computed", "kept"), FLOATS)
def test_a_float_has_four_bytes_where_a_device_computes_in_float32(
    device: str, target: str, precision: str, computed: int, kept: int
) -> None:
    shape = PUBLISHED["8b"]
    on_card, rounded = device in ("cuda", "tensorrt", "rtx"), precision == "int4" and device.startswith("openvino")
    counted = need(shape, stored(shape, precision), DUAL, device=device, target=target, tasks=("answer",))
    parts, about = counted.card or counted.host, {"on_card": on_card, "tasks": ("answer",)}
    few = None if on_card else LOGITS
    assert parts["activations"] == activations(shape, DUAL, 32, half=computed == 2, rounded=rounded, most_logits=few, **about)  # type: ignore[arg-type]
    assert parts["caches"] == caches(shape, DUAL, ImageSettings(), 32, half=kept == 2, **about)  # type: ignore[arg-type]
    weights = sum(group.bytes or 0 for name, group in stored(shape, precision).items() if name not in ("embedder", "codec"))
    assert not on_card or parts["weights"] == weights * (2 if target == "cpu" else 1)


def test_a_floats_bytes_are_those_of_the_exported_graphs(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Of a card's bundle the plan says what its graph has for keys and values."""
    for precision, target in product(("fp16", "fp32", "int8"), ("cpu", "cuda", "tensorrt")):
        bundle = Bundle.open(
            export_checkpoint(tiny_checkpoint, tmp_path / f"{precision}{target}", precision=precision, target=target)
        )  # type: ignore[arg-type]
        session = open_session(bundle.graph_path("backbone"), Device("cpu", "a test"), 1)
        kinds = {value.name: value.type for value in session.get_inputs()}
        kept = memory_plan._floats(bundle.quantization["backbone"].format, "cuda", target)[1]
        assert kinds["past_key_0"] == {2: "tensor(float16)", 4: "tensor(float)"}[kept]


def plan(capsys: pytest.CaptureFixture[str], *options: str | Path) -> tuple[int, dict[str, object]]:
    code = main(["plan", *map(str, options), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_it_says_what_fits_for_every_kind_of_source(
    tiny_bundle: Path, tiny_checkpoint: Path, golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed = plan(capsys, "-m", "8b", "--memory", "64GB")
    assert (code, printed["model"], printed["best"]) == (0, "MMaDA-8B", "fp32")
    code, printed = plan(capsys, "-m", "8b", "--memory", "500MB")
    assert (code, printed["best"]) == (1, None)
    for source in (tiny_checkpoint, tiny_checkpoint / "config.json"):
        code, printed = plan(capsys, "-m", source, "--memory", "200MB")
        assert (code, printed["model"], printed["best"]) == (0, "checkpoint", "fp32")
    alone = tmp_path / "alone" / "config.json"
    alone.parent.mkdir()
    alone.write_text(json.dumps(json.loads((golden / "llm" / "real_8b_manifest.json").read_text())["config"]))
    _, by_name = plan(capsys, "-m", "8b", "--memory", "16GB")
    _, by_config = plan(capsys, "-m", alone, "--memory", "16GB")
    for a, b in zip(by_name["precisions"], by_config["precisions"], strict=True):  # type: ignore[call-overload]
        assert a["weights"] == b["weights"]
        assert abs(a["peak"] / b["peak"] - 1) < 0.001
    code, printed = plan(capsys, "-m", tiny_bundle, "--memory", "1GB")
    assert (code, printed["best"]) == (0, "this bundle (cpu)")


def test_a_card_that_shares_memory_counts_both(capsys: pytest.CaptureFixture[str]) -> None:
    _, own = plan(capsys, "-m", "8b", "--memory", "16GB", "--device", "tensorrt")
    _, shared = plan(capsys, "-m", "8b", "--memory", "16GB", "--device", "tensorrt", "--shared")
    for a, b in zip(own["precisions"], shared["precisions"], strict=True):  # type: ignore[call-overload]
        assert b["peak"] == a["peak"] + a["host"]
        assert b["spare"] == a["spare"] - a["host"]


def test_a_card_is_told_of_precisions_that_are_written_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    none = {"bf16", "int8-7bit"}
    for device, left_out in (("cpu", {"fp8"}), ("cuda", none | {"fp8"}), ("tensorrt", none | {"fp8"}), ("rtx", none)):
        _, said = plan(capsys, "-m", "8b", "--memory", "12GB", "--device", device)
        assert {row["precision"] for row in said["precisions"]} == set(memory_plan.PRECISIONS) - left_out  # type: ignore[attr-defined]


@pytest.fixture
def partial_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds of which two keep keys and values of drawings, whatever the shipped ones keep."""
    changes = {"refresh": 2, "candidate_ratio": 2.0}
    monkeypatch.setattr(settings, "PRESETS", {"exact": ({}, {}), "balanced": ({}, changes), "fast": ({}, changes)})


@pytest.mark.usefixtures("partial_steps")
def test_a_speed_counts_the_caches_that_it_keeps(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The published settings have no cache for drawings; such a speed keeps keys and values of both rows."""
    _, exact = plan(capsys, "-m", "8b", "--memory", "16GB")
    _, balanced = plan(capsys, "-m", "8b", "--memory", "16GB", "--speed", "balanced")
    for a, b in zip(exact["precisions"], balanced["precisions"], strict=True):  # type: ignore[call-overload]
        assert b["caches"] > a["caches"]
        assert b["weights"] == a["weights"]
    _, none = plan(capsys, "-m", tiny_bundle, "--memory", "1GB", "--cache", "none")
    assert none["precisions"][0]["caches"] == 0  # type: ignore[index]


@pytest.mark.usefixtures("partial_steps")
def test_the_table_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-m", "8b", "--memory", "48GB"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("weights", "embedding on disk", "activations", "caches", "codec", "int4", "fp16"))
    assert "the finest that fits: fp32" in out
    for options, advice in (
        (["--speed", "fast"], "--speed exact keeps less of drawings"),
        ([], "--cache-precision fp16 keeps the same in half of the caches' memory"),
        (["--cache-precision", "fp16"], "--cache none keeps nothing between steps"),
        (["--cache", "none"], "a shorter --answer-length takes less"),
    ):
        assert main(["plan", "-m", "8b", "--memory", "1GB", *options]) == 1
        assert advice in capsys.readouterr().out


@pytest.mark.parametrize("text", ["8000000", "8GB", "7.5 GiB", "900mb", "1kB"])
def test_amounts_of_memory(text: str) -> None:
    known = {"8000000": 8_000_000, "8GB": 8 * 10**9, "7.5 GiB": 15 << 29, "900mb": 9 * 10**8, "1kB": 1000}
    assert bytes_of(text) == known[text]


@pytest.mark.parametrize("text", ["", "much", "8 apples", "-1GB", "0", "1e3GB"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(Error, match="is no amount of memory; write it like 8GB"):
        bytes_of(text)


def test_a_number_without_a_unit_is_no_handful_of_bytes() -> None:
    with pytest.raises(Error, match="would be 8 bytes; say the unit, as in 8GB"):
        bytes_of("8")


def test_bad_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["-m", "9b"], "9b is no bundle, checkpoint folder or config.json; name one, or a published model: 8b"),
        (["-m", "8b", "--memory", "lots"], "is no amount of memory"),
        (["-m", "8b", "--device", "tpu"], "no device is called 'tpu'"),
        (["-m", "8b", "--memory", "8GB", "--cache", "all"], "cache is 'all'"),
        (["-m", "8b", "--memory", "8GB", "--speed", "warp"], "no speed is called 'warp'; use one of exact, balanced, fast"),
    ):
        assert main(["plan", *options]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 4 kB\n"}, 4096),
        ({"/proc/meminfo": "MemAvailable: 4 kB\n", "memory.max": "5000\n", "memory.current": "3000\n"}, 2000),
        ({"/proc/meminfo": "MemAvailable: 1 kB\n", "memory.max": "5000\n", "memory.current": "3000\n"}, 1024),
        ({"/proc/meminfo": "MemAvailable: 4 kB\n", "memory.max": "max\n", "memory.current": "3000\n"}, 4096),
        ({"/proc/meminfo": "another system\n"}, None),
    ],
)
def test_memory_is_what_the_system_and_the_container_leave(
    files: dict[str, str], expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / Path(name).name).write_text(text)
    monkeypatch.setattr(memory_plan, "Path", lambda name: tmp_path / (Path(name).name if "meminfo" in name else ""))
    assert memory_plan.memory_available() == expected
