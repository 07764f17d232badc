"""Laws of the trainings: toy runs lower their loss and go on where they were stopped, a fault leaves the last good state, a
model grows without losing what it knew, the judge counts right. Everything is tiny and synthetic; processes of their own
are in test_processes."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from toys import TINY_VQ, discs, records, stage_settings, tiny_model

from mmada_lite.errors import Error
from mmada_lite.train import loop as training_loop
from mmada_lite.train import optimizer, stage_vq
from mmada_lite.train.code_bits import merge
from mmada_lite.train.data.concepts import COLOURS, CONCEPT_NAMES
from mmada_lite.train.data.pictures import PLAIN
from mmada_lite.train.data.pool import NOTHING, read_pool
from mmada_lite.train.data.scenes import layout_held_out
from mmada_lite.train.data.sequences import Sequences
from mmada_lite.train.data.texts import pairs
from mmada_lite.train.judge import Judge, compose_cells, compose_many
from mmada_lite.train.loop import Loop, LoopSettings, Piece, trained_weights
from mmada_lite.train.optimizer import Average, optimizers, orthogonalize, set_rates, trapezoid, warm_cosine
from mmada_lite.train.progress import Log, load_state, save_state
from mmada_lite.train.shards import extend_pool
from mmada_lite.train.stages import (
    STAGES,
    TASKS,
    Share,
    StageSettings,
    UnifiedObjective,
    batch,
    load_trained,
    piece,
    train_stage,
)
from mmada_lite.train.vq import MagViT


class Squares(nn.Module):
    """The sum of squares of a linear layer, of which some rows may be spoilt."""

    def __init__(self, spoil: Callable[[Tensor], Tensor] = lambda value: value) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.inner, self.spoil = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)), spoil

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        value = self.spoil(self.inner(x)).square().sum()
        return value, {"square": torch.stack([value.detach(), value.new_tensor(float(len(x)))])}


def toy_loop(folder: Path, objective: nn.Module, steps: int = 6, **settings: float) -> Loop:
    return Loop(objective, {"inner.0.weight"}, folder, LoopSettings(steps, **settings), lambda step: 1.0)  # type: ignore[arg-type]


def pieces(step: int, parts: int = 2) -> list[Piece]:
    rows = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
    return [{"x": part} for part in rows.chunk(parts)]


def test_toy_run_lowers_the_loss_and_goes_on_with_the_same_curve(toy_sequences: Sequences, tmp_path: Path) -> None:
    model = tiny_model(toy_sequences.vocabulary)
    train_stage(model, toy_sequences, tmp_path / "whole", stage_settings(16))
    unbroken = records(tmp_path / "whole")
    assert [record["step"] for record in unbroken] == list(range(16))
    for task in ("ask", "scene", "sum"):
        assert unbroken[-1][task] < 0.8 * unbroken[0][task], task
    assert unbroken[-1]["paint"] < unbroken[0]["paint"]
    assert all(record["norm"] > 0 for record in unbroken)

    train_stage(tiny_model(toy_sequences.vocabulary), toy_sequences, tmp_path / "cut", stage_settings(16), until=9)
    with (tmp_path / "cut" / "log.jsonl").open("a") as stream:  # written after the state, before the kill
        stream.write('{"step": 9, "ask": 0.0}\n{"step": 10, "as')
    again = tiny_model(toy_sequences.vocabulary)
    train_stage(again, toy_sequences, tmp_path / "cut", stage_settings(16))
    assert records(tmp_path / "cut") == unbroken
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    one, two = (trained_weights(tmp_path / name)[0] for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_rows_that_other_processes_made_are_the_same(toy_sequences: Sequences, tmp_path: Path) -> None:
    for name, workers in (("alone", 0), ("ahead", 2)):
        model = tiny_model(toy_sequences.vocabulary)
        for until in (2, None):  # resumed, the makers begin at the step that comes next
            train_stage(model, toy_sequences, tmp_path / name, stage_settings(5), until, workers)
    assert records(tmp_path / "alone") == records(tmp_path / "ahead")


def test_a_stage_begins_with_the_averaged_weights_of_the_one_before(toy_sequences: Sequences, tmp_path: Path) -> None:
    loop = train_stage(tiny_model(toy_sequences.vocabulary), toy_sequences, tmp_path, stage_settings(3))
    averaged, last = tiny_model(toy_sequences.vocabulary), tiny_model(toy_sequences.vocabulary)
    assert load_trained(tmp_path, averaged) == load_trained(tmp_path, last, averaged=False) == 3
    blocks = [(name, p) for name, p in averaged.named_parameters() if ".blocks." in name]
    assert all(torch.equal(loop.average.values["model." + name], p) for name, p in blocks)
    assert not torch.equal(last.transformer.wte.weight, averaged.transformer.wte.weight)
    with pytest.raises(Error, match="holds no training state"):
        load_trained(tmp_path / "nowhere", averaged)


def test_the_plain_model_with_merged_code_bits_is_the_one_that_was_trained(toy_sequences: Sequences) -> None:
    """The vectors of the signs, added to the tables of embedding and head, give the same logits and the same loss."""
    vocabulary = toy_sequences.vocabulary
    objective, plain = UnifiedObjective(tiny_model(vocabulary)), tiny_model(vocabulary)
    torch.nn.init.normal_(objective.code_bits.read)
    torch.nn.init.normal_(objective.code_bits.write)
    plain.load_state_dict(merge(objective.state_dict()))
    for task in TASKS:
        group = piece(toy_sequences.tasks[task](4, np.random.default_rng(2)), 1.0)
        (loss, _), (expected, _) = objective(**group), UnifiedObjective(plain)(**group)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5), task
    offset, text = vocabulary.image_code_offset, UnifiedObjective(tiny_model(vocabulary)).model.transformer.wte.weight
    assert torch.equal(plain.transformer.wte.weight[:offset], text[:offset])
    assert not torch.equal(plain.transformer.wte.weight[offset:], text[offset:])
    assert not UnifiedObjective(plain).model.transformer.wte._forward_hooks, "the model is left as it was"


def test_a_batch_gives_each_task_its_share(toy_sequences: Sequences) -> None:
    settings = StageSettings({"fact": Share(0.25), "sum": Share(1.5, 3.0), "ask": Share(1.0)}, LoopSettings(8), rows=4)
    tasks_by_step = [[int(p["task"][0]) for p in batch(toy_sequences, settings, step)] for step in range(8)]
    assert sum(tasks.count(TASKS.index("fact")) for tasks in tasks_by_step) == 2
    assert sum(tasks.count(TASKS.index("sum")) for tasks in tasks_by_step) == 12
    assert all(tasks.count(TASKS.index("ask")) == 1 for tasks in tasks_by_step)
    for first, second in zip(batch(toy_sequences, settings, 5), batch(toy_sequences, settings, 5), strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
    large = batch(toy_sequences, replace(settings, rows=400), 1)
    weights = [float(p["weight"].sum()) for p in large if int(p["task"][0]) == TASKS.index("sum")]
    assert sum(weights) / len(weights) == pytest.approx(2.0, abs=0.2)  # 3.0, shared out over 1.5 groups


def test_the_recipe_s_stages_are_sound() -> None:
    for settings in STAGES.values():
        scaled = settings.scaled(7, 0.5)
        assert scaled == replace(settings, loop=scaled.loop)
        assert (scaled.loop.steps, scaled.loop.muon_lr) == (7, settings.loop.muon_lr / 2)
        assert settings.scaled() == settings
        assert settings.scaled(seed=5, rows=3) == replace(settings, seed=5, rows=3)
        fuller = settings.scaled(groups={"ask": 8.0, "sum": 0.0, "caption_to_thought": 0.5}).mixture
        assert fuller["ask"] == Share(8.0, settings.mixture["ask"].weight)
        assert (fuller["sum"].groups, fuller["paint"]) == (0.0, settings.mixture["paint"])
        with pytest.raises(Error, match="give --rate a number above 0"):
            settings.scaled(rate=0.0)
    assert {"thought_to_image", "scene", "sum", "caption_to_thought"} <= set(STAGES["two"].mixture)


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"pant": Share(1.0)}, "no task is called 'pant'; did you mean 'paint'"),
        ({"zzzz": Share(1.0)}, "use some of paint, pair"),
        ({}, "the mixture of this stage is empty"),
        ({"paint": Share(0.0)}, "the mixture of this stage is empty"),
    ],
)
def test_a_mixture_that_means_nothing_is_refused(mixture: dict[str, Share], message: str) -> None:
    with pytest.raises(Error, match=message):
        StageSettings(mixture, LoopSettings(1))


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


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trainings in float32 also where the processor multiplies bfloat16, whose rounding hides a law of sums."""
    AcceleratorState._reset_state(True)  # type: ignore[no-untyped-call]
    monkeypatch.setattr(training_loop, "fast_type", lambda device: torch.float32)
    yield
    AcceleratorState._reset_state(True)  # type: ignore[no-untyped-call]


