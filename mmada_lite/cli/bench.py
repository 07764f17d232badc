"""The verb bench: hands its arguments to the benchmark that the first of them names."""

import argparse
from importlib import import_module

from mmada_lite.cli import PAGES
from mmada_lite.cli.extras import needs
from mmada_lite.errors import Error, did_you_mean

BENCHES: dict[str, tuple[str, str]] = {  # name -> its module, and what it measures
    "latency": ("bench.speed.latency", "how long text, answers about pictures and drawing take, and where the time goes"),
    "peers": ("bench.speed.peers", "the published way in torch, and other engines, against ours, on this machine"),
    "ceiling": ("bench.speed.ceiling", "what this machine can multiply and move at all, in every stored form"),
    "quality": ("bench.quality.evaluate", "every task of the small model; bundles against fp32; quality against latency"),
    "quantization": ("bench.quality.quantization", "what formats, methods and bits cost, along one trajectory"),
    "serve": ("bench.speed.serving", "a server under load: ready, first step, batches, 2,000 mixed requests, memory"),
    "check": ("bench.parity.check", "recorded cases of the reference, as mmada-lite check"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="see mmada-lite bench --help")


def run(arguments: argparse.Namespace) -> int:
    """Hand the other arguments on; without any, list the benchmarks."""
    name, rest = (arguments.arguments[0], arguments.arguments[1:]) if arguments.arguments else ("--help", [])
    if name in ("-h", "--help"):
        print("usage: mmada-lite bench NAME [...]; each has a --help of its own\n")
        print("\n".join(f"  {known:<13}{about}" for known, (_, about) in BENCHES.items()))
        print(f"\nManual: {PAGES['bench']}")
        return 0
    if name not in BENCHES:
        raise Error(f"no benchmark is called {name!r}; {did_you_mean(name, BENCHES, 'see mmada-lite bench --help', spell=str)}")
    with needs("bench"):
        code: int = import_module(f"mmada_lite.{BENCHES[name][0]}").main(rest)
    return code
