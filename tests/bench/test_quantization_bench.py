"""What quantization costs: a model loses nothing against itself, coarser formats lose more, writes are those of decoding."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import mmada_lite
from mmada_lite.bench import record, third_party
from mmada_lite.bench.quality import quantization
from mmada_lite.bench.quality.quantization import (
    Reference,
    fresh_prompts,
    interval,
    main,
    plot,
    requests,
    rounded,
    rounded_model,
    table,
    tasks_of,
)
from mmada_lite.bench.quality.trajectories import State, answer, compare, log_softmax, trajectories, written_tokens
from mmada_lite.errors import Error
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.quant.convert import Request
from mmada_lite.quant.prompts import NEEDED, TASKS, Prompt, built_in
from mmada_lite.train.denoiser import TorchDenoiser
from mmada_lite.train.model import MMaDA

PROMPTS = [Prompt("chat", "hello"), Prompt("paint", "a cat"), Prompt("ask", "what is this?"), Prompt("paint", "a red apple")]


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> mmada_lite.Model:
    return mmada_lite.load(tiny_bundle, device="cpu", threads=1)


@pytest.fixture(scope="module")
def states(model: mmada_lite.Model) -> list[State]:
    return trajectories(model, PROMPTS, 4)


def test_states_are_those_of_decoding(model: mmada_lite.Model, states: list[State]) -> None:
    assert {state.task for state in states} == set(NEEDED)
    assert {len(state.windows) for state in states if state.task == "paint"} == {2}  # with guidance
    mask = model.vocabulary.special.mask
    for state in states:
        assert state.written.any()
        assert (state.windows[0].tokens[0, state.windows[0].queries[0]] == mask).all()


def test_what_is_drawn_from_a_thought_is_told_apart(model: mmada_lite.Model) -> None:
    """The packaged model thinks, random weights do not."""
    known = mmada_lite.load(device="cpu", threads=1)
    assert (tasks_of(known), tasks_of(model)) == (TASKS, NEEDED)
    prompt = Prompt("think", "a cat left of a car")
    followed = trajectories(known, [prompt, Prompt("paint", "a cat")], 4)
    assert [(state.prompt, state.task, state.head) for state in followed[-4:]] == [(0, "think", "image")] * 4
    row = followed[-1].windows[0].tokens[0].tolist()
    assert row[0] == known.vocabulary.special.r2i
    assert "left cat, right car" in known.tokenizer.decode(row[: row.index(known.vocabulary.special.soi)])
    plain = trajectories(model, [prompt], 4)
    assert plain[0].windows[0].tokens[0, 0] == model.vocabulary.special.t2i


def test_an_answer_is_followed_to_its_end_and_no_further() -> None:
    """As many states as a user's answer takes steps, which is fewer than it has room for."""
    known = mmada_lite.load(device="cpu", threads=1)
    exact, question = known.text_defaults.replace(cache="none"), "what is 3 + 4?"
    taken = known.chat(question, exact).result().steps
    assert len(trajectories(known, [Prompt("chat", question)], 1000)) == taken < exact.answer_length


def test_what_is_written_is_what_decoding_wrote(model: mmada_lite.Model) -> None:
    for prompt in PROMPTS[:2]:
        followed = trajectories(model, [prompt], 1000)
        offset = model.vocabulary.image_code_offset if prompt.task == "paint" else 0
        for now, then in pairwise(followed):
            places = now.windows[0].queries[0][now.written]
            tokens = written_tokens(log_softmax(answer(model.denoiser, now)), now)[now.written] + offset
            usual = tokens != model.vocabulary.special.mask  # a guess that is the mask itself is replaced
            np.testing.assert_array_equal(then.windows[0].tokens[0, places][usual], tokens[usual])


def test_a_model_loses_nothing_against_itself(model: mmada_lite.Model, states: list[State]) -> None:
    found = compare(model.denoiser, model.denoiser, states, len(PROMPTS))
    np.testing.assert_array_equal(found.agreed, found.positions)
    assert np.abs(found.divergence).max() < 1e-9
    assert found.flips.sum() == 0
    assert (found.positions > 0).all()
    assert len(found.seconds) == len(found.reference_seconds) == len(states)


