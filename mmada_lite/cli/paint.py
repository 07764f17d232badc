"""The verb paint: draw a picture from a sentence, with a thought before it if that is asked for."""

import argparse

from mmada_lite.cli import options, terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s PROMPT [options]"
    parser.add_argument("prompt", metavar="PROMPT", help="what to draw; -: standard input")
    thinking = parser.add_mutually_exclusive_group()
    thinking.add_argument("--think", action="store_true", help="first write where everything goes, then draw that")
    thinking.add_argument("--thought", metavar="TEXT", help="draw from this thought, as if the model had written it")
    options.add_image_options(parser, "the prompt's own words")


def run(arguments: argparse.Namespace) -> int:
    """Draw."""
    from mmada_lite.cli.drawing import draw, prompt_of
    from mmada_lite.cli.output import named_after

    terminal.only_one_stdin({"PROMPT": arguments.prompt, "--thought": arguments.thought})
    prompt = prompt_of(arguments)
    think = arguments.think if arguments.thought is None else terminal.text_of(arguments.thought, "thought")
    return draw(
        arguments,
        lambda model, settings: model.paint(prompt, settings, seed=arguments.seed, think=think),
        named_after(prompt),
        *(prompt, think),
    )
