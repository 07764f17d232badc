"""The verb info: what is in a bundle, and whether this machine can run it. It opens every graph,
without the work of optimizing it."""

import argparse
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmada_lite import __version__
from mmada_lite.cli import PAGES, compile_cpp, options, terminal
from mmada_lite.errors import Error
from mmada_lite.files import size_in_words
from mmada_lite.knowledge import Knowledge

if TYPE_CHECKING:
    from mmada_lite.bundle import Bundle

_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", nargs="?", metavar="BUNDLE", help="a bundle's folder; the same as -m")
    options.add_model(parser)
    options.add_machine(parser)
    parser.add_argument("--verify", action="store_true", help="read every file and compare its sha256")
    parser.add_argument(
        "--cpp",
        nargs="?",
        const="",
        metavar="HEADERS",
        help="print the line that compiles a C++ program here, and nothing else",
    )
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print a bundle and this machine. Returns 1 when the bundle is sound but will not run here."""
    from mmada_lite.bundle import Bundle
    from mmada_lite.model import embedded_bundle
    from mmada_lite.ort.cores import usable_cores

    if arguments.cpp is not None:
        return compile_cpp.show(arguments.cpp)
    named = [name for name in (arguments.bundle, arguments.model) if name is not None]
    if len(named) > 1:
        raise Error(f"name one bundle, not both {named[0]} and {named[1]}")
    path = Path(named[0]) if named else embedded_bundle()
    bundle = Bundle.open(path, verify="full" if arguments.verify else "auto")
    threads = terminal.threads_of(arguments.threads) or usable_cores()
    machine = machine_json(bundle, arguments.device, threads)
    content = {**bundle_json(bundle), "verified": arguments.verify, "here": machine}
    print(terminal.json_line(content) if arguments.json else as_text(content))
    return 0 if machine["runs"] else 1


def bundle_json(bundle: "Bundle") -> dict[str, Any]:
    return {
        "name": bundle.name,
        "family": bundle.family,
        "knows": dict(bundle.knows),
        "path": str(bundle.path),
        "bytes": bundle.size,
        "architecture": asdict(bundle.architecture),
        "vocabulary": bundle.vocabulary.to_json(),
        "image": asdict(bundle.image) if bundle.image else None,
        "quantization": {name: asdict(group) for name, group in bundle.quantization.items()},
        "target": bundle.target,
        "cache_precision": "fp16" if bundle.half_caches else "fp32",
        "defaults": {"text": bundle.text_defaults.flat(), "image": bundle.image_defaults.flat()},
        "graphs": {name: {"file": graph.file, "bytes": bundle.files[graph.file].size} for name, graph in bundle.graphs.items()},
        "files": {name: file.size for name, file in bundle.files.items()},
        "tokenizer": bundle.tokenizer_path is not None,
        "provenance": asdict(bundle.provenance),
    }


def machine_json(bundle: "Bundle", device: str, threads: int) -> dict[str, Any]:
    """What this machine offers, and `runs` with the reason when that is false."""
    from mmada_lite.memory_plan import memory_available
    from mmada_lite.ort.loader import check_contracts, device_for
    from mmada_lite.ort.session import onnxruntime_package

    needed, available = memory_needed(bundle), memory_available()
    machine: dict[str, Any] = {
        "mmada_lite": __version__,
        "python": platform.python_version(),
        "onnxruntime": _runtime_version(),
        "providers": [],
        "device": None,
        "threads": threads,
        "memory_needed": needed,
        "memory_available": available,
    }
    try:
        chosen = device_for(bundle, device)
    except Error as error:
        return {**machine, "runs": False, "why": str(error)}
    machine |= {"providers": onnxruntime_package().get_available_providers(), "device": chosen.name}
    try:
        check_contracts(bundle, chosen)
    except Error as error:
        return {**machine, "runs": False, "why": str(error)}
    if chosen.name == "cpu" and available is not None and needed > available:
        lacking = f"it needs about {size_in_words(needed)} of memory and {size_in_words(available)} are free"
        return {**machine, "runs": False, "why": f"{lacking}; close other programs or use a smaller bundle"}
    return {**machine, "runs": True, "why": chosen.reason}


def memory_needed(bundle: "Bundle") -> int:
    """Bytes, roughly: the weights as the CPU holds them. Activations of long texts come on top."""
    from mmada_lite.memory_plan import expansion

    sizes = {name: group.bytes for name, group in bundle.quantization.items()}
    expansions = {name: expansion(name, group, bundle.target) for name, group in bundle.quantization.items()}
    if any(size is None for size in sizes.values()):  # written before groups said their size
        return round(bundle.size * max(expansions.values(), default=1.0))
    rest = max(0, bundle.size - sum(size or 0 for size in sizes.values()))
    return rest + round(sum((size or 0) * expansions[name] for name, size in sizes.items()))


def _runtime_version() -> str | None:
    for name in _RUNTIMES:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return None


def as_text(content: Mapping[str, Any]) -> str:
    """The same for a person, a line a fact."""
    here = content["here"]
    facts = [
        ("name", f"{content['name']}, {size_in_words(content['bytes'])} in {_short(content['path'])}"),
        ("model", _model(content["architecture"])),
        ("words", _words(content)),
        ("knows", _knows(content["knows"])),
        ("pictures", _pictures(content)),
        ("stored as", _stored(content)),
        ("graphs", ", ".join(content["graphs"])),
        ("files", ", ".join(f"{name} {size_in_words(size)}" for name, size in content["files"].items())),
        ("text", _settings(content["defaults"]["text"])),
        ("drawing", _settings(content["defaults"]["image"])),
        ("made", _provenance(content["provenance"])),
        (
            "checked",
            "every sha256" if content["verified"] else "sizes; the sha256 too up to 256 MiB, of more at the first answer",
        ),
        ("here", _here(here)),
        ("memory", _memory(here)),
        ("runs here", f"yes, on {here['device']}: {here['why']}" if here["runs"] else f"no: {here['why']}"),
        ("manual", PAGES["info"]),
    ]
    return "\n".join(f"{name:<10} {fact}" for name, fact in facts if fact)


def _model(shape: Mapping[str, Any]) -> str:
    return (
        f"{shape['n_layers']} layers of width {shape['d_model']}, {shape['n_heads']} heads ({shape['n_kv_heads']} for keys), "
        f"feed-forward {shape['mlp_hidden_size']}, reads {shape['max_sequence_length']} tokens"
    )


def _knows(knows: Mapping[str, Any]) -> str:
    """What is said of it, short; the maker's own keys are in the JSON alone."""
    known = Knowledge.from_json(knows)
    facts = []
    if known.things:
        shown = ", ".join(known.things[:3]) + (f" and {len(known.things) - 3} more" if len(known.things) > 3 else "")
        facts.append(f"{len(known.things)} things ({shown})")
    facts += [f"{len(known.words)} words"] if known.words else []
    facts += [f"of {', '.join(known.languages)}"] if known.languages else []
    facts += [f"in {known.case} case"] if known.case else []
    facts += ["single turns" if known.turns == 1 else f"{known.turns} turns"] if known.turns else []
    facts += [f"{known.picture_size} x {known.picture_size} pictures"] if known.picture_size else []
    return "; ".join(facts)


