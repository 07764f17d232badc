"""Which model the options of a command ask for, and with which settings. It opens models; it runs none and prints nothing."""

import argparse
from typing import Any

from mmada_lite import model as models
from mmada_lite.cli.terminal import Progress, threads_of
from mmada_lite.decoding.settings import ImageSettings, TextSettings, with_changes
from mmada_lite.model import Model


def load_model(arguments: argparse.Namespace, progress: Progress) -> Model:
    """Open the model, saying so."""
    threads = threads_of(arguments.threads)
    progress.show("loading the model")
    model = models.load(arguments.model, device=arguments.device, threads=threads, speed=arguments.speed)
    progress.show(f"on {model.device.name}: {model.device.reason}")
    return model


def open_for_text(arguments: argparse.Namespace) -> tuple[Model, TextSettings]:
    """The model, and the settings that its answers get."""
    with Progress(quiet=arguments.json) as progress:
        model = load_model(arguments, progress)
    return model, text_settings(model.text_defaults, arguments)


def text_settings(defaults: TextSettings, arguments: argparse.Namespace) -> TextSettings:
    """The defaults with what the options change."""
    return with_changes(defaults, _given(arguments, defaults))


def image_settings(defaults: ImageSettings, arguments: argparse.Namespace) -> ImageSettings:
    """The defaults with what the options change."""
    return defaults.replace(**_given(arguments, defaults))


def _given(arguments: argparse.Namespace, defaults: TextSettings | ImageSettings) -> dict[str, Any]:
    """The options that were given and are settings of that kind."""
    return {name: value for name, value in vars(arguments).items() if name in defaults.flat()}
