"""`python -m mmada_lite.train VERB`: the recipe of the small model, step by step. Parses arguments and calls; nothing else."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import get_args

from mmada_lite.arguments import Parser, exit_code, threads
from mmada_lite.errors import Error
from mmada_lite.train import verbs
from mmada_lite.train.policy import WHOLE
from mmada_lite.train.recipe import LAYERS, SHARD
from mmada_lite.train.stage_three import Ends
from mmada_lite.train.workspace import Workspace

LEAST = {"steps": 0, "seed": 0, "workers": 0} | dict.fromkeys(("threads", "shards", "rows", "prompts", "copies", "layers"), 1)

VERBS: dict[str, Callable[[Workspace, argparse.Namespace], None]] = {
    "fetch": verbs.fetch,
    "render": verbs.render,
    "vq": verbs.vq,
    "sharpen": verbs.sharpen,
    "judge": verbs.judge,
    "pool": verbs.pool,
    "one": verbs.one,
    "two": verbs.two,
    "three": verbs.three,
    "export": verbs.export,
}

SHEETS = {  # verbs with options of their own, that show what a training came to -> what they do
    "gallery": "a sheet of what a bundle draws",
    "curves": "the logs of a training as a picture",
    "synergy": "one joint training against one a task",
    "gains": "UniGRPO against further supervised training",
}


def _groups(text: str) -> tuple[str, float]:
    """task=number"""
    task, _, number = text.partition("=")
    try:
        return task, float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not TASK=NUMBER, such as ask=8") from None


def build_parser() -> Parser:
    others = "; ".join(f"{name}: {about}" for name, about in SHEETS.items())
    parser = Parser(
        prog="mmada-lite train",
        description="Train the small emoji model, step by step.",
        epilog=f"More verbs have a --help of their own: {others}. Manual: docs/training.md.",
    )
    parser.add_argument("verb", choices=list(VERBS), help="; ".join(f"{n}: {f.__doc__}" for n, f in VERBS.items()))
    parser.add_argument("--folder", type=Path, default=Path("runs/emoji-work"), help="working folder (%(default)s)")
    parser.add_argument("--threads", type=threads, default=2, help="CPU threads of each process (%(default)s)")
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
    parser.add_argument("--tasks", nargs="+", default=["sum", "scene", "paint"], help="three: what is asked (sum scene paint)")
    parser.add_argument(
        "--seed",
        type=int,
        help="one, two: other draws than the recipe's, for going on; three: of a run, each has its own folder (0)",
    )
    parser.add_argument("--prompts", type=int, default=8, help="three: prompts of a batch, each has 8 responses (%(default)s)")
    parser.add_argument("--copies", type=int, default=2, help="three: masked copies of a response (%(default)s)")
    parser.add_argument(
        "--ratios", nargs=2, type=float, default=WHOLE, metavar="SHARE", help="three: least and most that a copy hides (0 1)"
    )
    parser.add_argument(
        "--ends", choices=get_args(Ends), default="masked", help="three: what copies do with ends after the first (%(default)s)"
    )
    parser.add_argument(
        "--guidance",
        type=float,
        default=0.0,
        help="three: of drawings, as they are drawn and learned; 0: none (%(default)s)",
    )
    parser.add_argument("--seconds", type=float, help="one, two, three: stop after so many of training")
    parser.add_argument("--few-steps", action="store_true", help="three: respond in a quarter of the decoding steps")
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
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one step. Returns the exit code: 0, 2 after a fault of the user, or 130 when it is interrupted."""
    return exit_code(lambda: _run(list(sys.argv[1:] if argv is None else argv)), "docs/training.md")


def _run(words: list[str]) -> int:
    if words[:1] and words[0] in SHEETS:
        code: int = import_module(f"mmada_lite.train.{words[0]}").main(words[1:])
        return code
    arguments = build_parser().parse_args(words)
    for name, least in LEAST.items():
        given = getattr(arguments, name)
        if given is not None and given < least:
            raise Error(f"--{name} {given} cannot be; give a whole number from {least} on")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.verb not in ("fetch", "render"):
        import torch

        torch.set_num_threads(arguments.threads)
    VERBS[arguments.verb](Workspace(arguments.folder), arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
