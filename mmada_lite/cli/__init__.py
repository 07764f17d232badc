"""The command line: a module a verb, with `add_arguments` and `run`. Only these files print; the library never imports them."""

from collections.abc import Mapping

PAGES: Mapping[str, str] = {  # verb -> its page of the manual
    **dict.fromkeys(("chat", "ask", "paint", "inpaint", "extend", "completion"), "docs/cli.md"),
    "fill": "docs/fill.md",
    "serve": "docs/serve.md",
    "batch": "docs/clients.md",
    "export": "docs/checkpoint.md",
    "quantize": "docs/quantization.md",
    "check": "docs/parity.md",
    "info": "docs/bundle.md",
    **dict.fromkeys(("plan", "doctor"), "docs/devices.md"),
    "train": "docs/training.md",
    "bench": "docs/benchmarks.md",
}
