"""`python -m mmada_lite.train VERB`: the recipe of the small model, step by step. Parses arguments and calls; nothing else."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmada_lite.decoding.settings import plain
from mmada_lite.errors import Error
from mmada_lite.files import AtomicFolder
from mmada_lite.train.recipe import LAYERS, SHARD, TOKENIZER_SIZE, VQ_CONFIG, Workplace, transformer_config

ROLES = ("train", "validation", "test")
LEAST = {"steps": 0, "seed": 0, "workers": 0} | dict.fromkeys(("threads", "shards", "rows", "prompts", "copies", "layers"), 1)

if TYPE_CHECKING:
    from mmada_lite.train.data.sequences import Sequences
    from mmada_lite.train.model import MMaDA
    from mmada_lite.train.rewards import Classifier
    from mmada_lite.train.stage_three import Decode
    from mmada_lite.train.stage_vq import VQSettings
    from mmada_lite.train.vq import MagViT
    from mmada_lite.vocabulary import Tokenizer, Vocabulary


def fetch(place: Workplace, arguments: argparse.Namespace) -> None:
    """Bring the icon packages from the npm registry."""
    from mmada_lite.train.data import sources

    sources.fetch(place.packages)


def render(place: Workplace, arguments: argparse.Namespace) -> None:
    """Rasterize the icons and train the text tokenizer."""
    from itertools import chain

    import numpy as np

    from mmada_lite.train.data import arithmetic, emoji, scenes, texts, tokenizer

    emoji.render_concepts(place.packages, place.concepts)
    emoji.render_library(place.packages, place.library, "train", every=2)
    sentences = chain(*[texts.corpus()] * 4, scenes.corpus(), arithmetic.corpus(np.random.default_rng(0), 100))
    tokenizer.train_tokenizer(sentences, TOKENIZER_SIZE, place.tokenizer)


def vq(place: Workplace, arguments: argparse.Namespace) -> None:
    """Train the image tokenizer."""
    import torch

    from mmada_lite.train.recipe import CONTINUE
    from mmada_lite.train.stage_vq import VQSettings
    from mmada_lite.train.vq import MagViT

    torch.manual_seed(0)
    started = arguments.start is not None
    model = MagViT.load(arguments.start / "vq") if started else MagViT(VQ_CONFIG)
    _train_vq(place, model, place.vq, _lasting(CONTINUE if started else VQSettings(), arguments.steps))


def sharpen(place: Workplace, arguments: argparse.Namespace) -> None:
    """Train the image tokenizer's decoder further; codes keep their meaning, so this may follow at any time."""
    from mmada_lite.train.recipe import SHARPEN
    from mmada_lite.train.vq import MagViT

    _train_vq(place, MagViT.load(place.vq_model), place.sharp, _lasting(SHARPEN, arguments.steps))


def _train_vq(place: Workplace, model: MagViT, folder: Path, settings: VQSettings) -> None:
    from accelerate import PartialState

    from mmada_lite.train import stage_vq
    from mmada_lite.train.data import emoji

    concepts = emoji.load_concepts(place.concepts, "train").pixels
    library = emoji.load_library(place.library)
    source = stage_vq.PictureSource(concepts, library, settings.concept_share, settings.scene_share)
    held = emoji.load_concepts(place.concepts, "validation").pixels
    checks = {
        "validation": stage_vq.validation_pictures(held, 64),
        "train": stage_vq.validation_pictures(concepts, 48),
    }
    trained = stage_vq.train_vq(model, source, checks, folder, settings)
    if PartialState().is_main_process:
        trained.save(folder / "model", "float32")


def _lasting(settings: VQSettings, steps: int | None) -> VQSettings:
    return settings if steps is None else replace(settings, steps=steps)