def test_coarser_formats_lose_more(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    for precision in ("fp16", "int8", "int4"):
        export_checkpoint(tiny_checkpoint, tmp_path / precision, precision=precision)  # type: ignore[arg-type]
    reference = Reference.cached(tiny_bundle, 2, 2, 1)()
    rows = [reference.told_of_bundle(tmp_path / name) for name in ("fp16", "int8", "int4")]
    divergences = [row["divergence"][0] for row in rows]
    assert divergences == sorted(divergences)
    assert rows[0]["bits"] > rows[1]["bits"] > 8  # the int4 preset fills the tiny model's short columns up to 128
    for row in rows:
        assert all(low <= mean <= high for mean, low, high in (row["agreement"], row["divergence"], row["flips"]))


def test_bundles_of_another_model_are_refused(tiny_bundle: Path) -> None:
    with pytest.raises(Error, match="has another shape or vocabulary"):
        Reference.cached(tiny_bundle, 1, 1, 1)().told_of_bundle(mmada_lite.model.embedded_bundle())


def test_prompts_of_the_comparison_are_not_those_of_calibration() -> None:
    asked = fresh_prompts(20)
    assert {task: sum(prompt.task == task for prompt in asked) for task in NEEDED} == dict.fromkeys(NEEDED, 20)
    seen = {prompt.text for seed in range(3) for task in ("paint", "chat") for prompt in built_in(task, 32, seed)}  # type: ignore[arg-type]
    assert not seen & {prompt.text for prompt in asked if prompt.task != "ask"}


def test_intervals_hold_the_mean() -> None:
    mean, low, high = interval(np.arange(50.0), np.ones(50, int))
    assert low < mean == 24.5 < high
    assert 3 < high - mean < 6


def test_all_of_a_candidate_is_stored_alike() -> None:
    wanted = requests(["int8", "int4-b64"], ["rtn", "gptq"], 4)
    assert list(wanted)[:4] == ["int8 rtn", "int8 gptq", "int4-b64 rtn", "int4-b64 gptq"]
    assert dict(wanted["int4-b64 rtn"].store)["image_head"] == "int4-b64"
    assert wanted["--format int4 gptq"].store == ()
    assert [name for name in requests(["fp32", "fp16"], ["rtn", "gptq"], 4) if "--" not in name] == ["fp32 rtn", "fp16 rtn"]


WORDS = ["--formats", "int4-b32", "--methods", "gptq", "--prompts", "1", "--states", "1", "--calibrate-on", "1"]


def test_the_command_prints_a_table_and_json(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "quantization.json"
    assert main([str(tiny_checkpoint), *WORDS, "-o", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    content = record.load(output)
    assert json.loads(lines[-1]) == content
    assert {row["name"] for row in content["rows"]} == {"int4-b32 gptq", "--format int8 gptq", "--format int4 gptq"}
    assert lines[0].startswith("|  | MB |")


def test_a_run_that_was_stopped_goes_on(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, made, quantize = tmp_path / "quantization.json", list[str](), quantization.quantize_model
    words = [str(tiny_checkpoint), *WORDS, "-o", str(output)]

    def killed_at_the_second(checkpoint: Path, target: Path, request: Request, **more: bool) -> Path:
        made.append(request.format)
        if made == ["fp32", "int4-b32", "int8"]:
            raise KeyboardInterrupt
        return quantize(checkpoint, target, request, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(quantization, "quantize_model", killed_at_the_second)
    assert main(words) == 130
    assert list(record.load(record.unfinished(output))["tasks"]) == ["int4-b32 gptq"]
    assert main(words) == 0
    assert made[3:] == ["fp32", "int8", "int4"]
    assert [row["name"] for row in record.load(output)["rows"]] == ["int4-b32 gptq", "--format int8 gptq", "--format int4 gptq"]


def test_others_that_are_not_installed_are_named(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(module: str, package: str | None = None) -> None:
        raise Error(f"{module} is not installed; pip install {package or module}")

    monkeypatch.setattr(third_party, "need", absent)
    words = [*WORDS, "--formats", "fp16", "--peers", "-o", str(tmp_path / "q.json")]
    assert main([str(tiny_checkpoint), *words]) == 0
    not_run = record.load(tmp_path / "q.json")["not_run"]
    assert set(not_run) == set(third_party.candidates(tiny_checkpoint, Path(), Path(), 1))
    assert not_run["optimum dynamic int8"] == "Error: optimum.onnxruntime is not installed; pip install optimum-onnx"
    assert "not run: bitsandbytes int8: Error: bitsandbytes is not installed" in capsys.readouterr().out


def test_others_get_every_block_that_they_may_take() -> None:
    names = third_party.candidates(Path(), Path(), Path(), 1)
    for algorithm in ("rtn", "hqq", "k_quant", "default"):
        assert {f"onnxruntime {algorithm} b{block}" for block in (32, 64, 128)} <= set(names)


def test_bitsandbytes_rounds_activations_too() -> None:
    """Its int8 is LLM.int8() in eval() alone."""
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install -e '.[peers]'")
    for kind in ("int8", "nf4"):
        assert not third_party.quantized_linear(torch.nn.Linear(64, 64, bias=False), kind).training


def test_no_matplotlib_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    shares = {name: (share, share, share) for name, share in (("agreement", 1), ("divergence", 0), ("flips", 0))}
    row = {"name": "int8 rtn", "bytes": 10, "bits": 8.0, **shares, "seconds": 0.1, "tasks": {"chat": shares}}
    with pytest.raises(Error, match=r'pip install "mmada-lite\[bench\]"'):
        plot([row], tmp_path / "truth.png")
    assert "| int8 rtn | 0.00 | 8.0 | 100.00 (100.00 to 100.00) |" in table([row])


def test_no_weight_is_off_by_more_than_half_a_step() -> None:
    weight = torch.randn(5, 70, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    for bits in (2, 4, 8, 12):
        made = rounded(weight, bits)
        for part, back in zip(weight.split(32, dim=1), made.split(32, dim=1), strict=True):
            step = part.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 0.5)
            assert ((part - back).abs() <= 0.5001 * step).all()
            assert max(len(row.unique()) for row in back) <= 2**bits
        assert not made[2].any()


def test_matrices_are_rounded_and_nothing_else(tiny_checkpoint: Path) -> None:
    plain, made = MMaDA.load(tiny_checkpoint), rounded_model(tiny_checkpoint, 4)
    assert isinstance(made, TorchDenoiser)
    changed = {
        name
        for (name, before), after in zip(plain.named_parameters(), made.model.parameters(), strict=True)
        if not torch.equal(before, after)
    }
    assert changed == {name for name, value in plain.named_parameters() if value.ndim == 2 and "wte" not in name}


def test_more_bits_agree_more(tiny_checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "bits.json"
    assert main([str(tiny_checkpoint), "--bits", "16", "3", "--prompts", "2", "--states", "2", "-o", str(output)]) == 0
    rows = record.load(output)["rows"]
    assert [(row["name"], row["bits"]) for row in rows] == [("3 bits", 3), ("16 bits", 16)]
    assert rows[0]["divergence"][0] > 100 * rows[1]["divergence"][0]
    assert np.isclose(rows[1]["agreement"][0], 1, atol=0.02)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompts", "0"], "--prompts: 0 cannot be measured"),
        (["--states", "0"], "--states: 0 cannot be measured"),
        (["--bits", "8", "17"], "each is from 2 to 16"),
        (["--methods", "rtn", "gptc"], "--methods: invalid choice: 'gptc' (choose from "),
        (["--formats", "zz"], "no format is called 'zz'; use one of"),
        (["--formats", "int8", "int4-b23"], "no format is called 'int4-b23'; did you mean 'int4-b32'?"),
        (["--formats", "fp16", "--methods", "clip"], "nothing of fp16 is made by clip; give --methods rtn"),
        ([], "is no checkpoint (config.json)"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "-o", str(tmp_path / "out.json"), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mmada-lite: ")
    assert message in line
    assert not (tmp_path / "out.json").exists()
