"""How many of a model's answers two bundles of it give alike: 400 sums, each asked of both.

    python -m mmada_lite.bench.quality.same FP16 FP16-WITH-HALF-CACHES --cache dual

For techniques that are to change nothing but speed or memory; what they cost in quality `mmada-lite bench quality` tells. It
knows two bundles and one kind of question.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mmada_lite.arguments import Parser, exit_code
from mmada_lite.bench.command import at_least_one
from mmada_lite.bench.quality.models import open_model
from mmada_lite.errors import Error
from mmada_lite.train import rollouts

LARGEST = 19  # of a summand: 400 sums in all


def questions(count: int) -> list[str]:
    """Raises Error for more than there are."""
    sums = [f"what is {a} + {b}?" for a in range(LARGEST + 1) for b in range(LARGEST + 1)]
    if count > len(sums):
        raise Error(f"--count {count} is more than the {len(sums)} sums that are asked; give {len(sums)} at most")
    return sums[:count]


def answers(path: Path, asked: Sequence[str], cache: str) -> list[str]:
    """In the bundle's own settings, but for the cache, together as far as their rows are equally long."""
    model = open_model(path, "cpu")
    settings = model.text.replace(cache=cache)  # type: ignore[arg-type]
    return rollouts.answers(model, rollouts.question_prompts(model, asked), settings, 0)


def build_parser() -> Parser:
    parser = Parser(prog="python -m mmada_lite.bench.quality.same", description=__doc__.splitlines()[0])
    parser.add_argument("bundles", type=Path, nargs=2, metavar="BUNDLE")
    parser.add_argument("--cache", default="dual", choices=("none", "prefix", "dual", "prompt"), help="(default: %(default)s)")
    parser.add_argument("--count", type=at_least_one, default=400, help="questions, 400 at most (default: %(default)s)")
    return parser


def compare(options: argparse.Namespace) -> int:
    asked = questions(options.count)
    first, second = (answers(path, asked, options.cache) for path in options.bundles)
    other = [list(each) for each in zip(asked, first, second, strict=True) if each[1] != each[2]]
    print(json.dumps({"asked": len(asked), "equal": len(asked) - len(other), "other": other}))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: compare(build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
