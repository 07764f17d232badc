"""The verb bench: hands its arguments to the benchmark that the first of them names."""

import argparse
from importlib import import_module

from mmada_lite.cli.extras import needs
from mmada_lite.errors import Error, did_you_mean

BENCHES: dict[str, tuple[str, str]] = {  # name -> its module, and what it measures
    "quality": ("bench.quality.evaluate", "every task of the small model, for a checkpoint or a bundle, with intervals"),
    "truth": ("bench.quality.quantization", "what formats and methods of quantization cost, along one trajectory"),
    "bits": ("bench.quality.bits", "how many bits a weight takes until pictures and text agree with fp32"),
    "peers": ("bench.speed.peers", "the published way in torch, and other engines, against ours, on this machine"),
    "frontier": ("bench.quality.frontier", "quality against latency over ways of decoding, on the small model"),
    "presets": ("bench.quality.presets", "what each --speed costs and gains, on the small model"),
    "gpu": ("bench.speed.gpu", "pictures and answers at 8B shapes on a GPU, against torch"),
    "ceiling": ("bench.speed.ceiling", "what this machine can multiply and move at all"),
    "latency": ("bench.speed.latency", "how long text, answers about pictures and drawing take, and where the time goes"),
    "linears": ("bench.speed.linears", "the stored forms of a matrix on this machine"),
    "loops": ("bench.speed.overhead", "what decoding costs beside the model, and how many tokens each way of drawing computes"),
    "sessions": ("bench.speed.sessions", "threads, spinning and memory arena of the sessions on this machine"),
    "eight": ("bench.walkthrough_8b", "the whole path at the published size, on random weights: memory, time and disk"),
    "startup": ("bench.speed.startup", "seconds from the command to the first step and to the picture"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="see mmada-lite bench --help")


def run(arguments: argparse.Namespace) -> int:
    """Hand the other arguments on; without any, list the benchmarks."""
    name, rest = (arguments.arguments[0], arguments.arguments[1:]) if arguments.arguments else ("--help", [])
    if name in ("-h", "--help"):
        print("usage: mmada-lite bench NAME [...]; each has a --help of its own\n")
        print("\n".join(f"  {known:<10}{about}" for known, (_, about) in BENCHES.items()))
        return 0
    if name not in BENCHES:
        raise Error(f"no benchmark is called {name!r}; {did_you_mean(name, BENCHES, 'see mmada-lite bench --help', spell=str)}")
    with needs("bench"):
        code: int = import_module(f"mmada_lite.{BENCHES[name][0]}").main(rest)
    return code
