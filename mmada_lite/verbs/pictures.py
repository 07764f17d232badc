"""The verbs that draw: paint, inpaint and extend. One way of running and saving a drawing; each verb only begins it."""

import argparse
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

from mmada_lite.errors import Error
from mmada_lite.model import Model, load
from mmada_lite.settings import ImageSettings
from mmada_lite.streams import Drawing
from mmada_lite.verbs import output, terminal

Begin = Callable[[Model, ImageSettings | None], Drawing]


def paint(arguments: argparse.Namespace) -> int:
    """Draw a picture from a sentence."""
    prompt = _prompt(arguments)
    return _draw(
        arguments,
        lambda model, settings: model.paint(prompt, settings, seed=arguments.seed),
        output.named_after(prompt),
    )


def inpaint(arguments: argparse.Namespace) -> int:
    """Draw anew the part of a picture that a mask covers."""
    terminal.only_one_stdin({"PICTURE": arguments.picture, "MASK": arguments.mask, "PROMPT": arguments.prompt})
    prompt, picture, mask = _prompt(arguments), terminal.picture_of(arguments.picture), terminal.picture_of(arguments.mask)
    return _draw(
        arguments,
        lambda model, settings: model.inpaint(picture, mask, prompt, settings, seed=arguments.seed),
        output.named_after(Path(arguments.picture).stem, "-inpainted"),
    )


def extend(arguments: argparse.Namespace) -> int:
    """Grow a picture beyond one border."""
    terminal.only_one_stdin({"PICTURE": arguments.picture, "PROMPT": arguments.prompt})
    prompt, picture = _prompt(arguments), terminal.picture_of(arguments.picture)
    return _draw(
        arguments,
        lambda model, settings: model.extend(
            picture, prompt, settings, side=arguments.side, amount=arguments.amount, seed=arguments.seed
        ),
        output.named_after(Path(arguments.picture).stem, "-extended"),
    )


def _prompt(arguments: argparse.Namespace) -> str:
    prompt = terminal.text_of(arguments.prompt, "prompt")
    if not prompt.strip():
        raise Error("the prompt is empty; say what is to be drawn")
    return prompt


def _draw(arguments: argparse.Namespace, begin: Begin, otherwise: str) -> int:
    if arguments.json and arguments.output == output.STDOUT:
        raise Error("standard output cannot carry both the picture and JSON; give -o a file")
    target = output.Target.check(otherwise if arguments.output is None else arguments.output, force=arguments.force)
    with terminal.Progress(quiet=arguments.json) as progress:
        progress.show("loading the model")
        model = load(arguments.model, device=arguments.device, threads=terminal.threads_of(arguments.threads))
        progress.show(f"on {model.device.name}: {model.device.reason}")
        drawing = begin(model, _settings(model, arguments))
        folder = output.StepFolder(Path(arguments.save_steps), force=arguments.force) if arguments.save_steps else None
        for step in drawing:
            progress.show(terminal.step_line(step, "codes"))
            if folder:
                folder.write(step.index + 1, drawing.preview())
            if arguments.json:
                terminal.print_json(terminal.step_json(step))
        target.write(drawing.picture)
    if folder:
        folder.finish()
    _tell(arguments, target, drawing, model.image_defaults)
    return 0


def _settings(model: Model, arguments: argparse.Namespace) -> ImageSettings | None:
    """What was said becomes the model's default, so that steps that were not said may still be cut to what there is to draw."""
    options = vars(arguments)
    given = {f.name: options[f.name] for f in fields(ImageSettings) if options.get(f.name) is not None}
    model.image_defaults = replace(model.image_defaults, **given)
    return model.image_defaults if "steps" in given else None


def _tell(arguments: argparse.Namespace, target: output.Target, drawing: Drawing, settings: ImageSettings) -> None:
    if arguments.json:
        print(terminal.json_line(terminal.result_json(target.name, arguments.seed, settings, drawing.last)))
    elif target.path is not None:
        print(target.path)