def judge(place: Workplace, arguments: argparse.Namespace) -> None:
    """Train the judge of drawings and measure it on the styles of training, validation and test."""
    from mmada_lite.train.data import emoji
    from mmada_lite.train.judge import JudgeSettings, measure, train_judge
    from mmada_lite.train.vq import MagViT

    tokenizer = MagViT.load(place.best_vq)
    icons, signs = (emoji.load_concepts(place.concepts, role).pixels for role in ("train", "sign"))
    trained = train_judge(icons, tokenizer, JudgeSettings(), signs)
    report = measure(trained, tokenizer, {role: emoji.load_concepts(place.concepts, role).pixels for role in ROLES})
    trained.save(place.judge, report)
    print(json.dumps(report, indent=1))


def pool(place: Workplace, arguments: argparse.Namespace) -> None:
    """Compose and encode the training pictures, in shards: --shards of single things, half as many of several. With --asked
    the shards that are not there yet hold single things to be asked about alone."""
    from mmada_lite.train.data import emoji
    from mmada_lite.train.data.pool import extend_pool
    from mmada_lite.train.vq import MagViT

    icons, model = emoji.load_concepts(place.concepts, "train").pixels, MagViT.load(place.vq_model)
    signs = emoji.load_concepts(place.concepts, "sign").pixels
    extend_pool(place.pool, "single", icons, model, SHARD, range(arguments.shards), signs, arguments.asked, arguments.workers)
    if not arguments.asked:
        extend_pool(place.pool, "scene", icons, model, SHARD, range(arguments.shards // 2), workers=arguments.workers)


def one(place: Workplace, arguments: argparse.Namespace) -> None:
    """Stage one, unified pre-training: train the transformer, or go on where it was stopped."""
    from mmada_lite.train.grow import grow

    model, sequences = _material(place, arguments.layers)
    if arguments.start is not None:
        print(f"{grow(model, place.tokenizer, arguments.start)} text tokens known from {arguments.start}")
    _stage("one", model, sequences, place.stage_one, arguments)


def two(place: Workplace, arguments: argparse.Namespace) -> None:
    """Stage two, mixed long chain-of-thought fine-tuning: go on from stage one, or where it was stopped."""
    from mmada_lite.train.grow import grow
    from mmada_lite.train.stages import load_trained

    model, sequences = _material(place)
    if arguments.start is not None:
        print(f"{grow(model, place.tokenizer, arguments.start)} text tokens known from {arguments.start}")
    else:
        load_trained(place.stage_one, model, deepen=True)
    _stage("two", model, sequences, place.stage_two, arguments)


def _stage(name: str, model: MMaDA, sequences: Sequences, folder: Path, arguments: argparse.Namespace) -> None:
    from mmada_lite.train.stages import STAGES, train_stage

    if arguments.compile:
        _compile(model)
    settings = STAGES[name].scaled(arguments.steps, arguments.rate, arguments.seed, dict(arguments.groups), arguments.rows)
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


def _material(place: Workplace, layers: int = LAYERS) -> tuple[MMaDA, Sequences]:
    from mmada_lite.train.data.pool import read_pool
    from mmada_lite.train.data.sequences import Sequences

    model, tokenizer, vocabulary = fresh(place.tokenizer, layers=layers)
    return model, Sequences(tokenizer, vocabulary, read_pool(place.pool, "single"), read_pool(place.pool, "scene"))


def fresh(names: Path, seed: int = 0, layers: int = LAYERS) -> tuple[MMaDA, Tokenizer, Vocabulary]:
    """The small transformer with the first weights of a seed, and the vocabulary that it speaks, of a tokenizer.json."""
    import torch

    from mmada_lite.train.model import MMaDA
    from mmada_lite.vocabulary import Tokenizer, Vocabulary

    tokenizer = Tokenizer.from_file(names)
    mask, eos = tokenizer.find("<|mdm_mask|>", -1), tokenizer.find("<|endoftext|>", -1)
    config = transformer_config(len(tokenizer), mask, eos, layers)
    torch.manual_seed(seed)
    vocabulary = Vocabulary.from_tokenizer(tokenizer, codebook_size=config.codebook_size, size=config.vocab_size)
    return MMaDA(config), tokenizer, vocabulary


def three(place: Workplace, arguments: argparse.Namespace) -> None:
    """Stage three, UniGRPO: go on from stage two, or where it was stopped. --tasks says what is rewarded."""
    import torch

    from mmada_lite.train.grow import grow
    from mmada_lite.train.judge import Judge
    from mmada_lite.train.prompts import sources
    from mmada_lite.train.recipe import policy_settings
    from mmada_lite.train.stage_three import Policy, StageThree
    from mmada_lite.train.stage_vq import to_pictures
    from mmada_lite.train.stages import load_trained
    from mmada_lite.train.vq import MagViT

    seed = arguments.seed or 0
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = policy_settings(
        arguments.tasks,
        seed,
        arguments.steps,
        arguments.hurry,
        arguments.rate,
        arguments.trace,
        arguments.prompts,
        arguments.copies,
        arguments.skip_ties,
        on_gpu=device == "cuda",
    )
    names = place.tokenizer
    if arguments.start is not None and not names.exists():
        names = arguments.start / "tokenizer.json"
    model, tokenizer, vocabulary = fresh(names)
    if arguments.start is not None:
        print(f"{grow(model, names, arguments.start)} text tokens known from {arguments.start}")
    else:
        load_trained(place.stage_two, model)
    known = sources()
    if any(task not in known for task in settings.tasks):  # the pool and the judge only where they serve
        known = sources(place.pool)
    draws = any("concept" in settings.rewards[task] for task in settings.tasks)
    classify: Classifier | None = Judge.load(place.judge).to(device).classify if draws else None
    if arguments.start is not None:
        _adopt(place, arguments.start)
    decode: Decode | None = None
    if draws:
        image_tokenizer = MagViT.load(place.best_vq).eval().to(device)
        decode = lambda codes: to_pictures(image_tokenizer.decode(torch.from_numpy(codes).to(device)).cpu())  # noqa: E731
    policy, folder = Policy(model, tokenizer, vocabulary), place.policy / f"seed-{seed}"
    StageThree(policy, folder, settings, known, decode, classify).train()


def _adopt(place: Workplace, start: Path) -> None:
    """A folder without tokenizers of its own takes those of the checkpoint that a run begins with."""
    from mmada_lite.train.vq import MagViT

    if not place.vq_model.exists():
        with AtomicFolder(place.vq_model, marker="config.json") as writer:
            MagViT.load(start / "vq").save(writer.folder, "float32")
            writer.commit()
    if not place.tokenizer.exists():
        shutil.copyfile(start / "tokenizer.json", place.tokenizer)


def export(place: Workplace, arguments: argparse.Namespace) -> None:
    """Write averaged weights as a checkpoint in the Hugging Face layout, half precision: of the last stage, or of --stage."""
    from mmada_lite.export.bundle import SIDECAR
    from mmada_lite.train.grow import average
    from mmada_lite.train.recipe import IMAGE, TEXT
    from mmada_lite.train.stages import load_trained
    from mmada_lite.train.vq import MagViT

    model, _, _ = fresh(place.tokenizer, layers=arguments.layers)
    stage = place.stage(arguments.stage)
    steps = load_trained(stage, model)
    average(model, *arguments.mean_with)
    with AtomicFolder(arguments.output or place.checkpoint, marker="config.json", force=True) as writer:
        model.save(writer.folder, "float16")
        MagViT.load(place.best_vq).save(writer.folder / "vq", "float16")
        shutil.copyfile(place.tokenizer, writer.folder / "tokenizer.json")
        defaults = {"text": plain(TEXT), "image": plain(IMAGE)}
        (writer.folder / SIDECAR).write_text(json.dumps({"name": "emoji", "defaults": defaults}, indent=1) + "\n")
        for file in arguments.carry:  # licence notices and the model card, which the bundle carries on
            shutil.copyfile(file, writer.folder / file.name)
        writer.commit()
    print(f"{arguments.output or place.checkpoint}: {stage.name}, {steps} steps; image tokenizer of {place.best_vq}")


VERBS: dict[str, Callable[[Workplace, argparse.Namespace], None]] = {
    "fetch": fetch,
    "render": render,
    "vq": vq,
    "sharpen": sharpen,
    "judge": judge,
    "pool": pool,
    "one": one,
    "two": two,
    "three": three,
    "export": export,
}


def _groups(text: str) -> tuple[str, float]:
    """task=number"""
    task, _, number = text.partition("=")
    try:
        return task, float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not TASK=NUMBER, such as ask=8") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one step. Returns the exit code: 0, or 2 after a fault of the user."""
    parser = argparse.ArgumentParser(prog="mmada-lite train", description="Train the small emoji model, step by step.")
    parser.add_argument("verb", choices=list(VERBS), help="; ".join(f"{n}: {f.__doc__}" for n, f in VERBS.items()))
    parser.add_argument("--folder", type=Path, default=Path("runs/emoji-work"), help="working folder (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each process (%(default)s)")
    parser.add_argument("--from", dest="start", type=Path, help="vq, one, two, three: a checkpoint to begin with")
    parser.add_argument("--steps", type=int, help="vq, sharpen, one, two, three: instead of the recipe's number")
    parser.add_argument("--rate", type=float, default=1.0, help="one, two, three: times the recipe's rate (%(default)s)")
    parser.add_argument(
        "--groups",
        nargs="+",
        type=_groups,
        default=[],
        metavar="TASK=NUMBER",
        help="one, two: groups of these tasks in a batch instead of the recipe's, such as ask=8 paint=0.5",
    )
    parser.add_argument(
        "--layers",
        type=int,
        default=LAYERS,
        help="one: blocks of the transformer; fewer make cheap steps, and two stacks them; export: of that stage (%(default)s)",
    )
    parser.add_argument("--rows", type=int, help="one, two: rows of a group instead of the recipe's; a GPU wants more (128)")
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="pool: processes that make shards; one, two: that make batches for a GPU (%(default)s)",
    )
    parser.add_argument(
        "--compile", action="store_true", help="one, two: torch.compile for the blocks, with g++: a minute, then faster"
    )
    parser.add_argument("--shards", type=int, default=22, help=f"pool: shards of {SHARD} pictures (%(default)s)")
    parser.add_argument("--asked", action="store_true", help="pool: more single things to be asked about, none to be drawn")
    parser.add_argument("--tasks", nargs="+", default=["sum", "scene", "paint"], help="three: what is asked (%(default)s)")
    parser.add_argument(
        "--seed",
        type=int,
        help="one, two: other draws than the recipe's, for going on; three: of a run, each has its own folder (0)",
    )
    parser.add_argument("--prompts", type=int, default=8, help="three: prompts of a batch, each has 8 responses (%(default)s)")
    parser.add_argument("--copies", type=int, default=2, help="three: masked copies of a response (%(default)s)")
    parser.add_argument("--hurry", action="store_true", help="three: respond in a quarter of the decoding steps")
    parser.add_argument("--trace", action="store_true", help="three: learn from states of the decoding, not from random masks")
    parser.add_argument("--skip-ties", action="store_true", help="three: learn from no prompt whose responses all earn alike")
    parser.add_argument("--stage", default="last", help="export: one, two, seed-0 and so on, or last (%(default)s)")
    parser.add_argument(
        "--mean-with",
        type=Path,
        nargs="+",
        default=[],
        metavar="CHECKPOINT",
        help="export: checkpoints to take the mean with, such as the run's start, or other seeds",
    )
    parser.add_argument("-o", "--output", type=Path, help="export: the checkpoint's folder (FOLDER/emoji)")
    parser.add_argument("--carry", type=Path, nargs="*", default=[], help="export: files to lay beside it (NOTICE, card)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        for name, least in LEAST.items():
            given = getattr(arguments, name)
            if given is not None and given < least:
                raise Error(f"--{name} {given} cannot be; give a whole number from {least} on")
        if arguments.verb not in ("fetch", "render"):
            import torch

            torch.set_num_threads(arguments.threads)
        VERBS[arguments.verb](Workplace(arguments.folder), arguments)
    except Error as error:
        print(f"mmada-lite: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
