"""`python -m mmada_lite.train VERB`: the recipe of the small model, step by step. Parses arguments and calls; nothing else."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from mmada_lite.atomic import AtomicFolder
from mmada_lite.errors import Error
from mmada_lite.train.recipe import SHARD, TOKENIZER_SIZE, VQ_CONFIG, Workplace, transformer_config

if TYPE_CHECKING:
    from mmada_lite.train.model import MMaDA
    from mmada_lite.train.stage_vq import VQSettings
    from mmada_lite.train.vq import MagViT
    from mmada_lite.vocabulary import Tokenizer, Vocabulary


def fetch(place: Workplace, arguments: argparse.Namespace) -> None:
    """Bring the icon packages from the npm registry."""
    from mmada_lite.train.data import sources

    sources.fetch(place.packages)


def render(place: Workplace, arguments: argparse.Namespace) -> None:
    """Rasterize the icons and train the text tokenizer."""
    from mmada_lite.train.data import emoji, texts, tokenizer

    emoji.render_concepts(place.packages, place.concepts)
    emoji.render_library(place.packages, place.library, "train")
    tokenizer.train_tokenizer(texts.corpus(), TOKENIZER_SIZE, place.tokenizer)


def vq(place: Workplace, arguments: argparse.Namespace) -> None:
    """Train the image tokenizer."""
    import torch

    from mmada_lite.train.stage_vq import VQSettings
    from mmada_lite.train.vq import MagViT

    torch.manual_seed(0)
    _train_vq(place, MagViT(VQ_CONFIG), place.vq, VQSettings())


def sharpen(place: Workplace, arguments: argparse.Namespace) -> None:
    """Train the image tokenizer's decoder further; codes keep their meaning, so this may follow at any time."""
    from mmada_lite.train.recipe import SHARPEN
    from mmada_lite.train.vq import MagViT

    _train_vq(place, MagViT.load(place.vq_model), place.sharp, SHARPEN)


def _train_vq(place: Workplace, model: MagViT, folder: Path, settings: VQSettings) -> None:
    from mmada_lite.train import stage_vq
    from mmada_lite.train.data import emoji

    concepts = emoji.load_concepts(place.concepts, "train").pixels
    source = stage_vq.PictureSource(concepts, emoji.load_library(place.library), settings.concept_share)
    held = emoji.load_concepts(place.concepts, "validation").pixels
    checks = {
        "validation": stage_vq.validation_pictures(held, 24),
        "train": stage_vq.validation_pictures(concepts, 48),
    }
    stage_vq.train_vq(model, source, checks, folder, settings).save(folder / "model", "float32")


def judge(place: Workplace, arguments: argparse.Namespace) -> None:
    """Train the judge of drawings and measure it on the validation style."""
    import numpy as np

    from mmada_lite.train.data import emoji
    from mmada_lite.train.data.pictures import PLAIN
    from mmada_lite.train.evaluate import interval
    from mmada_lite.train.judge import JudgeSettings, compose_many, reconstruct, train_judge
    from mmada_lite.train.vq import MagViT

    tokenizer = MagViT.load(place.vq_model)
    trained = train_judge(emoji.load_concepts(place.concepts, "train").pixels, tokenizer, JudgeSettings())
    report: dict[str, object] = {}
    for role in ("validation", "test"):
        icons = emoji.load_concepts(place.concepts, role).pixels
        pictures, labels = compose_many(icons, 960, np.random.default_rng(9), PLAIN)
        for name, seen in (("raw", pictures), ("reconstructed", reconstruct(tokenizer, pictures))):
            report[f"{role}_{name}"] = interval(int((trained.classify(seen) == labels).sum()), len(labels))
    trained.save(place.judge, report)
    print(report)


def pool(place: Workplace, arguments: argparse.Namespace) -> None:
    """Compose and encode the training pictures, in shards."""
    from mmada_lite.train.data import emoji
    from mmada_lite.train.data.pool import extend_pool
    from mmada_lite.train.vq import MagViT

    icons = emoji.load_concepts(place.concepts, "train").pixels
    extend_pool(place.pool, icons, MagViT.load(place.vq_model), arguments.shards, SHARD)


def one(place: Workplace, arguments: argparse.Namespace) -> None:
    """Stage one: train the transformer, or go on where it was stopped."""
    from mmada_lite.train.data.pool import read_pool
    from mmada_lite.train.data.sequences import Sequences
    from mmada_lite.train.stage_one import StageOne, StageOneSettings

    model, tokenizer, vocabulary = fresh(place)
    settings = StageOneSettings(threads=arguments.workers)
    StageOne(model, Sequences(tokenizer, vocabulary, read_pool(place.pool)), place.transformer, settings).train()


def fresh(place: Workplace) -> tuple[MMaDA, Tokenizer, Vocabulary]:
    """The small transformer with its first weights, and the vocabulary that it speaks."""
    import torch

    from mmada_lite.train.model import MMaDA
    from mmada_lite.vocabulary import Tokenizer, Vocabulary

    tokenizer = Tokenizer.from_file(place.tokenizer)
    mask, eos = tokenizer.find("<|mdm_mask|>", -1), tokenizer.find("<|endoftext|>", -1)
    config = transformer_config(len(tokenizer), mask, eos)
    torch.manual_seed(0)
    vocabulary = Vocabulary.from_tokenizer(tokenizer, codebook_size=config.codebook_size, size=config.vocab_size)
    return MMaDA(config), tokenizer, vocabulary


def export(place: Workplace, arguments: argparse.Namespace) -> None:
    """Write the averaged weights as a checkpoint in the Hugging Face layout, half precision."""
    from mmada_lite.export.bundle import SIDECAR
    from mmada_lite.train.evaluate import IMAGE, TEXT
    from mmada_lite.train.stage_one import averaged_weights
    from mmada_lite.train.vq import MagViT

    model, _, _ = fresh(place)
    steps = averaged_weights(place.transformer, model)
    image_tokenizer = place.sharp_model if place.sharp_model.exists() else place.vq_model
    with AtomicFolder(place.checkpoint, marker="config.json", force=True) as writer:
        model.save(writer.folder, "float16")
        MagViT.load(image_tokenizer).save(writer.folder / "vq", "float16")
        shutil.copyfile(place.tokenizer, writer.folder / "tokenizer.json")
        defaults = {"text": asdict(TEXT), "image": asdict(IMAGE)}
        (writer.folder / SIDECAR).write_text(json.dumps({"name": "emoji", "defaults": defaults}, indent=1) + "\n")
        for file in arguments.carry:  # licence notices and the model card, which the bundle carries on
            shutil.copyfile(file, writer.folder / file.name)
        writer.commit()
    print(f"{place.checkpoint}: {steps} steps; image tokenizer of {image_tokenizer}")


def evaluate(place: Workplace, arguments: argparse.Namespace) -> None:
    """Measure the exported checkpoint; writes evaluation.json and a sheet of drawings beside it."""
    from PIL import Image

    from mmada_lite.train import evaluate as measures
    from mmada_lite.train.data import emoji
    from mmada_lite.train.judge import Judge

    icons = {role: emoji.load_concepts(place.concepts, role).pixels for role in ("validation", "test")}
    subject, judged = measures.Subject.load(place.checkpoint), Judge.load(place.judge)
    report, pictures = measures.evaluate(subject, judged, icons, arguments.seeds)
    measures.write_report(place.root / "evaluation.json", report)
    Image.fromarray(measures.contact_sheet(pictures)).save(place.root / "drawings.png")
    print(json.dumps(report, indent=1))


VERBS: dict[str, Callable[[Workplace, argparse.Namespace], None]] = {
    "fetch": fetch,
    "render": render,
    "vq": vq,
    "sharpen": sharpen,
    "judge": judge,
    "pool": pool,
    "one": one,
    "export": export,
    "evaluate": evaluate,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one step. Returns the exit code: 0, or 2 after a fault of the user."""
    parser = argparse.ArgumentParser(prog="mmada-lite train", description="Train the small emoji model, step by step.")
    parser.add_argument("verb", choices=list(VERBS), help="; ".join(f"{n}: {f.__doc__}" for n, f in VERBS.items()))
    parser.add_argument("--folder", type=Path, default=Path("runs/emoji-work"), help="working folder (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="one: threads that compute a batch (%(default)s)")
    parser.add_argument("--shards", type=int, default=8, help=f"pool: shards of {SHARD} pictures (%(default)s)")
    parser.add_argument("--seeds", type=int, default=4, help="evaluate: drawings of each held-out pair (%(default)s)")
    parser.add_argument("--carry", type=Path, nargs="*", default=[], help="export: files to lay beside it (NOTICE, card)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
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
