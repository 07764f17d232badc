"""What each step of `python -m mmada_lite.train` does: from the working folder and the arguments to a call of what trains.
Parses nothing and computes nothing; what a step needs is imported when it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmada_lite.decoding.settings import plain
from mmada_lite.errors import Error
from mmada_lite.files import AtomicFolder
from mmada_lite.train.recipe import LAYERS, SHARD, TOKENIZER_SIZE, VQ_CONFIG
from mmada_lite.train.workspace import Workspace

ROLES = ("train", "validation", "test")

if TYPE_CHECKING:
    from mmada_lite.train.data.sequences import Sequences
    from mmada_lite.train.model import MMaDA
    from mmada_lite.train.rewards import Classifier
    from mmada_lite.train.sharp import SharpSettings
    from mmada_lite.train.stage_three import Decode, PolicySettings, StageThree
    from mmada_lite.train.stage_vq import VQSettings
    from mmada_lite.train.stages import StageSettings
    from mmada_lite.train.vq import MagViT
    from mmada_lite.vocabulary import Tokenizer, Vocabulary


def fetch(workspace: Workspace, arguments: argparse.Namespace) -> None:
    """Bring the icon packages from the npm registry."""
    from mmada_lite.train.data import sources

    sources.fetch(workspace.packages)


def render(workspace: Workspace, arguments: argparse.Namespace) -> None:
    """Rasterize the icons and train the text tokenizer."""
    from itertools import chain

    import numpy as np

    from mmada_lite.train.data import arithmetic, emoji, scenes, texts, tokenizer

    emoji.render_concepts(workspace.packages, workspace.concepts)
    emoji.render_library(workspace.packages, workspace.library, "train", every=2)
    sentences = chain(*[texts.corpus()] * 4, scenes.corpus(), arithmetic.corpus(np.random.default_rng(0), 100))
    tokenizer.train_tokenizer(sentences, TOKENIZER_SIZE, workspace.tokenizer)


def vq(workspace: Workspace, arguments: argparse.Namespace) -> None:
    """Train the image tokenizer."""
    import torch

    from mmada_lite.train.recipe import CONTINUE
    from mmada_lite.train.stage_vq import VQSettings
    from mmada_lite.train.vq import MagViT

    torch.manual_seed(0)
    started = arguments.start is not None
    model = MagViT.load(arguments.start / "vq") if started else MagViT(VQ_CONFIG)
    _train_vq(workspace, model, workspace.vq, _lasting(CONTINUE if started else VQSettings(), arguments.steps))


def sharpen(workspace: Workspace, arguments: argparse.Namespace) -> None:
    """Train a larger, sharper decoder for the codes of the image tokenizer; codes keep their meaning, so this may follow at
    any time."""
    import torch

    from mmada_lite.train.recipe import SHARP, SHARP_DECODER, SHARPEN
    from mmada_lite.train.sharp import grow_decoder
    from mmada_lite.train.vq import MagViT

    torch.manual_seed(SHARPEN.seed)
    model = grow_decoder(MagViT.load(workspace.vq_model), SHARP_DECODER)
    _train_vq(workspace, model, workspace.sharp, _lasting(SHARPEN, arguments.steps), SHARP)


def _train_vq(
    workspace: Workspace, model: MagViT, folder: Path, settings: VQSettings, sharp: SharpSettings | None = None
) -> None:
    from accelerate import PartialState

    from mmada_lite.train import stage_vq
    from mmada_lite.train.data import emoji
    from mmada_lite.train.sharp import SharpObjective, SharpSource

    concepts = emoji.load_concepts(workspace.concepts, "train").pixels
    library = emoji.load_library(workspace.library)
    shares = settings.concept_share, settings.scene_share
    source, objective = stage_vq.PictureSource(concepts, library, *shares), None
    if sharp is not None:
        source = SharpSource(concepts, library, *shares, sharp.tidy_share)
        objective = SharpObjective(model, settings, sharp)
    validation = emoji.load_concepts(workspace.concepts, "validation").pixels
    checks = {
        "validation": stage_vq.validation_pictures(validation, 64),
        "train": stage_vq.validation_pictures(concepts, 48),
    }
    trained = stage_vq.train_vq(model, source, checks, folder, settings, objective)
    if PartialState().is_main_process:
        trained.save(folder / "model", "float32")


def _lasting(settings: VQSettings, steps: int | None) -> VQSettings:
    return settings if steps is None else replace(settings, steps=steps)


def judge(workspace: Workspace, arguments: argparse.Namespace) -> None:
    """Train the judge of drawings and measure it on the styles of training, validation and test."""
    from mmada_lite.train.data import emoji
    from mmada_lite.train.judge import JudgeSettings, measure, train_judge
    from mmada_lite.train.vq import MagViT

    tokenizer = MagViT.load(workspace.best_vq)
    icons, signs = (emoji.load_concepts(workspace.concepts, role).pixels for role in ("train", "sign"))
    trained = train_judge(icons, tokenizer, JudgeSettings(), signs)
    report = measure(trained, tokenizer, {role: emoji.load_concepts(workspace.concepts, role).pixels for role in ROLES})
    trained.save(workspace.judge, report)
    print(json.dumps(report, indent=1))


def pool(workspace: Workspace, arguments: argparse.Namespace) -> None:
    """Compose and encode the training pictures, in shards: --shards of single things, half as many of several. With --asked
    the shards that are not there yet hold single things to be asked about alone."""
    from mmada_lite.train.data import emoji
    from mmada_lite.train.shards import extend_pool
    from mmada_lite.train.vq import MagViT

    icons, model = emoji.load_concepts(workspace.concepts, "train").pixels, MagViT.load(workspace.vq_model)
    signs = emoji.load_concepts(workspace.concepts, "sign").pixels
    extend_pool(
        workspace.pool, "single", icons, model, SHARD, range(arguments.shards), signs, arguments.asked, arguments.workers
    )
    if not arguments.asked:
        extend_pool(workspace.pool, "scene", icons, model, SHARD, range(arguments.shards // 2), workers=arguments.workers)


def one(workspace: Workspace, arguments: argparse.Namespace) -> None:
    """Stage one, unified pre-training: train the transformer, or go on where it was stopped."""
    settings = _settings("one", arguments)
    model, sequences = _material(workspace, arguments.start, arguments.layers)
    _train(model, sequences, workspace.stage_one, settings, arguments)


def two(workspace: Workspace, arguments: argparse.Namespace) -> None:
    """Stage two, mixed long chain-of-thought fine-tuning: go on from stage one, or where it was stopped."""
    from mmada_lite.train.stages import load_trained

    settings = _settings("two", arguments)
    model, sequences = _material(workspace, arguments.start)
    if arguments.start is None:
        load_trained(workspace.stage_one, model, deepen=True)
    _train(model, sequences, workspace.stage_two, settings, arguments)


def _settings(name: str, arguments: argparse.Namespace) -> StageSettings:
    """Those of a stage, as the options change them."""
    from mmada_lite.train.stages import STAGES

    settings = STAGES[name].scaled(arguments.steps, arguments.rate, arguments.seed, dict(arguments.groups), arguments.rows)
    return replace(settings, loop=replace(settings.loop, seconds=arguments.seconds))


def _train(model: MMaDA, sequences: Sequences, folder: Path, settings: StageSettings, arguments: argparse.Namespace) -> None:
    from mmada_lite.train.stages import train_stage

    if arguments.compile:
        _compile(model)
    train_stage(model, sequences, folder, settings, workers=arguments.workers)


def _compile(model: MMaDA) -> None:
    """torch.compile for every block. Raises Error where the compiler that torch will call is not there."""
    import torch

    on_cpu = "clang++" if sys.platform == "darwin" else "g++"
    variable, usual = ("CC", ("gcc", "clang")) if torch.cuda.is_available() else ("CXX", (on_cpu,))
    names = (os.environ[variable],) if os.environ.get(variable) else usual
    if not any(shutil.which(name) for name in names):
        raise Error(
            f"--compile needs {' or '.join(names)}, which is not here: install it, set {variable}, or leave --compile out"
        )
    for block in model.transformer.blocks:
        block.compile(dynamic=True)


def _material(workspace: Workspace, start: Path | None, layers: int = LAYERS) -> tuple[MMaDA, Sequences]:
    """The transformer, with the weights of the checkpoint `start` where there is one, and the rows that it is taught."""
    from mmada_lite.train.data.pool import read_pool
    from mmada_lite.train.data.sequences import Sequences
    from mmada_lite.train.recipe import new_model

    if start is None:
        model, tokenizer, vocabulary = new_model(workspace.tokenizer, layers=layers)
    pools = read_pool(workspace.pool, "single"), read_pool(workspace.pool, "scene")
    if start is not None:  # only now, as it may change the folder: nothing else is missing
        model, tokenizer, vocabulary = _grown(workspace, start, layers)
    return model, Sequences(tokenizer, vocabulary, *pools)


def _grown(workspace: Workspace, start: Path, layers: int = LAYERS) -> tuple[MMaDA, Tokenizer, Vocabulary]:
    """The transformer with the weights of a checkpoint. It speaks the checkpoint's tokenizer, which becomes the folder's, so
    that every token is known; where something was trained in the folder, the folder's own. One line says which."""
    from mmada_lite.train.grow import grow
    from mmada_lite.train.recipe import new_model

    own, theirs = workspace.tokenizer, start / "tokenizer.json"
    kept = own.exists() and workspace.speaks_its_own()
    model, tokenizer, vocabulary = new_model(own if kept else theirs, layers=layers)
    known = grow(model, own if kept else theirs, start)
    line = f"{known} of {len(tokenizer)} text tokens known from {start}"
    if kept and known < len(tokenizer):
        line += f"; the others begin at random: what was trained in {workspace.root} speaks its own {own.name}"
    elif not kept and not (own.exists() and own.read_bytes() == theirs.read_bytes()):
        line += f", whose {theirs.name} is that of {workspace.root} now"
        own.parent.mkdir(parents=True, exist_ok=True)
        partial = own.with_name(f".{own.name}.{os.getpid()}")  # of several processes each writes the same
        shutil.copyfile(theirs, partial)
        partial.replace(own)
    print(line)
    return model, tokenizer, vocabulary


