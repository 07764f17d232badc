"""The command `mmada-lite`: reads arguments, calls one verb, and turns every fault of a user into one line.

It knows the spelling of options and the exit codes (0 done, 1 a check fell short, 2 a fault, 130 interrupted). It knows
no model and imports no numpy: what a verb needs is imported when that verb runs, so that --help is instant.
"""

import argparse
import difflib
import errno
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

from mmada_lite import __version__
from mmada_lite.cli.options import PICTURE_SAVINGS, SAVINGS
from mmada_lite.errors import Error

VERBS: dict[str, tuple[str, str]] = {  # verb -> the file of mmada_lite/verbs that holds it, and what it does
    "chat": ("chat", "answer a message, or hold a conversation"),
    "ask": ("chat", "answer a question about a picture"),
    "paint": ("paint", "draw a picture from a sentence"),
    "inpaint": ("paint", "draw anew the part of a picture that a mask covers"),
    "extend": ("paint", "grow a picture beyond one border"),
    "export": ("export", "turn a checkpoint into a bundle that this program runs"),
    "quantize": ("quantize", "turn a checkpoint into a smaller bundle, by a method that minds what it loses"),
    "check": ("export", "replay recorded cases of the reference and compare"),
    "info": ("info", "say what is in a bundle and whether it will run here"),
    "plan": ("plan", "say which precision of a model fits a memory, before anything is downloaded"),
    "doctor": ("doctor", "look at this machine: devices, libraries, the best settings, and what mends each gap"),
    "train": ("workshop", "train the small model, step by step (arguments: see mmada-lite train --help)"),
    "bench": ("workshop", "measure quality and speed (arguments: see mmada-lite bench --help)"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; prints `mmada-lite: ...` in one line where it is not 0."""
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader went away, as `head` does: nothing to complain about
        _drop_stdout()
        return 128 + 13
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except Error as error:
        return _complain(str(error), 2)
    except OSError as error:
        return _complain(_explain(error), 2)
    except MemoryError as error:
        return _complain(f"out of memory ({str(error) or 'no more is to be had'}); ask for smaller sizes or counts", 2)
    except UnicodeEncodeError as error:
        return _complain(f"standard output is {error.encoding} and cannot show the answer; set PYTHONUTF8=1, or use --json", 2)


def _run(argv: list[str]) -> int:
    if argv and not argv[0].startswith("-") and argv[0] not in VERBS:
        raise Error(f"no verb is called {argv[0]!r}; {_nearest(argv[0], list(VERBS)) or 'see mmada-lite --help'}")
    if argv[:1] in (["train"], ["bench"]):  # they have verbs and options of their own
        return _verb(argv[0])(argparse.Namespace(arguments=argv[1:]))
    parser, subparsers = build_parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        spellings = [text for action in subparsers[arguments.verb]._actions for text in action.option_strings]
        raise Error(_unknown(unknown[0], arguments.verb, spellings))
    return _verb(arguments.verb)(arguments)


def _verb(name: str) -> Callable[[argparse.Namespace], int]:
    found: Callable[[argparse.Namespace], int] = getattr(import_module(f"mmada_lite.cli.{VERBS[name][0]}"), name)
    return found


class _Parser(argparse.ArgumentParser):
    """A parser whose faults are one line like every other."""

    def error(self, message: str) -> NoReturn:
        raise Error(f"{message.replace('argument ', '', 1)}; see {self.prog} --help")


def build_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser, and that of each verb by name."""
    parser = _Parser(
        prog="mmada-lite",
        description="MMaDA on small machines: text, pictures, questions about pictures, by masked diffusion.",
        epilog='Begin with: mmada-lite paint "a red apple" -o apple.png, then: mmada-lite ask apple.png "what is this?"',
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mmada-lite {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)
    made = {
        name: verbs.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.", allow_abbrev=False)
        for name, (_, about) in VERBS.items()
    }
    _add_chat(made["chat"])
    _add_ask(made["ask"])
    _add_paint(made["paint"])
    _add_inpaint(made["inpaint"])
    _add_extend(made["extend"])
    _add_export(made["export"])
    _add_quantize(made["quantize"])
    _add_check(made["check"])
    _add_info(made["info"])
    _add_plan(made["plan"])
    _add_doctor(made["doctor"])
    return parser, dict(made)


def _add_chat(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "message", nargs="?", metavar="MESSAGE", help="what to say; - or a pipe: standard input; absent: a conversation"
    )
    _add_text_options(parser)


def _add_ask(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("picture", metavar="PICTURE", help="a picture file; -: standard input")
    parser.add_argument("question", metavar="QUESTION", help="what to ask; -: standard input")
    parser.add_argument("--fit", choices=["crop", "squash"], default="crop", help="how it becomes square (default: crop)")
    _add_text_options(parser)


def _add_paint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help="what to draw; -: standard input")
    thinking = parser.add_mutually_exclusive_group()
    thinking.add_argument("--think", action="store_true", help="first write where everything goes, then draw that")
    thinking.add_argument("--thought", metavar="TEXT", help="draw from this thought, as if the model had written it")
    _add_picture_options(parser, "the prompt's own words")


def _add_inpaint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("picture", metavar="PICTURE", help="a picture file; -: standard input")
    parser.add_argument("mask", metavar="MASK", help="a picture of the same size, white where to draw anew")
    parser.add_argument("prompt", metavar="PROMPT", help="what to draw there; -: standard input")
    _add_picture_options(parser, "PICTURE-inpainted.png")


def _add_extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("picture", metavar="PICTURE", help="a picture file; -: standard input")
    parser.add_argument("prompt", metavar="PROMPT", help="what to draw there; -: standard input")
    parser.add_argument("--side", choices=["left", "right", "top", "bottom"], default="right", help="where (default: right)")
    parser.add_argument(
        "--amount", type=_number, default=0.5, metavar="SHARE", help="of the picture's side, up to 4 (default: 0.5)"
    )
    _add_picture_options(parser, "PICTURE-extended.png")


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a folder with config.json and safetensors weights; with --engine, a bundle too",
    )
    parser.add_argument("-o", "--output", metavar="BUNDLE", help="the folder to write (not for engines of a bundle)")
    parser.add_argument(
        "--precision", choices=["fp32", "fp16", "int8", "int4"], default="fp16", help="how weights are stored (default: fp16)"
    )
    _add_stored(parser)
    parser.add_argument("--engine", choices=["rtx"], help="also build TensorRT-RTX engines, into BUNDLE/engines; needs no GPU")
    parser.add_argument("--compute-capability", metavar="X.Y", help="of the card that engines are for (default: the card here)")
    parser.add_argument(
        "--profile",
        action="append",
        default=[],
        metavar="NAME",
        help="build engines for this alone: prefill, block or picture; may be repeated (default: one engine for all)",
    )
    _add_force(parser)
    _add_json(parser)


def _add_quantize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a checkpoint's folder, or a bundle of fp16 or fp32")
    parser.add_argument("-o", "--output", required=True, metavar="BUNDLE", help="the folder to write")
    parser.add_argument(
        "--format", default="int4", metavar="NAME", help="int4, int8, or one format such as int4-b32-asym (default: int4)"
    )
    parser.add_argument(
        "--method",
        default="gptq",
        metavar="NAME",
        help="rtn, clip, gptq or gptaq, with smooth+ or rotate+ before it (default: gptq)",
    )
    _add_stored(parser)
    parser.add_argument("--prompts", metavar="FILE", help="calibrate on these: a JSON object with task and text a line")
    parser.add_argument("--prompt-count", type=_whole, default=32, metavar="N", help="prompts of each task (default: 32)")
    parser.add_argument(
        "--calibration", choices=["masked", "unmasked"], default="masked", help="rows as decoding meets them, or finished ones"
    )
    parser.add_argument("--record-with", metavar="BUNDLE", help="decode the prompts with this bundle of the same model")
    parser.add_argument("--work", metavar="FOLDER", help="where a killed conversion goes on (default: beside the bundle)")
    _add_seed(parser)
    _add_force(parser)
    _add_json(parser)


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="recorded cases in the format of tests/golden/README.md")
    parser.add_argument("--engine", choices=["torch", "onnx"], help="compare this alone (default: both)")
    _add_json(parser)


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", nargs="?", metavar="BUNDLE", help="a bundle's folder; the same as -m")
    _add_model(parser)
    _add_machine(parser)
    parser.add_argument("--verify", action="store_true", help="read every file and compare its sha256")
    parser.add_argument(
        "--cpp",
        nargs="?",
        const="",
        metavar="HEADERS",
        help="print the line that compiles a C++ program here, and nothing else",
    )
    _add_json(parser)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m", "--model", metavar="SOURCE", help="a bundle, a checkpoint folder, a config.json, or 8b, the published model"
    )
    parser.add_argument("--memory", metavar="SIZE", help="8GB, 7.5GiB (default: what is free here, or the card's)")
    parser.add_argument("--shared", action="store_true", help="the card shares the machine's memory, as on a Jetson")
    parser.add_argument("--answer-length", type=_whole, metavar="N", help="the longest answer, in tokens")
    parser.add_argument("--block-length", type=_whole, metavar="N", help="tokens that are finished before the next ones begin")
    parser.add_argument("--cache", metavar="POLICY", help="none (exact), prefix, dual or prompt (ever faster)")
    _add_speed(parser)
    _add_device(parser)
    _add_json(parser)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    _add_json(parser)