@pytest.mark.usefixtures("in_float32")
def test_pieces_sum_to_the_loss_and_the_gradient_of_the_whole(tmp_path: Path) -> None:
    for parts in (1, 4):
        loop = toy_loop(tmp_path / str(parts), Squares(), 3)
        loop.run(lambda step, parts=parts: pieces(step, parts))
    one, four = records(tmp_path / "1"), records(tmp_path / "4")
    for a, b in zip(one, four, strict=True):
        assert a == pytest.approx(b, abs=2e-3)
    first, second = (trained_weights(tmp_path / name, averaged=False)[0] for name in ("1", "4"))
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)


@pytest.mark.parametrize("kept", ["state", "state.old"])
def test_a_kill_between_renames_leaves_a_state(tmp_path: Path, kept: str) -> None:
    """Whichever rename of a saving comes last: the state before it or the one after it is found, and junk beside it is not."""
    toy_loop(tmp_path, Squares(), 2).run(pieces)
    state = tmp_path / "state"
    shutil.copytree(state, tmp_path / "state.partial")
    (tmp_path / "state.partial" / "weights.pt").write_bytes(b"cut")
    state.rename(tmp_path / kept)
    assert trained_weights(tmp_path)[1] == 2
    again = toy_loop(tmp_path, Squares(), 4)
    assert again.step == 2
    again.run(pieces)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "state"]
    assert trained_weights(tmp_path)[1] == 4