def three(workspace: Workspace, arguments: argparse.Namespace) -> None:
    """Stage three, UniGRPO: go on from stage two, or where it was stopped. --tasks says what is rewarded."""
    import torch

    from mmada_lite.train.recipe import policy_settings

    seed = arguments.seed or 0
    settings = policy_settings(
        arguments.tasks,
        seed,
        arguments.steps,
        arguments.few_steps,
        arguments.rate,
        arguments.trace,
        arguments.prompts,
        arguments.copies,
        arguments.skip_ties,
        arguments.guidance,
        (arguments.ratios[0], arguments.ratios[1]),
        arguments.ends,
        arguments.seconds,
        on_gpu=torch.cuda.is_available(),
    )
    open_stage_three(workspace, arguments.start, workspace.policy / f"seed-{seed}", settings).train()


def start_model(workspace: Workspace, start: Path | None) -> tuple[MMaDA, Tokenizer, Vocabulary]:
    """The small transformer with the weights of the checkpoint `start`, or of stage two; a folder without an image tokenizer
    takes that of the checkpoint."""
    from mmada_lite.train.recipe import new_model
    from mmada_lite.train.stages import load_trained
    from mmada_lite.train.vq import MagViT

    if start is None:
        model, tokenizer, vocabulary = new_model(workspace.tokenizer)
        load_trained(workspace.stage_two, model)
        return model, tokenizer, vocabulary
    pictures = None if workspace.vq_model.exists() else MagViT.load(start / "vq")
    grown = _grown(workspace, start)
    if pictures is not None:
        with AtomicFolder(workspace.vq_model, marker="config.json") as writer:
            pictures.save(writer.folder, "float32")
            writer.commit()
    return grown