def _add_text_options(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--steps", type=_whole, metavar="N", help="model steps for the whole answer")
    parser.add_argument("--answer-length", type=_whole, metavar="N", help="the longest answer, in tokens")
    parser.add_argument("--block-length", type=_whole, metavar="N", help="tokens that are finished before the next ones begin")
    parser.add_argument("--cache", metavar="POLICY", help="none (exact), prefix, dual or prompt (ever faster)")
    parser.add_argument(
        "--threshold", type=_number, metavar="P", help="write every token at least this sure; --steps is unused then"
    )
    parser.add_argument("--temperature", type=_number, metavar="T", help="0 takes the most probable token")
    _add_savings(parser, SAVINGS)
    _add_speed(parser)
    _add_guidance(parser)
    _add_seed(parser)
    _add_machine(parser)
    _add_json(parser)


def _add_picture_options(parser: argparse.ArgumentParser, otherwise: str) -> None:
    _add_model(parser)
    parser.add_argument(
        "-o", "--output", metavar="FILE", help=f"a .png, .jpg or .webp file; -: PNG to standard output (default: {otherwise})"
    )
    _add_force(parser)
    parser.add_argument("--save-steps", metavar="DIR", help="keep the picture of every step: DIR/step-001.png and so on")
    parser.add_argument("--steps", type=_whole, metavar="N", help="model steps")
    parser.add_argument("--schedule", metavar="LAW", help="how fast masks vanish: cosine, linear, sigmoid or pow<exponent>")
    parser.add_argument("--temperature", type=_number, metavar="T", help="noise in the choice of what is drawn first")
    _add_speed(parser)
    _add_guidance(parser)
    _add_savings(parser, PICTURE_SAVINGS)
    _add_seed(parser)
    _add_machine(parser)
    _add_json(parser)


def _add_savings(parser: argparse.ArgumentParser, savings: Sequence[tuple[str, str, str, str]]) -> None:
    kinds: dict[str, Callable[[str], object]] = {"whole": _whole, "number": _number, "word": str}
    for name, kind, metavar, about in savings:
        if kind == "flag":
            parser.add_argument(name, action="store_true", default=None, help=about)
            continue
        parser.add_argument(name, type=kinds[kind], metavar=metavar, help=about)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", metavar="BUNDLE", help="a bundle's folder (default: the small model in the package)")


def _add_speed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--speed", default="exact", metavar="NAME", help="exact, balanced or fast: settings to start from (default: exact)"
    )


