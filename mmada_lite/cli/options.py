"""The options that several verbs share: how the command line spells them, and what --help says.

Those of the settings are made from what `mmada_lite.decoding.settings` declares; which model and which settings the options
ask for is found out in `model_options`.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from mmada_lite.decoding.setting_fields import Setting, settings_of, spelled
from mmada_lite.decoding.settings import ImageAcceleration, ImageSettings, TextAcceleration, TextSettings
from mmada_lite.errors import Error


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


def about(setting: Setting) -> str:
    """What --help says of a setting."""
    return f"{setting.help} ({setting.range}; default: {setting.default_in_words})"


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """All options of a verb that answers in text."""
    add_model(parser)
    add_speed(parser)
    add_settings(parser, settings_of(TextSettings))
    add_seed(parser)
    add_machine(parser)
    add_json(parser)
    _add_advanced(parser, settings_of(TextAcceleration), "docs/speed.md")


def add_answer(parser: argparse.ArgumentParser) -> None:
    """What is given of the answer."""
    parser.add_argument(
        "--answer",
        metavar="TEXT",
        help="how the answer begins, or all of it with holes, as [mask:3] or [mask:*] (docs/fill.md)",
    )


def add_form(parser: argparse.ArgumentParser) -> None:
    """What the answer, or each of its holes, must be."""
    form = parser.add_argument_group(
        "form", "what the answer, or what stands in its holes, must be; one of these: docs/fill.md"
    )
    form.add_argument("--choices", metavar="A,B", help="the likeliest of these; \\, is a comma in one")
    form.add_argument("--pattern", metavar="REGEX", help="a text that matches this from begin to end; needs the extra forms")
    form.add_argument("--schema", metavar="FILE", help="JSON that satisfies the schema in this file; needs the extra forms")


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
    add_speed(parser)
    add_settings(parser, settings_of(ImageSettings))
    add_seed(parser)
    add_machine(parser)
    add_json(parser)
    _add_advanced(parser, settings_of(ImageAcceleration), "docs/speed.md")


def add_planned_answer(parser: argparse.ArgumentParser) -> None:
    """The settings that decide how much memory an answer takes."""
    planned = ("answer_length", "block_length", "cache")
    declared = (*settings_of(TextSettings), *settings_of(TextAcceleration))
    add_settings(parser, [each for each in declared if each.name in planned])


def add_settings(parser: argparse._ActionsContainer, settings: Sequence[Setting]) -> None:
    """An option for each setting, which is absent from the result where it was not given."""
    for each in settings:
        how: dict[str, Any] = {"default": argparse.SUPPRESS, "help": about(each)}
        if each.kind == "flag":
            how["action"] = argparse.BooleanOptionalAction
        else:
            how |= {"metavar": each.unit, "type": _type_of(each)}
        parser.add_argument(spelled(each.name), **how)


def _type_of(setting: Setting) -> Callable[[str], Any]:
    read: Callable[[str], Any] = {"whole": whole, "number": number, "probability": number}.get(setting.kind, str)
    return (lambda text: None if text == "none" else read(text)) if setting.optional else read


def _add_advanced(parser: argparse.ArgumentParser, settings: Sequence[Setting], page: str) -> None:
    add_settings(parser.add_argument_group("advanced", f"what saves work, and what it costs: {page}"), settings)
    parser.epilog = "Defaults of settings are the bundle's own, which info shows; those above hold where it says none."


def add_picture(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("picture", metavar="PICTURE", help="a picture file; -: standard input")


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", metavar="BUNDLE", help="a bundle's folder (default: the small model in the package)")


def add_speed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--speed", default="exact", metavar="NAME", help="exact, balanced or fast: settings to start from (default: exact)"
    )


def add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="same seed, same result (default: 0)")


def add_machine(parser: argparse.ArgumentParser) -> None:
    add_device(parser)
    parser.add_argument("--threads", type=whole, metavar="N", help="CPU threads (default: every usable core)")


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="auto (the best that works), cpu, cuda, rtx, tensorrt, openvino, openvino:gpu or openvino:npu",
    )


def add_target(parser: argparse.ArgumentParser, also: Sequence[str] = ()) -> None:
    """Which device a bundle is written for, and formats of single groups of its tensors."""
    parser.add_argument(
        "--target",
        choices=["cpu", "cuda", "tensorrt", "openvino", *also],
        help="the kind of device to write for (default: cpu; with --engine tensorrt)",
    )
    parser.add_argument(
        "--store",
        action="append",
        default=[],
        metavar="GROUP=FORMAT",
        help="another format for one group of tensors, such as text_head=int8 or backbone=int4-b32; may be repeated",
    )


def add_cache_precision(parser: argparse.ArgumentParser, does: str) -> None:
    parser.add_argument("--cache-precision", choices=["fp32", "fp16"], help=f"{does} (default: fp32)")


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