def open_stage_three(workspace: Workspace, start: Path | None, folder: Path, settings: PolicySettings) -> StageThree:
    """A run of stage three with its state in `folder`. The pool is opened where a task looks, the judge where one draws."""
    import torch

    from mmada_lite.train.judge import Judge
    from mmada_lite.train.prompts import sources
    from mmada_lite.train.stage_three import Policy, StageThree
    from mmada_lite.train.stage_vq import to_pictures
    from mmada_lite.train.vq import MagViT

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer, vocabulary = start_model(workspace, start)
    known = sources()
    if any(task not in known for task in settings.tasks):
        known = sources(workspace.pool)
    draws = any("concept" in settings.rewards[task] for task in settings.tasks)
    classify: Classifier | None = Judge.load(workspace.judge).to(device).classify if draws else None
    decode: Decode | None = None
    if draws:
        image_tokenizer = MagViT.load(workspace.best_vq).eval().to(device)
        decode = lambda codes: to_pictures(image_tokenizer.decode(torch.from_numpy(codes).to(device)).cpu())  # noqa: E731
    return StageThree(Policy(model, tokenizer, vocabulary), folder, settings, known, decode, classify)


def export(workspace: Workspace, arguments: argparse.Namespace) -> None:
    """Write averaged weights as a checkpoint in the Hugging Face layout, half precision: of the last stage, or of --stage."""
    from mmada_lite.export.checkpoint import SIDECAR
    from mmada_lite.train.data.knowledge import knows
    from mmada_lite.train.grow import average
    from mmada_lite.train.recipe import IMAGE, TEXT, new_model
    from mmada_lite.train.stages import load_trained
    from mmada_lite.train.vq import MagViT

    model, _, _ = new_model(workspace.tokenizer, layers=arguments.layers)
    stage = workspace.stage(arguments.stage)
    steps = load_trained(stage, model)
    average(model, *arguments.mean_with)
    with AtomicFolder(arguments.output or workspace.checkpoint, marker="config.json", force=True) as writer:
        model.save(writer.folder, "float16")
        MagViT.load(workspace.best_vq).save(writer.folder / "vq", "float16")
        shutil.copyfile(workspace.tokenizer, writer.folder / "tokenizer.json")
        defaults = {"text": plain(TEXT), "image": plain(IMAGE)}
        beside = {"name": "emoji", "knows": knows(), "defaults": defaults}
        (writer.folder / SIDECAR).write_text(json.dumps(beside, indent=1) + "\n")
        for file in arguments.carry:  # licence notices and the model card, which the bundle carries on
            shutil.copyfile(file, writer.folder / file.name)
        writer.commit()
    print(f"{arguments.output or workspace.checkpoint}: {stage.name}, {steps} steps; image tokenizer of {workspace.best_vq}")