def _add_guidance(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--guidance", type=_number, metavar="G", help="how strongly the prompt pulls; 0 is none and twice as fast"
    )


def _add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=_whole, default=0, metavar="N", help="same seed, same result (default: 0)")


def _add_machine(parser: argparse.ArgumentParser) -> None:
    _add_device(parser)
    parser.add_argument("--threads", type=_whole, metavar="N", help="CPU threads (default: every usable core)")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="auto (the best that works), cpu, cuda, rtx or tensorrt"
    )


def _add_stored(parser: argparse.ArgumentParser) -> None:
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


def _add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="replace what is already there")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="JSON alone on standard output, one object a line")


def _unknown(given: str, verb: str, spellings: list[str]) -> str:
    if not given.startswith("-"):
        return f"{given!r} is one argument too many for {verb}; put quotes around a sentence"
    name = given.split("=", 1)[0]
    return f"{verb} has no option {name}; {_nearest(name, spellings) or f'see mmada-lite {verb} --help'}"


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _nearest(word: str, words: list[str]) -> str:
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else ""


def _complain(message: str, code: int) -> int:
    line = " ".join(message.split())
    with suppress(OSError):  # nobody may be left to read it
        print(f"mmada-lite: {line}".encode(errors="backslashreplace").decode(), file=sys.stderr, flush=True)
    _drop_stdout_if_stuck()
    return code


def _explain(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{where}; make room or write elsewhere"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"not allowed{where}: {error.strerror}; check who owns it, or choose another place"
    return f"{error.strerror or error}{where}"


def _drop_stdout_if_stuck() -> None:
    """What could not be written stays in the buffer, and Python would complain about it once more at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _drop_stdout()


def _drop_stdout() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