def _words(content: Mapping[str, Any]) -> str:
    vocabulary = content["vocabulary"]
    tokenizer = "" if content["tokenizer"] else "; no tokenizer, so it reads ids alone"
    return f"{vocabulary['image_code_offset']} text tokens, {vocabulary['codebook_size']} picture codes{tokenizer}"


def _stored(content: Mapping[str, Any]) -> str:
    groups = content["quantization"]
    formats = ", ".join(f"{name} {_format(group)}" for name, group in groups.items())
    return f"{formats}; lowered for {content['target']}, keys and values {content['cache_precision']}"


def _format(group: Mapping[str, Any]) -> str:
    blocks = f" in blocks of {group['block']}" if group["block"] else ""
    zeros = " with zero points" if group["symmetric"] is False else ""
    activation = f" (activations {group['activation']})" if group["activation"] else ""
    return f"{group['format']}{blocks}{zeros}{activation}"


def _pictures(content: Mapping[str, Any]) -> str:
    image = content["image"]
    if image is None:
        return "none: it neither sees nor draws"
    side = image["resolution"] // image["downsample"]
    return f"{image['resolution']} x {image['resolution']} pixels as {side} x {side} codes"


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)


def _provenance(made: Mapping[str, Any]) -> str:
    return f"from {made['source']} by {made['exporter']}, {made['created']}"


def _here(here: Mapping[str, Any]) -> str:
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in here["providers"])
    runtime = here["onnxruntime"] or "no onnxruntime"
    parts = [f"mmada-lite {here['mmada_lite']}", f"Python {here['python']}", runtime + (f" ({providers})" if providers else "")]
    return ", ".join([*parts, f"{here['threads']} threads"])


def _memory(here: Mapping[str, Any]) -> str:
    needed, available = here["memory_needed"], here["memory_available"]
    return f"about {size_in_words(needed)} needed" + (f", {size_in_words(available)} free" if available is not None else "")


def _short(path: str) -> str:
    """A path below the present folder without that folder."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative
