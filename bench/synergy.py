"""Do tasks help each other? One joint run against one run a task, the same number of updates for each task, the same first
weights; cross-entropy at hidden positions on pictures of the validation style and problems that were held out, along the way.

`python -m mmada_lite.bench.synergy --folder runs/emoji-work -o bench/results/synergy.json` (some minutes on two cores).
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmada_lite.errors import Error

if TYPE_CHECKING:
    from mmada_lite.train.data.sequences import Sequences
    from mmada_lite.train.model import MMaDA
    from mmada_lite.train.stages import StageSettings

TASKS = ("paint", "ask", "sum")
Curve = list[dict[str, float]]  # a record every few steps: step, and the mean cross-entropy of each task, nats


def run(
    tasks: Sequence[str], model: MMaDA, train: Sequences, held: Sequences, settings: StageSettings, every: int, folder: Path
) -> Curve:
    """Train on these tasks, a group of each per update, and measure them all every `every` updates."""
    from mmada_lite.train.stages import Share, load_trained, train_stage

    measured = copy.deepcopy(model)
    own = replace(settings, mixture={task: Share(1.0) for task in tasks})
    curve = []
    for step in range(every, settings.loop.steps + 1, every):
        train_stage(model, train, folder, own, until=step)
        load_trained(folder, measured)
        curve.append({"step": float(step)} | {task: held_loss(measured, held, task) for task in tasks})
        print(f"{'+'.join(tasks)} {curve[-1]}", file=sys.stderr, flush=True)
    return curve


def held_loss(model: MMaDA, held: Sequences, task: str, groups: int = 12) -> float:
    """Mean cross-entropy at hidden positions over fixed groups of rows, nats."""
    import torch
    import torch.nn.functional as F

    from mmada_lite.train.progress import step_generator

    total, count = 0.0, 0
    with torch.no_grad():
        for number in range(groups):
            rows = held.tasks[task](16, step_generator(77, number))
            chosen = torch.from_numpy(rows.weight > 0)
            logits = model.logits(model(torch.from_numpy(rows.tokens)).hidden[chosen])
            total += float(F.cross_entropy(logits, torch.from_numpy(rows.targets)[chosen], reduction="sum"))
            count += int(chosen.sum())
    return round(total / count, 4)


def main(argv: Sequence[str] | None = None) -> int:
    """Run all four, print the table, write JSON. 0, or 2 after a fault of the user."""
    parser = argparse.ArgumentParser(prog="python -m mmada_lite.bench.synergy", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/emoji-work"), help="working folder of the training")
    parser.add_argument("--updates", type=int, default=400, help="updates a task (%(default)s)")
    parser.add_argument("--every", type=int, default=50, help="updates between measurements (%(default)s)")
    parser.add_argument("-o", "--output", type=Path, help="write JSON here too")
    arguments = parser.parse_args(argv)
    try:
        content = _compare(arguments)
    except Error as error:
        print(f"mmada-lite: {error}", file=sys.stderr)
        return 2
    print("| task | alone | jointly | difference, nats |\n|---|---|---|---|")
    for task in TASKS:
        alone, joint = content["curves"][task][-1][task], content["curves"]["joint"][-1][task]
        print(f"| {task} | {alone:.3f} | {joint:.3f} | {joint - alone:+.3f} |")
    if arguments.output:
        arguments.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


def _compare(arguments: argparse.Namespace) -> dict:
    import torch

    from mmada_lite.train.data import emoji
    from mmada_lite.train.data.pool import read_pool, write_shard
    from mmada_lite.train.data.sequences import Sequences
    from mmada_lite.train.loop import LoopSettings
    from mmada_lite.train.model import MMaDA
    from mmada_lite.train.recipe import Workplace, transformer_config
    from mmada_lite.train.stages import Share, StageSettings
    from mmada_lite.train.vq import MagViT
    from mmada_lite.vocabulary import Tokenizer, Vocabulary

    place = Workplace(arguments.folder)
    tokenizer = Tokenizer.from_file(place.tokenizer)
    config = transformer_config(len(tokenizer), tokenizer.find("<|mdm_mask|>", -1), tokenizer.find("<|endoftext|>", -1))
    config = replace(config, d_model=128, n_layers=4, n_heads=4, n_kv_heads=4, mlp_hidden_size=320)
    vocabulary = Vocabulary.from_tokenizer(tokenizer, codebook_size=config.codebook_size, size=config.vocab_size)
    settings = StageSettings({"paint": Share(1.0)}, LoopSettings(arguments.updates, save_seconds=1e9), warmup=30, seed=5)
    curves = {}
    with tempfile.TemporaryDirectory() as scratch:
        icons = emoji.load_concepts(place.concepts, "validation").pixels
        write_shard(Path(scratch) / "single-00000.npz", "single", icons, MagViT.load(place.vq_model).eval(), 1024, 1)
        train = Sequences(tokenizer, vocabulary, read_pool(place.pool, "single"))
        held = Sequences(tokenizer, vocabulary, read_pool(Path(scratch), "single"), held=True)
        for name, tasks in (("joint", TASKS), *((task, (task,)) for task in TASKS)):
            torch.manual_seed(0)
            curves[name] = run(tasks, MMaDA(config), train, held, settings, arguments.every, Path(scratch) / name)
    command = f"python -m mmada_lite.bench.synergy --updates {arguments.updates} --every {arguments.every}"
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"command": command, "versions": versions, "rows a group": settings.rows, "curves": curves}


if __name__ == "__main__":
    sys.exit(main())
