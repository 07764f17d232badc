"""The options that several verbs share: how the command line spells them, and what --help says.

It knows words and numbers alone. What a setting does is written in `mmada_lite.decoding.settings`; which model and which
settings the options ask for is found out in `model_options`.
"""

import argparse
from collections.abc import Callable, Sequence

from mmada_lite.errors import Error

# option, kind of value, its name in --help, and what it does
TEXT_SAVINGS: tuple[tuple[str, str, str, str], ...] = (
    ("--select", "word", "RULE", "what sure means: confidence, margin or entropy"),
    ("--entropy-bound", "number", "NATS", "write the surest tokens up to so much entropy; --steps is unused then"),
    ("--early-stop", "number", "P", "end once the end is written, or comes next surer than this"),
    ("--reach", "whole", "N", "tokens beyond a block that may be written with its last ones; needs --threshold"),
    ("--refresh", "whole", "N", "compute all anew after so many steps of a block; needs a cache"),
    ("--drift", "number", "SHARE", "compute all anew once the guesses moved by this; needs a cache"),
    ("--suffix", "whole", "N", "masks behind a block that a step still reads"),
    ("--settle", "whole", "N", "written tokens leave a cached block so many at a time; needs cache dual or prompt"),
    ("--thought-first", "flag", "", "what follows a thought waits for it"),
    ("--draft", "whole", "N", "steps foreseen and checked in one model call; the answer stays the same"),
)
IMAGE_SAVINGS: tuple[tuple[str, str, str, str], ...] = (
    ("--refresh", "whole", "N", "compute the whole row every N steps, and codes alone between them"),
    ("--shortlist", "number", "X", "of these codes X for each that will be drawn before the next whole row"),
    ("--guidance-from", "number", "SHARE", "guide from this share of the steps on"),
    ("--guidance-to", "number", "SHARE", "guide up to this share of the steps"),
    ("--unconditional-every", "whole", "N", "compute what guidance compares with every N steps"),
)


def whole(text: str) -> int:
    """The type of an option: a whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def number(text: str) -> float:
    """The type of an option: any number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """All options of a verb that answers in text."""
    add_model(parser)
    parser.add_argument("--steps", type=whole, metavar="N", help="model steps for the whole answer")
    add_answer(parser)
    parser.add_argument(
        "--threshold", type=number, metavar="P", help="write every token at least this sure; --steps is unused then"
    )
    parser.add_argument("--temperature", type=number, metavar="T", help="0 takes the most probable token")
    _add_savings(parser, TEXT_SAVINGS)
    add_speed(parser)
    _add_guidance(parser)
    add_seed(parser)
    add_machine(parser)
    add_json(parser)


def add_image_options(parser: argparse.ArgumentParser, default_output: str) -> None:
    """All options of a verb that draws; `default_output` says in --help how the picture is called without -o."""
    add_model(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help=f"a .png, .jpg or .webp file; -: PNG to standard output (default: {default_output})",
    )
    add_force(parser)
    parser.add_argument("--save-steps", metavar="DIR", help="keep the picture of every step: DIR/step-001.png and so on")
    parser.add_argument("--steps", type=whole, metavar="N", help="model steps")
    parser.add_argument("--schedule", metavar="LAW", help="how fast masks vanish: cosine, linear, sigmoid or pow<exponent>")
    parser.add_argument("--temperature", type=number, metavar="T", help="noise in the choice of what is drawn first")
    add_speed(parser)
    _add_guidance(parser)
    _add_savings(parser, IMAGE_SAVINGS)
    add_seed(parser)
    add_machine(parser)
    add_json(parser)


def add_answer(parser: argparse.ArgumentParser) -> None:
    """How long an answer is, and what is kept while it is written."""
    parser.add_argument("--answer-length", type=whole, metavar="N", help="the longest answer, in tokens")
    parser.add_argument("--block-length", type=whole, metavar="N", help="tokens that are finished before the next ones begin")
    parser.add_argument("--cache", metavar="POLICY", help="none (exact), prefix, dual or prompt (ever faster)")


def _add_savings(parser: argparse.ArgumentParser, savings: Sequence[tuple[str, str, str, str]]) -> None:
    kinds: dict[str, Callable[[str], object]] = {"whole": whole, "number": number, "word": str}
    for name, kind, metavar, about in savings:
        if kind == "flag":
            parser.add_argument(name, action="store_true", default=None, help=about)
            continue
        parser.add_argument(name, type=kinds[kind], metavar=metavar, help=about)


def add_picture(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("picture", metavar="PICTURE", help="a picture file; -: standard input")


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", metavar="BUNDLE", help="a bundle's folder (default: the small model in the package)")


def add_speed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--speed", default="exact", metavar="NAME", help="exact, balanced or fast: settings to start from (default: exact)"
    )


def _add_guidance(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--guidance", type=number, metavar="G", help="how strongly the prompt pulls; 0 is none and twice as fast"
    )


def add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="same seed, same result (default: 0)")


def add_machine(parser: argparse.ArgumentParser) -> None:
    add_device(parser)
    parser.add_argument("--threads", type=whole, metavar="N", help="CPU threads (default: every usable core)")


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="auto (the best that works), cpu, cuda, rtx or tensorrt"
    )


def add_target(parser: argparse.ArgumentParser) -> None:
    """Which device a bundle is written for, and formats of single groups of its tensors."""
    parser.add_argument(
        "--target",
        choices=["cpu", "cuda", "tensorrt"],
        help="the kind of device to write for (default: cpu; with --engine tensorrt)",
    )
    parser.add_argument(
        "--store",
        action="append",
        default=[],
        metavar="GROUP=FORMAT",
        help="another format for one group of tensors, such as text_head=int8 or backbone=int4-b32; may be repeated",
    )


def add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="replace what is already there")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="JSON alone on standard output, one object a line")


def formats_of(changes: Sequence[str]) -> dict[str, str]:
    """The values of --store, `text_head=int8` and so on, as a mapping."""
    for change in changes:
        if "=" not in change:
            raise Error(f"--store {change}: write GROUP=FORMAT, for example --store text_head=int8")
    return {group: name for group, _, name in (change.partition("=") for change in changes)}
