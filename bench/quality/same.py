"""How much of a model two bundles of it give alike: answers to sums, and codes of drawings, each asked of both.

    python -m mmada_lite.bench.quality.same FP16 FP16-WITH-HALF-CACHES --cache dual
    python -m mmada_lite.bench.quality.same FP32 BF16 --devices cpu openvino --count 200 --drawings 50

For techniques that are to change nothing but speed or memory; what they cost in quality `mmada-lite bench quality` tells. It
knows two bundles and one kind of question.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmada_lite.arguments import Parser, exit_code
from mmada_lite.bench.command import at_least_one
from mmada_lite.bench.quality.context import SIDE
from mmada_lite.bench.quality.models import EvalModel, Ints, open_model
from mmada_lite.errors import Error
from mmada_lite.ort.devices import choose_device
from mmada_lite.train import rollouts
from mmada_lite.train.data.concepts import COLOURS, CONCEPTS
from mmada_lite.train.data.texts import standard_caption

LARGEST = 19  # of a summand: 400 sums in all


def questions(count: int) -> list[str]:
    """Raises Error for more than there are."""
    sums = [f"what is {a} + {b}?" for a in range(LARGEST + 1) for b in range(LARGEST + 1)]
    if count > len(sums):
        raise Error(f"--count {count} is more than the {len(sums)} sums that are asked; give {len(sums)} at most")
    return sums[:count]


def captions(count: int) -> list[str]:
    """Things on colours, every thing once before one comes again. Raises Error for more than there are."""
    pairs = [
        standard_caption(thing, COLOURS[(turn + place) % len(COLOURS)])
        for turn in range(len(COLOURS))
        for place, thing in enumerate(CONCEPTS)
    ]
    if count > len(pairs):
        raise Error(f"--drawings {count} is more than the {len(pairs)} captions that are drawn; give {len(pairs)} at most")
    return pairs[:count]


def answers(model: EvalModel, asked: Sequence[str], cache: str) -> list[str]:
    """In the bundle's own settings, but for the cache, together as far as their rows are equally long."""
    settings = model.text.replace(cache=cache)  # type: ignore[arg-type]
    return rollouts.answers(model, rollouts.question_prompts(model, asked), settings, 0)


def drawings(model: EvalModel, asked: Sequence[str]) -> Ints:
    """Codes [N, SIDE * SIDE] of a drawing for every caption, in the bundle's own settings."""
    return rollouts.draw(model, rollouts.caption_prompts(model, asked), model.image, SIDE * SIDE).codes


def build_parser() -> Parser:
    parser = Parser(prog="python -m mmada_lite.bench.quality.same", description=__doc__.splitlines()[0])
    parser.add_argument("bundles", type=Path, nargs=2, metavar="BUNDLE")
    parser.add_argument("--cache", default="dual", choices=("none", "prefix", "dual", "prompt"), help="(default: %(default)s)")
    parser.add_argument(
        "--devices", nargs=2, default=("cpu", "cpu"), metavar="DEVICE", help="of each bundle (default: cpu cpu)"
    )
    parser.add_argument("--count", type=at_least_one, default=400, help="questions, 400 at most (default: %(default)s)")
    parser.add_argument("--drawings", type=at_least_one, default=0, help="captions that are drawn too (default: none)")
    return parser


def compare(options: argparse.Namespace) -> int:
    asked, drawn = questions(options.count), captions(options.drawings)
    for device in options.devices:
        choose_device(device)  # one that does not work here is told before anything is asked
    first, second = (open_model(*each) for each in zip(options.bundles, options.devices, strict=True))
    written = zip(asked, answers(first, asked, options.cache), answers(second, asked, options.cache), strict=True)
    other = [list(each) for each in written if each[1] != each[2]]
    found: dict[str, Any] = {"asked": len(asked), "equal": len(asked) - len(other), "other": other}
    if drawn:
        alike = drawings(first, drawn) == drawings(second, drawn)
        found |= {
            "drawn": len(drawn),
            "equal drawings": int(np.sum(alike.all(1))),
            "equal codes": round(float(alike.mean()), 4),
        }
    print(json.dumps(found))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: compare(build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
