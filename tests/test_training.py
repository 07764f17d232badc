"""Laws of the trainings: toy runs lower their loss, a killed run resumes on the same curve, checkpoints are whole, the judge
and the report count right. Everything is tiny and synthetic."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from mmada_lite.train.parallel import Workers
from mmada_lite.train.stage_one import StageOne, StageOneSettings, averaged_weights
from test_train_data import disc, pool, tokenizer, vocabulary  # noqa: F401  (fixtures)
from torch import nn

from mmada_lite.errors import Error
from mmada_lite.export.checkpoint import TransformerConfig
from mmada_lite.export.vq_layout import Tower, VQConfig
from mmada_lite.train import evaluate, stage_vq
from mmada_lite.train.data.concepts import CONCEPT_NAMES
from mmada_lite.train.data.pictures import PLAIN
from mmada_lite.train.data.pool import Pool, extend_pool, read_pool
from mmada_lite.train.data.sequences import Sequences
from mmada_lite.train.data.texts import pairs
from mmada_lite.train.judge import Judge, compose_many
from mmada_lite.train.model import MMaDA
from mmada_lite.train.optimizer import Average, Optimizer, orthogonalize, trapezoid, warm_cosine
from mmada_lite.train.progress import Log, load_state, save_state
from mmada_lite.train.vq import MagViT
from mmada_lite.vocabulary import Tokenizer, Vocabulary

SETTINGS = StageOneSettings(steps=20, rows=4, paint_groups=1, ask_groups=1, warmup=2, threads=2, save_seconds=1e9)
TINY_VQ = VQConfig(Tower(8, (1, 1, 2, 2), (1, 1, 1, 1)), Tower(8, (1, 1, 2, 2), (1, 1, 1, 1)), 8, 64, 4)


def tiny_model(vocabulary: Vocabulary) -> MMaDA:  # noqa: F811
    special = vocabulary.special
    config = TransformerConfig(
        d_model=32,
        n_layers=2,
        n_heads=2,
        n_kv_heads=2,
        mlp_hidden_size=64,
        vocab_size=vocabulary.size,
        rope_theta=1e4,
        rms_norm_eps=1e-5,
        mask_token_id=special.mask,
        eos_token_id=special.eos,
        max_sequence_length=256,
        codebook_size=vocabulary.codebook_size,
        llm_vocab_size=vocabulary.image_code_offset,
        num_vq_tokens=64,
    )
    torch.manual_seed(0)
    return MMaDA(config)


@pytest.fixture
def sequences(tokenizer: Tokenizer, vocabulary: Vocabulary, pool: Pool) -> Sequences:  # noqa: F811
    return Sequences(tokenizer, vocabulary, pool)


def losses(folder: Path) -> list[dict]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def test_toy_run_lowers_the_loss_and_resumes_on_the_same_curve(sequences: Sequences, tmp_path: Path) -> None:
    model = tiny_model(sequences.vocabulary)
    StageOne(model, sequences, tmp_path / "whole", SETTINGS).train()
    whole = losses(tmp_path / "whole")
    assert len(whole) == 20
    assert whole[-1]["ask"] < 0.9 * whole[0]["ask"]
    assert whole[-1]["text"] < 0.9 * whole[0]["text"]

    StageOne(tiny_model(sequences.vocabulary), sequences, tmp_path / "cut", SETTINGS).train(until=11)
    with (tmp_path / "cut" / "log.jsonl").open("a") as stream:  # written after the checkpoint, before the kill
        stream.write('{"step": 11, "ask": 0.0}\n{"step": 12, "as')
    again = tiny_model(sequences.vocabulary)
    StageOne(again, sequences, tmp_path / "cut", SETTINGS).train()
    assert losses(tmp_path / "cut") == whole
    assert all((a == b).all() for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert averaged_weights(tmp_path / "cut", again) == 20


def test_a_partial_state_is_never_read(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    assert load_state(file) is None
    save_state(file, {"step": 3})
    (tmp_path / "state.pt.partial").write_bytes(b"cut short")
    state = load_state(file)
    assert state is not None
    assert state["step"] == 3


def test_log_drops_what_comes_after_the_checkpoint(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    for step in range(5):
        log.write({"step": step})
    Log(tmp_path / "log.jsonl", 3)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3


def test_pieces_sum_to_the_gradient_of_the_whole() -> None:
    torch.manual_seed(1)
    model, x = nn.Linear(5, 3), torch.randn(8, 5)

    def loss(rows: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        value = model(rows).square().sum()
        return value, {"loss": value.item()}

    loss(x)[0].backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    workers = Workers(2)
    parts = workers.gradients(model, [partial(loss, rows) for rows in x.chunk(4)])
    workers.close()
    assert len(parts) == 4
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(12, 12), (8, 30), (30, 8)])
def test_muon_steps_are_nearly_orthogonal(shape: tuple[int, int]) -> None:
    torch.manual_seed(2)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
    assert values.min() > 0.4
    assert values.max() < 1.5


def test_optimizer_lowers_a_quadratic_and_the_average_follows() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    optimizer = Optimizer(model, {"0.weight"}, muon_lr=0.05, adam_lr=0.02, decay=0.0)
    average, x = Average(model, 0.9), torch.randn(32, 6)
    first = (model(x) - 1).square().mean().item()
    for step in range(40):
        (model(x) - 1).square().mean().backward()
        optimizer.step(1.0)
        average.update(model, step)
    assert (model(x) - 1).square().mean().item() < 0.3 * first
    before = model[0].weight.detach().clone()
    average.swap(model)
    average.swap(model)
    assert (model[0].weight == before).all()


def test_learning_rate_factors() -> None:
    for law in (warm_cosine, trapezoid):
        factors = [law(step, 100, 10) for step in range(100)]
        assert factors[0] < 0.2
        assert max(factors) <= 1.0
        assert factors[-1] < 0.1
    assert trapezoid(30, 100, 10) == 1.0


def test_vq_training_lowers_the_loss_and_resumes(tmp_path: Path) -> None:
    icons = np.stack([disc((200, 30, 30)), disc((30, 200, 30))])
    source = stage_vq.PictureSource(icons, icons, 0.5)
    checks = {"some": stage_vq.validation_pictures(icons, 2)}
    settings = stage_vq.VQSettings(steps=12, batch=4, pieces=2, save_seconds=1e9)
    torch.manual_seed(0)
    model = stage_vq.train_vq(MagViT(TINY_VQ), source, checks, tmp_path, settings)
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert records[-1]["psnr_some"] > 3
    pixels = stage_vq.to_tensor(source.batch(4, np.random.default_rng(0)))
    torch.manual_seed(0)
    fresh, _ = stage_vq.reconstruction_loss(MagViT(TINY_VQ), pixels, settings, 0.0)
    trained, _ = stage_vq.reconstruction_loss(model, pixels, settings, 0.0)
    assert trained < fresh
    again = stage_vq.train_vq(MagViT(TINY_VQ), source, checks, tmp_path, settings)  # nothing left to do
    assert all((a == b).all() for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_entropy_loss_prefers_sure_and_varied_codes() -> None:
    sure = torch.where(torch.rand(4, 12, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5, 3.0, -3.0)
    unsure, constant = torch.zeros(4, 12, 8, 8), torch.full((4, 12, 8, 8), 3.0)
    assert stage_vq.entropy_loss(sure) < stage_vq.entropy_loss(unsure)
    assert stage_vq.entropy_loss(sure) < stage_vq.entropy_loss(constant)


def test_pool_is_written_in_shards_and_read_back(tmp_path: Path) -> None:
    icons = np.stack([np.stack([disc((40 + 8 * i, 90, 200 - 8 * i)) for i in range(len(CONCEPT_NAMES))])])
    model = MagViT(TINY_VQ).eval()
    extend_pool(tmp_path, icons, model, 2, 10)
    found = read_pool(tmp_path)
    assert found.codes.shape == (20, 64)
    assert found.tidy.sum() == 10
    assert {(int(i), int(k)) for i, k in zip(found.concept, found.colour, strict=True)}
    assert read_pool(tmp_path, 1).codes.shape == (10, 64)
    with pytest.raises(Error, match="pool"):
        read_pool(tmp_path / "nowhere")


def test_judge_is_saved_and_loaded_alike(tmp_path: Path) -> None:
    torch.manual_seed(4)
    judge = Judge().eval()
    icons = np.stack([np.stack([disc((10 * i, 255 - 10 * i, 80)) for i in range(len(CONCEPT_NAMES))])])
    pictures, labels = compose_many(icons, 12, np.random.default_rng(0), PLAIN)
    judge.save(tmp_path, {"validation": 0.5})
    assert (Judge.load(tmp_path).classify(pictures) == judge.classify(pictures)).all()
    assert labels.max() < len(CONCEPT_NAMES)
    with pytest.raises(Error, match="judge"):
        Judge.load(tmp_path / "nowhere")


def test_evaluation_counts(sequences: Sequences) -> None:
    vocabulary = sequences.vocabulary  # noqa: F811
    model = tiny_model(vocabulary).eval()
    subject = evaluate.Subject(model, MagViT(TINY_VQ).eval(), sequences.tokenizer, vocabulary)
    settings = evaluate.ImageSettings(steps=2, guidance=1.0)
    report, pictures = evaluate.judge_drawings(subject, Judge(), pairs(held=True)[:5], 0, settings)
    assert pictures.shape == (5, 64, 64, 3)
    assert report["named_right"]["total"] == 5  # type: ignore[index]
    replies = evaluate.answer(subject, [evaluate.question(subject, "what is 1 + 1?")] * 3)
    assert len(set(replies)) == 1


def test_intervals_and_sheets() -> None:
    counted = evaluate.interval(8, 10)
    assert counted["low"] < 0.8 < counted["high"]
    assert counted["low"] == pytest.approx(0.490, abs=0.001)  # Wilson, by hand
    assert evaluate.interval(0, 5)["low"] == 0
    sheet = evaluate.contact_sheet(np.zeros((7, 4, 4, 3), np.uint8), 5)
    assert sheet.shape == (8, 20, 3)
    assert (sheet[4:, 8:] == 255).all()
    assert evaluate.batches([3, 5, 3]) == [[0, 2], [1]]


def test_sharpening_leaves_the_codes_alone(tmp_path: Path) -> None:
    icons = np.stack([disc((200, 30, 30)), disc((30, 200, 30))])
    source = stage_vq.PictureSource(icons, icons, 0.5)
    pixels = stage_vq.to_tensor(source.batch(4, np.random.default_rng(0)))
    torch.manual_seed(0)
    model = MagViT(TINY_VQ)
    codes, before = model.encode(pixels), model.decode(model.encode(pixels))
    settings = stage_vq.VQSettings(steps=2, batch=2, pieces=1, decoder_only=True)
    sharp = stage_vq.train_vq(model, source, {}, tmp_path, settings)
    assert (sharp.encode(pixels) == codes).all()
    assert not torch.equal(sharp.decode(codes), before)
