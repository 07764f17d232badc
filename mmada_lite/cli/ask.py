"""The verb ask: answer a question about a picture."""

import argparse

from mmada_lite.cli import options, outside, terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s PICTURE QUESTION [options]"
    options.add_picture(parser)
    parser.add_argument("question", metavar="QUESTION", help="what to ask; -: standard input")
    parser.add_argument("--fit", choices=["crop", "squash"], default="crop", help="how it becomes square (default: crop)")
    options.add_answer(parser)
    options.add_text_options(parser)
    options.add_form(parser)


def run(arguments: argparse.Namespace) -> int:
    """Answer."""
    from mmada_lite.cli.answering import form_of, given_answer, not_empty, print_answer
    from mmada_lite.cli.model_options import open_for_text
    from mmada_lite.images import open_picture

    terminal.only_one_stdin({"PICTURE": arguments.picture, "QUESTION": arguments.question})
    question = not_empty(terminal.text_of(arguments.question, "question"), "question")
    picture = open_picture(terminal.picture_of(arguments.picture))
    given = {"answer": given_answer(arguments), **form_of(arguments)}
    model, settings = open_for_text(arguments)
    answer = model.ask(picture, question, settings, seed=arguments.seed, fit=arguments.fit, **given)
    for line in (*outside.of_picture(model.bundle, picture.size), *outside.of_texts(model.bundle, question)):
        terminal.note(line)
    print_answer(answer, settings, arguments)
    return 0
