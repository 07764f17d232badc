"""The verb fill: fill the holes of a text."""

import argparse

from mmada_lite.cli import options, outside, terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s TEXT [options]"
    parser.add_argument(
        "text", metavar="TEXT", help="a text with holes: [mask:3] of three tokens, [mask:*] of any length; -: standard input"
    )
    options.add_text_options(parser)
    options.add_form(parser)


def run(arguments: argparse.Namespace) -> int:
    """Fill."""
    from mmada_lite.cli.answering import form_of, not_empty, print_answer
    from mmada_lite.cli.model_options import open_for_text
    from mmada_lite.forms.holes import read_partial

    text = not_empty(terminal.text_of(arguments.text, "text"), "text")
    form = form_of(arguments)
    model, settings = open_for_text(arguments)
    filling = model.fill(text, settings, seed=arguments.seed, **form)
    for line in outside.of_texts(model.bundle, *read_partial(text).pieces):
        terminal.note(line)
    print_answer(filling, settings, arguments)
    return 0
