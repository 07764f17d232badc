"""Calibration: rows as decoding meets them, weighted by how soon they are written, of prompts that are fixed or given."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conversions import SMALL

import mmada_lite
from mmada_lite import TextSettings
from mmada_lite.bundle import Bundle
from mmada_lite.errors import Error
from mmada_lite.quant.calibration import (
    Calibration,
    CalibrationModel,
    Weighting,
    collect,
    position_weights,
    samples_of,
    to_arrays,
)
from mmada_lite.quant.convert import Request, quantize_model
from mmada_lite.quant.prompts import NEEDED, TASKS, Prompt, built_in, from_file
from mmada_lite.quant.sources import open_calibration_model, open_source


@pytest.mark.slow
def test_rows_are_those_that_decoding_meets(tiny_checkpoint: Path) -> None:
    checkpoint = open_source(tiny_checkpoint)
    model = open_calibration_model(checkpoint, None)
    mask, settings = checkpoint.vocabulary.special.mask, Calibration(prompts=2, steps=4)
    reports: list[tuple[int, int]] = []
    samples = collect(model, settings, progress=lambda done, total: reports.append((done, total)))
    assert reports == [(n, 8) for n in range(1, 7)]  # one prompt to think about shows that it does not: nothing is done of it
    assert {sample.task for sample in samples} == set(NEEDED)
    assert len(samples) == 2 * 4 * 3  # random weights think of nothing
    for sample in samples:
        masked = sample.tokens == mask
        assert masked.any()
        assert (sample.weight[masked] > sample.weight[~masked].max()).all()
        np.testing.assert_array_equal(sample.predicted > 0, masked)
    ratios = {float((sample.tokens == mask).mean()) for sample in samples}
    assert len(ratios) > 4
    for sample in collect(model, Calibration(prompts=1, steps=2, seen="unmasked")):
        assert not (sample.tokens == mask).any()
        assert (sample.weight == 1).all()
    again = samples_of(to_arrays(collect(model, settings)))  # as they come back from a work folder
    assert [sample.task for sample in again] == [sample.task for sample in samples]
    assert all((a.tokens == b.tokens).all() and (a.weight == b.weight).all() for a, b in zip(samples, again, strict=True))


def test_a_model_that_thinks_before_it_draws_is_watched_while_it_does() -> None:
    model = mmada_lite.load(device="cpu", threads=1)
    codes, longest = model.codec.grid**2, model.bundle.architecture.max_sequence_length
    watched = CalibrationModel(
        *(model.denoiser, model.tokenizer, model.vocabulary, codes, longest, model.text_defaults, model.image_defaults)
    )
    prompts = [Prompt(task, "what is this?") for task in NEEDED]
    prompts += [Prompt("think", text) for text in ("a cat left of a car", "an apple above a star on a red background")]
    reports: list[tuple[int, int]] = []
    samples = collect(watched, Calibration(prompts=2, steps=3), prompts, lambda done, total: reports.append((done, total)))
    special = model.vocabulary.special
    thought = [sample for sample in samples if sample.tokens[0] == special.r2i]
    assert [sample.task for sample in thought if sample.task == "chat"] == ["chat"] * 6
    drawn = [sample for sample in thought if sample.task == "paint"]
    assert 0 < len(drawn) <= 6  # the others are rows of guidance, without a prompt
    for sample in drawn:
        before = sample.tokens.tolist()[2 : sample.tokens.tolist().index(special.soi)]
        assert "</think>" in model.tokenizer.decode(before)
    assert len(samples) == 3 * 3 + 2 * 2 * 3
    assert reports == [(n, 5) for n in range(1, 6)]


def test_watching_ends_where_the_text_does() -> None:
    """Rows behind the end of an answer are none that decoding meets: what follows its block is left masked."""
    model = mmada_lite.load(device="cpu", threads=1)
    text = TextSettings(answer_length=32, steps=32, block_length=8)
    longest = model.bundle.architecture.max_sequence_length
    watched = CalibrationModel(*(model.denoiser, model.tokenizer, model.vocabulary, 0, longest, text, model.image_defaults))
    (sample,) = collect(watched, Calibration(prompts=1, steps=1, seen="unmasked"), [Prompt("chat", "what is 3 + 4?")])
    answer = sample.tokens[-32:]
    ends = np.flatnonzero(np.isin(answer, [model.vocabulary.special.eos, model.vocabulary.special.eot]))
    stop = 8 * (1 + ends[0] // 8)
    assert stop < 32
    np.testing.assert_array_equal(answer == model.vocabulary.special.mask, np.arange(32) >= stop)
    np.testing.assert_array_equal(sample.predicted[-32:] > 0, np.arange(32) < stop)


def test_what_is_drawn_in_calibration_is_drawn_by_its_seed() -> None:
    model = mmada_lite.load(device="cpu", threads=1)
    text = TextSettings(answer_length=8, steps=8, block_length=8, temperature=100.0)
    longest = model.bundle.architecture.max_sequence_length
    watched = CalibrationModel(*(model.denoiser, model.tokenizer, model.vocabulary, 0, longest, text, model.image_defaults))

    def answer(seed: int) -> list[int]:
        asked = Calibration(prompts=1, steps=1, seen="unmasked", seed=seed)
        (sample,) = collect(watched, asked, [Prompt("chat", "what is 3 + 4?")])
        return list(sample.tokens)

    assert answer(0) == answer(0) != answer(1)


def test_what_is_written_sooner_weighs_more() -> None:
    weights = position_weights(np.array([-1, 0, 1, 8, 1000]), 16, Weighting(given=0.1, masked=0.5, soon=1.0, half=0.125))
    np.testing.assert_allclose(weights[[0, 1, 4]], [0.1, 1.5, 0.5], atol=1e-6)
    assert (np.diff(weights[1:]) < 0).all()
    halved = position_weights(np.array([0, 2, 4, 6]), 16, Weighting(given=0, masked=0.5, soon=1.0, half=0.125))
    np.testing.assert_allclose(halved, [1.5, 1, 0.75, 0.625])  # every two steps


def test_prompts_are_fixed_or_come_from_a_file(tmp_path: Path) -> None:
    assert built_in("paint", 5) == built_in("paint", 9)[:5]
    texts = {prompt.text for task in TASKS for prompt in built_in(task, 20)}
    assert len(texts) > 30
    assert not any("None" in text or "{" in text for text in texts)
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"task": "chat", "text": "hello"}\n\n{"task": "paint", "text": "a cat"}\n')
    assert from_file(file) == [Prompt("chat", "hello"), Prompt("paint", "a cat")]
    for bad in ("nonsense", '{"task": "sing", "text": "x"}', '{"task": "chat", "text": " "}', '{"task": "chat"}'):
        file.write_text('{"task": "chat", "text": "hello"}\n' + bad)
        with pytest.raises(Error, match="line 2"):
            from_file(file)
    file.write_text("\n")
    with pytest.raises(Error, match="holds no prompts"):
        from_file(file)


def test_a_bundle_decodes_the_prompts_for_a_checkpoint_too_large(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmada_lite.quant.sources.memory_available", lambda: 1000)
    with pytest.raises(Error, match="first quantize it with --method rtn, then add --record-with"):
        quantize_model(tiny_checkpoint, tmp_path / "b", SMALL)
    recorded = Request(format="int4-b32", method="gptq", prompts=1, steps=1, record_with=tiny_bundle)
    Bundle.open(quantize_model(tiny_checkpoint, tmp_path / "b", recorded), verify="full")


def test_prompts_that_lack_a_task_leave_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(
        Error, match="there is no prompt for paint among those given; calibration needs all of chat, ask, paint"
    ):
        quantize_model(tiny_checkpoint, tmp_path / "b", SMALL, given=[Prompt("think", "a cat left of a car")])
    assert not list(tmp_path.iterdir())


def test_more_prompts_than_can_be_decoded_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(Error, match="is more than a machine decodes; use 10000 at most"):
        quantize_model(tiny_checkpoint, tmp_path / "b", replace(SMALL, prompts=10**9))
    assert not list(tmp_path.iterdir())
