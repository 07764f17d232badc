"""Engines on a Jetson, from the same graphs, with the trtexec that JetPack brings; first whether the board's memory suffices.

    python -m mmada_lite.export.jetson BUNDLE             # build what is missing in BUNDLE/engines
    python -m mmada_lite.export.jetson BUNDLE --dry-run   # print the commands

The bundle must be lowered for TensorRT. Keys, files and locks are those of `engines`; this file knows
trtexec's options and a board.
"""

import argparse
import mmap
import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from mmada_lite.arguments import exit_code
from mmada_lite.bundle import FP8_WEIGHTS, Bundle
from mmada_lite.errors import Error
from mmada_lite.export.engines import build_engines
from mmada_lite.files import size_in_words
from mmada_lite.memory_plan import Shape, bytes_of, need
from mmada_lite.ort import nvidia
from mmada_lite.ort.engines import ENGINES_OF, Profile, profiles_for, profiles_of, shapes_of

TRTEXEC = "/usr/src/tensorrt/bin/trtexec"
ORIN = "8.7"  # compute capability of every Orin board
BUILDER = "tensorrt"


def command(trtexec: str, bundle: Bundle, graph: str, profiles: Sequence[Profile], engine: Path) -> list[str]:
    """The call that builds one graph's engine. The graph itself says what is int4 and half precision: --stronglyTyped."""
    arguments = [trtexec, f"--onnx={bundle.graph_path(graph)}", f"--saveEngine={engine}", "--stronglyTyped", "--skipInference"]
    for number, profile in enumerate(profiles):
        arguments += [f"--profile={number}"] if len(profiles) > 1 else []
        arguments += [f"--{end}Shapes={shapes}" for end, shapes in shapes_of(bundle, graph, profile).items()]
    return arguments


def version(trtexec: str) -> str:
    """Program and version, as an engine's key says it. Raises Error where there is no trtexec."""
    try:
        done = subprocess.run([trtexec, "--help"], capture_output=True, text=True, timeout=60)
    except OSError as error:
        raise Error(f"there is no {trtexec} ({error.strerror}); JetPack brings it: sudo apt install nvidia-jetpack") from error
    number = re.search(r"TensorRT[ .]v?(\d+)", done.stdout + done.stderr)
    return f"{BUILDER} {number[1] if number else 'unknown'}"


def builder(trtexec: str, bundle: Bundle) -> Callable[[Path, Sequence[Profile], str, Callable[[float], None]], mmap.mmap]:
    """What `build_engines` calls: runs trtexec and hands over the engine, mapped: a board has no room for it twice."""

    def build(graph: Path, profiles: Sequence[Profile], capability: str, progress: Callable[[float], None]) -> mmap.mmap:
        with tempfile.TemporaryDirectory() as scratch:
            engine = Path(scratch) / "engine"
            done = subprocess.run(command(trtexec, bundle, graph.stem, profiles, engine), capture_output=True, text=True)
            if done.returncode or not engine.is_file():
                errors = [line for line in (done.stdout + done.stderr).splitlines() if "[E]" in line]
                raise Error(f"trtexec cannot build {graph.name}: {(errors or ['it gave no reason'])[-1][:300]}")
            progress(1.0)
            with engine.open("rb") as stream:
                return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)  # outlives the file's name

    return build


def planned(bundle: Bundle, memory: int) -> str:
    """Whether the bundle fits a board, whose processor and GPU share one memory."""
    counted = need(Shape.of(bundle), bundle.quantization, bundle.text_defaults, device="tensorrt", target=bundle.target)
    needed = counted.peak + counted.card_peak
    parts = ", ".join(f"{name} {size_in_words(size)}" for name, size in counted.card.items() if size)
    verdict = "fits" if needed <= memory else f"does not fit, {size_in_words(needed - memory)} are lacking"
    return f"{bundle.name} takes about {size_in_words(needed)} of {size_in_words(memory)} ({parts}): {verdict}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="a bundle exported with --target tensorrt")
    parser.add_argument("--trtexec", default=TRTEXEC, help=f"default {TRTEXEC}")
    parser.add_argument("--compute-capability", help=f"of the board (default: the board's own, else {ORIN}, Orin)")
    parser.add_argument("--memory", help="of the board, such as 8GB (default: the board's own)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run none")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    bundle = Bundle.open(options.bundle)
    if FP8_WEIGHTS in bundle.needs:
        raise Error(
            f"{bundle.path} has weights in fp8, which TensorRT-RTX alone multiplies by; export it with --precision int8"
        )
    cards = nvidia.cards()
    if options.memory or cards:
        print(planned(bundle, bytes_of(options.memory) if options.memory else cards[0].memory))
    if options.dry_run:
        profiles = profiles_for(bundle)
        for graph in (name for name in ENGINES_OF if name in bundle.graphs):
            own = profiles_of(graph, profiles)
            print(shlex.join(command(options.trtexec, bundle, graph, own, bundle.path / "engines" / f"{graph}.engine")))
        return 0
    made_by = version(options.trtexec)
    capability = options.compute_capability or (cards[0].compute_capability if cards else ORIN)
    build_engines(bundle, capability, say=print, build=builder(options.trtexec, bundle), builder=made_by)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
