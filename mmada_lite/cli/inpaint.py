"""The verb inpaint: draw anew the part of a picture that a mask covers."""

import argparse
from pathlib import Path

from mmada_lite.cli import options, terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s PICTURE MASK PROMPT [options]"
    options.add_picture(parser)
    parser.add_argument("mask", metavar="MASK", help="a picture of the same size, white where to draw anew")
    parser.add_argument("prompt", metavar="PROMPT", help="what to draw there; -: standard input")
    options.add_image_options(parser, "PICTURE-inpainted.png")


def run(arguments: argparse.Namespace) -> int:
    """Draw the covered part."""
    from mmada_lite.cli.drawing import draw, prompt_of
    from mmada_lite.cli.output import named_after

    terminal.only_one_stdin({"PICTURE": arguments.picture, "MASK": arguments.mask, "PROMPT": arguments.prompt})
    prompt, picture, mask = prompt_of(arguments), terminal.picture_of(arguments.picture), terminal.picture_of(arguments.mask)
    return draw(
        arguments,
        lambda model, settings: model.inpaint(picture, mask, prompt, settings, seed=arguments.seed),
        named_after(Path(arguments.picture).stem, "-inpainted"),
        prompt,
    )