def test_a_loss_that_is_no_number_leaves_the_last_good_state(tmp_path: Path) -> None:
    toy_loop(tmp_path, Squares(), 3).run(pieces)
    good = trained_weights(tmp_path, averaged=False)[0]
    spoilt = toy_loop(tmp_path, Squares(lambda value: value * float("nan")), 6)
    with pytest.raises(Error, match=r"the loss of step 3 is nan: lower the learning rate"):
        spoilt.run(pieces)
    weights, steps = trained_weights(tmp_path, averaged=False)
    assert steps == 3
    assert all(torch.equal(good[name], weights[name]) for name in good)
    toy_loop(tmp_path, Squares(), 6).run(pieces)
    toy_loop(tmp_path / "whole", Squares(), 6).run(pieces)
    assert records(tmp_path) == records(tmp_path / "whole")


class Edge(torch.autograd.Function):
    """A value that is finite where its slope is not."""

    @staticmethod
    def forward(context: object, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(context: object, slope: Tensor) -> Tensor:  # type: ignore[override]
        return slope * float("inf")


def test_a_gradient_that_is_no_number_leaves_the_last_good_state(tmp_path: Path) -> None:
    toy_loop(tmp_path, Squares(), 3).run(pieces)
    with pytest.raises(Error, match="the gradient of step 3 is not finite"):
        toy_loop(tmp_path, Squares(Edge.apply), 6).run(pieces)
    assert all(bool(value.isfinite().all()) for value in trained_weights(tmp_path)[0].values())
    assert trained_weights(tmp_path)[1] == 3


def test_a_step_without_a_group_changes_nothing(toy_sequences: Sequences, tmp_path: Path) -> None:
    settings = replace(stage_settings(4), mixture={"fact": Share(0.5)})
    train_stage(tiny_model(toy_sequences.vocabulary), toy_sequences, tmp_path, settings)
    assert ["fact" in record for record in records(tmp_path)] == [False, True, False, True]


@pytest.mark.parametrize("shape", [(12, 12), (8, 30), (30, 8)])
def test_muon_steps_are_nearly_orthogonal(shape: tuple[int, int]) -> None:
    torch.manual_seed(2)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
    assert values.min() > 0.4
    assert values.max() < 1.5


def test_matrices_of_one_shape_are_made_orthogonal_together_as_each_alone() -> None:
    matrices = [torch.randn(shape) for shape in ((6, 4), (3, 5), (6, 4), (6, 4))]
    for together, matrix in zip(optimizer.orthogonal(matrices), matrices, strict=True):
        assert torch.allclose(together, orthogonalize(matrix), atol=1e-5)


def test_optimizers_lower_a_quadratic_and_the_average_follows() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    muon_and_adam = optimizers(model, {"0.weight"}, muon_lr=0.05, adam_lr=0.02, decay=0.0)
    assert [len(o.param_groups[0]["params"]) for o in muon_and_adam] == [1, 3]
    average, x = Average(model, 0.9), torch.randn(32, 6)
    first = (model(x) - 1).square().mean().item()
    for step in range(40):
        torch.autograd.backward((model(x) - 1).square().mean())
        for one in muon_and_adam:
            set_rates(one, 0.5 if step == 0 else 1.0)
            one.step()
            one.zero_grad()
        average.update(model, step)
    assert [o.param_groups[0]["lr"] for o in muon_and_adam] == [0.05, 0.02]  # a factor is of the highest rate, not of the last
    assert (model(x) - 1).square().mean().item() < 0.3 * first
    before = model[0].weight.detach().clone()
    average.swap(model)
    assert not torch.equal(model[0].weight, before)
    average.swap(model)
    assert torch.equal(model[0].weight, before)


def test_learning_rate_factors() -> None:
    for law in (warm_cosine, trapezoid):
        factors = [law(step, 100, 10) for step in range(100)]
        assert factors[0] < 0.2
        assert max(factors) <= 1.0
        assert factors[-1] < 0.1
    assert trapezoid(30, 100, 10) == 1.0
    assert trapezoid(99, 100, 10, decay=0.0) == 1.0


def picture_source(scene_share: float = 0.3) -> stage_vq.PictureSource:
    return stage_vq.PictureSource(discs(), discs()[0, :4], 0.5, scene_share)


def test_vq_training_lowers_the_loss_and_stops_where_it_is_done(tmp_path: Path) -> None:
    source = picture_source()
    checks = {"some": stage_vq.validation_pictures(discs(), 2)}
    settings = stage_vq.VQSettings(steps=10, batch=4, pieces=2, warmup=2)
    torch.manual_seed(0)
    model = stage_vq.train_vq(MagViT(TINY_VQ), source, checks, tmp_path, settings)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["psnr_some"] > 3
    errors = [line["mse"] for line in lines if "mse" in line]  # a slow machine saves, and measures, on the way too
    assert np.mean(errors[7:]) < np.mean(errors[:3])
    again = stage_vq.train_vq(MagViT(TINY_VQ), source, checks, tmp_path, settings)  # nothing left to do
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_sharpening_leaves_the_codes_alone(tmp_path: Path) -> None:
    source = picture_source()
    pixels = stage_vq.to_tensor(source.batch(4, np.random.default_rng(0)))
    torch.manual_seed(0)
    model = MagViT(TINY_VQ)
    codes, before = model.encode(pixels), model.decode(model.encode(pixels))
    settings = stage_vq.VQSettings(steps=2, batch=2, pieces=1, decoder_only=True)
    sharp = stage_vq.train_vq(model, source, {}, tmp_path, settings)
    assert torch.equal(sharp.encode(pixels), codes)
    assert not torch.equal(sharp.decode(codes), before)


def test_entropy_loss_prefers_confident_and_varied_codes() -> None:
    confident = torch.where(torch.rand(4, 12, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5, 3.0, -3.0)
    undecided, constant = torch.zeros(4, 12, 8, 8), torch.full((4, 12, 8, 8), 3.0)
    assert stage_vq.entropy_loss(confident) < stage_vq.entropy_loss(undecided)
    assert stage_vq.entropy_loss(confident) < stage_vq.entropy_loss(constant)


def test_pool_is_written_in_shards_and_read_back(tmp_path: Path) -> None:
    model, unseen_pairs = MagViT(TINY_VQ).eval(), set(pairs(held_out=True))
    extend_pool(tmp_path, "single", discs(), model, 10, range(2))
    extend_pool(tmp_path, "scene", discs(), model, 10, range(1))
    singles, several = read_pool(tmp_path, "single"), read_pool(tmp_path, "scene")
    assert singles.codes.shape == (20, 64)
    assert singles.tidy.sum() == 10
    assert (singles.grid == NOTHING).all()
    assert not unseen_pairs & {(int(n[0]), COLOURS[k]) for n, k in zip(singles.names, singles.colour, strict=True)}
    layouts = [several.layout(row) for row in range(len(several.grid))]
    assert len(layouts) == 10  # none is left out at reading
    assert [len(layout.names) == 2 for layout in layouts] == several.tidy.tolist()
    assert not any(layout_held_out(layout) for layout in layouts)
    shown = {(int(n), int(k)) for names, k in zip(several.names, several.colour, strict=True) for n in names if n != NOTHING}
    # A thing among others is not drawn on a held-out background either.
    assert not {(n, COLOURS[k]) for n, k in shown} & unseen_pairs
    assert read_pool(tmp_path, "single", 1).codes.shape == (10, 64)
    before = (tmp_path / "single-00000.npz").stat().st_mtime_ns
    extend_pool(tmp_path, "single", discs(), model, 10, range(1))
    assert (tmp_path / "single-00000.npz").stat().st_mtime_ns == before  # what is there stays
    extend_pool(tmp_path, "single", discs(), model, 10, range(3), asked=True)
    grown = read_pool(tmp_path, "single")
    assert (len(grown.tidy), grown.tidy.sum()) == (30, 10)  # what was added is to be asked about alone
    with pytest.raises(Error, match="pool"):
        read_pool(tmp_path / "nowhere", "single")


def test_processes_make_the_same_shards_of_the_pool(tmp_path: Path) -> None:
    model = MagViT(TINY_VQ).eval()
    for name, workers in (("alone", 0), ("shared", 2)):
        extend_pool(tmp_path / name, "single", discs(), model, 10, range(3), workers=workers)
    alone, shared = (read_pool(tmp_path / name, "single") for name in ("alone", "shared"))
    assert (alone.names == shared.names).all()
    assert (alone.codes == shared.codes).mean() > 0.99  # of so few threads sums may be taken in another order


class Deadly:
    """What ends the process that unpickles it."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (1,)


def test_a_process_that_is_ended_is_told_and_leaves_no_half_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(Error, match="with fewer than --workers 2"):
        extend_pool(tmp_path, "single", discs(), Deadly(), 10, range(3), workers=9)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_judge_is_saved_and_loaded_alike(tmp_path: Path) -> None:
    torch.manual_seed(4)
    judge = Judge().eval()
    pictures, labels = compose_many(discs(), 12, np.random.default_rng(0), PLAIN)
    judge.save(tmp_path, {"validation": 0.5})
    assert (Judge.load(tmp_path).classify(pictures) == judge.classify(pictures)).all()
    assert labels.max() < len(CONCEPT_NAMES)
    parts, names = compose_cells(discs(), 7, np.random.default_rng(0), PLAIN, None)
    assert parts.shape == (7, 64, 64, 3)
    assert names.shape == (7,)
    with pytest.raises(Error, match="judge"):
        Judge.load(tmp_path / "nowhere")
