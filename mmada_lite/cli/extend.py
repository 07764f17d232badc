"""The verb extend: grow a picture beyond one border."""

import argparse
from pathlib import Path

from mmada_lite.cli import options, terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s PICTURE PROMPT [options]"
    options.add_picture(parser)
    parser.add_argument("prompt", metavar="PROMPT", help="what to draw there; -: standard input")
    parser.add_argument("--side", choices=["left", "right", "top", "bottom"], default="right", help="where (default: right)")
    parser.add_argument(
        "--amount", type=options.number, default=0.5, metavar="SHARE", help="of the picture's side, up to 4 (default: 0.5)"
    )
    options.add_image_options(parser, "PICTURE-extended.png")


def run(arguments: argparse.Namespace) -> int:
    """Draw what is beyond the border."""
    from mmada_lite.cli.drawing import draw, prompt_of
    from mmada_lite.cli.output import named_after

    terminal.only_one_stdin({"PICTURE": arguments.picture, "PROMPT": arguments.prompt})
    prompt, picture = prompt_of(arguments), terminal.picture_of(arguments.picture)
    return draw(
        arguments,
        lambda model, settings: model.extend(
            picture, prompt, settings, side=arguments.side, amount=arguments.amount, seed=arguments.seed
        ),
        named_after(Path(arguments.picture).stem, "-extended"),
        prompt,
    )
