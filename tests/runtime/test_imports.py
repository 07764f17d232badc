"""Who may import whom, how large a file may be, and that importing the runtime changes nothing. Static over the sources, and
alive in a process."""

import ast
import configparser
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from import_graph import ROOT, WORKSHOPS, Import, between_wings, project, project_imports, sources, wing_of

import mmada_lite

RUNTIME = {"numpy", "onnxruntime", "tokenizers", "PIL"}
SERVING = {"starlette", "uvicorn", "prometheus_client", "ray"}  # of the extras [serve] and [ray], and in their folder alone
HEAVY = {"torch", "onnx", "transformers", "safetensors", "resvg_py"}
# every module beside them in mmada_lite is one of its own
WINGS = WORKSHOPS | {"decoding", "forms", "ort", "cli", "serve", "models"}
MOST_FLAT, MOST_LINES = 16, 450
# Wing or module -> what it may import beside itself. Decoding knows ids and settings alone, and ort no user of it.
IDS = {"calls", "errors", "families", "vocabulary"}
OPENING = {"bundle", "contracts", "decoding", "files", "hashing", "images", "knowledge", "memory_plan", *IDS}
ALLOWED: Mapping[str, set[str]] = {
    "decoding": IDS,
    "forms": {"calls", "decoding", "errors", "streams", "vocabulary"},
    "ort": OPENING,
    "export": {"arguments", "mmada_lite", "ort", *OPENING},
    "quant": {"export", "forms.filling", "mmada_lite", "model", "ort", "streams", "train.denoiser", "train.model", *OPENING},
    "train": {"arguments", "export", "mmada_lite", "model", "ort", "streams", *OPENING},
}
# What the others may have of decoding: its two doors and their types, but none of the parts that a decode is built of.
DOORS = {
    "arrays",
    "format_1",
    "generate",
    "score",
    "rows",
    "settings",
    "setting_fields",
    "schedules",
    "denoiser",
    "kv_cache",
    "forward.Step",
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sorted(sources()), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_runtime_imports_four_packages_and_no_workshop(path: Path) -> None:
    for name in imports(path):
        first, *rest = name.split(".")
        allowed = first in RUNTIME or first == "mmada_lite" or first in sys.stdlib_module_names
        allowed = allowed or (first in SERVING and path.parent.name == "serve")
        assert allowed, f"{path} imports {name}"
        if first == "mmada_lite" and "cli" not in path.parts:
            assert not WORKSHOPS & set(rest[:1]), f"{path} imports the workshop {name}"


def circle(edges: Iterable[tuple[str, str]]) -> list[str]:
    """One circle of a graph, from a node back to it; [] where there is none."""
    graph: dict[str, set[str]] = {}
    for importer, imported in edges:
        graph.setdefault(importer, set()).add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def trespasses(imports: Iterable[Import]) -> list[str]:
    """The imports that are not allowed, in words."""
    forbidden = []
    for each in imports:
        importer, imported = wing_of(each.importer), wing_of(each.imported)
        exact = each.imported.removeprefix("mmada_lite.")
        if importer == imported or (importer in ("bench", "cli", "__main__") and imported != "cli"):
            allowed = importer != "cli" or each.late or imported not in WORKSHOPS
        elif importer in ALLOWED:
            allowed = imported in ALLOWED[importer] or exact in ALLOWED[importer]
        else:
            allowed = imported not in WORKSHOPS | {"cli"} or importer == "__main__"
        if not allowed:
            forbidden.append(f"{each.importer} imports {each.imported}" + ("" if each.late else " on top"))
    return forbidden


def test_no_import_circles() -> None:
    imports = project_imports(project())
    assert len(imports) > 500
    assert circle((each.importer, each.imported) for each in imports) == []
    assert circle(between_wings(imports)) == []


def test_who_may_import_whom() -> None:
    """The runtime imports no workshop, but its command line, and that inside functions; export imports the runtime; quant
    export and the trainable model; train the runtime and export; bench everything; and nobody the command line."""
    assert trespasses(project_imports(project())) == []


def parts_of_a_decode(modules: Mapping[str, Path]) -> list[str]:
    """The imports, from outside decoding, of what a decode is built of."""
    taken = []
    for importer, path in modules.items():
        for name in imports(path):
            part = name.removeprefix("mmada_lite.decoding.")
            if part == name or wing_of(importer) == "decoding" or {part, part.split(".")[0]} & DOORS:
                continue
            taken.append(f"{importer} imports {name}")
    return taken


def test_a_decode_is_built_in_one_place() -> None:
    """No loop, canvas or sampler outside mmada_lite/decoding: every user begins at its `complete` or `draw`."""
    assert parts_of_a_decode(project()) == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("from mmada_lite.decoding.text import decode_text", 1),
        ("import mmada_lite.decoding.canvas", 1),
        ("def f():\n    from mmada_lite.decoding import sampling, generate", 1),
        ("from mmada_lite.decoding.forward import Step, run_forward", 1),
        ("from mmada_lite.decoding.generate import Decoding, complete, draw", 0),
        ("from mmada_lite.decoding import generate", 0),
    ],
)
def test_a_planted_decode_is_found(tmp_path: Path, text: str, count: int) -> None:
    planted = tmp_path / "a.py"
    planted.write_text(text)
    assert len(parts_of_a_decode({"mmada_lite.bench.a": planted})) == count
    assert parts_of_a_decode({"mmada_lite.decoding.a": planted}) == []


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    """Of files, by imports inside a function and for types alone; of wings, where no file is in one; and every trespass."""
    texts = {
        "mmada_lite.ort.a": "def f():\n    from mmada_lite.ort import b",
        "mmada_lite.ort.b": "from mmada_lite.decoding.c import x",
        "mmada_lite.decoding.c": "import mmada_lite.errors",
        "mmada_lite.decoding.d": "",
        "mmada_lite.errors": "",
        "mmada_lite.cli.e": "def f():\n    import mmada_lite.export.g",
        "mmada_lite.export.g": "",
    }

    def checked(**more: str) -> tuple[list[str], list[str], list[str]]:
        modules = {}
        for number, (name, text) in enumerate(
            (texts | {f"mmada_lite.{k.replace('_', '.')}": v for k, v in more.items()}).items()
        ):
            modules[name] = tmp_path / f"{number}.py"
            modules[name].write_text(text)
        imports = project_imports(modules)
        files = circle((each.importer, each.imported) for each in imports)
        return files, circle(between_wings(imports)), trespasses(imports)

    assert checked() == ([], [], [])
    files, wings, _ = checked(decoding_c="if TYPE_CHECKING:\n    from mmada_lite.ort.a import y")
    assert sorted(set(files)) == ["mmada_lite.decoding.c", "mmada_lite.ort.a", "mmada_lite.ort.b"]
    assert files[0] == files[-1]
    assert wings
    files, wings, forbidden = checked(decoding_d="from importlib import import_module\nimport_module('mmada_lite.ort.a')")
    assert (files, set(wings)) == ([], {"decoding", "ort"})
    assert forbidden == ["mmada_lite.decoding.d imports mmada_lite.ort.a on top"]
    for name, text in {
        "ort_a": "import mmada_lite.export.g",
        "errors": "import mmada_lite.export.g",
        "cli_e": "import mmada_lite.export.g",
        "bench_h": "import mmada_lite.cli.e",
        "export_g": "import mmada_lite.cli.e",
        "quant_h": "import mmada_lite.bench.i",
    }.items():
        assert len(checked(**{"bench_i": "", name: text})[2]) == 1, name


def test_the_house_stays_small() -> None:
    """At most 16 modules flat in mmada_lite, and no file written by hand of more than 450 lines."""
    assert len(list((ROOT / "mmada_lite").glob("*.py"))) <= MOST_FLAT
    skipped = {"node_modules", "build", "dist", "runs", "__pycache__"}
    lengths = {}
    for folder, names, files in os.walk(ROOT, followlinks=False):
        names[:] = [name for name in names if name not in skipped and not name.startswith(".")]
        names[:] = [name for name in names if not (Path(folder) / name).is_symlink()]
        for path in (Path(folder) / file for file in files):
            if path.suffix in (".py", ".cpp", ".hpp", ".h", ".js"):
                lengths[str(path.relative_to(ROOT))] = len(path.read_text(encoding="utf-8").splitlines())
    assert len(lengths) > 200
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def alive(code: str, *arguments: str) -> None:
    """Run code in a process of its own that must end well."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_whole_session_needs_nothing_more(tiny_bundle: Path) -> None:
    """Load, paint, ask and chat, with every heavy package made impossible to import."""
    alive(
        f"import sys\nfor name in {sorted(HEAVY)}: sys.modules[name] = None\n"
        "import mmada_lite\n"
        "model = mmada_lite.load(sys.argv[1])\n"
        "picture = model.paint('a red apple').picture\n"
        "model.ask(picture, 'what is this?', mmada_lite.TextSettings(answer_length=8, steps=4)).text\n"
        "model.chat('hello', mmada_lite.TextSettings(answer_length=8, steps=4)).text\n",
        str(tiny_bundle),
    )


def test_importing_the_package_is_light() -> None:
    alive("import sys, mmada_lite\nassert not {'numpy', 'PIL', 'tokenizers', 'onnxruntime'} & set(sys.modules)")


def test_a_model_loads_without_what_decodes(tiny_bundle: Path) -> None:
    """The loops and the forms of answers come with the first call."""
    alive(
        "import sys, mmada_lite\n"
        "mmada_lite.load(sys.argv[1])\n"
        "assert not {'mmada_lite.decoding.generate', 'mmada_lite.forms.writer'} & set(sys.modules)",
        str(tiny_bundle),
    )


def test_importing_changes_nothing() -> None:
    """No log handlers, seeds, threads, signals, warning filters or environment, once the packages that we use are loaded."""
    alive(
        "import logging, os, random, signal, sys, threading, warnings\n"
        "import numpy, onnxruntime, tokenizers, PIL.Image, PIL.ImageOps\n"
        "def state():\n"
        "    loggers = [logging.root, *map(logging.getLogger, list(logging.root.manager.loggerDict))]\n"
        "    return (dict(os.environ), random.getstate(), repr(numpy.random.get_state()), list(warnings.filters),\n"
        "            sum((logger.handlers for logger in loggers), []), logging.root.level, threading.active_count(),\n"
        "            [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)], sys.excepthook, numpy.geterr())\n"
        "before = state()\n"
        "import mmada_lite, mmada_lite.cli.main\n"
        "from mmada_lite import load, Model, TextSettings, ImageSettings\n"
        "import mmada_lite.cli.chat, mmada_lite.cli.paint, mmada_lite.cli.export, mmada_lite.cli.info\n"
        "assert state() == before\n"
        "assert not logging.getLogger('mmada_lite').handlers\n"
    )


def test_every_package_is_installed() -> None:
    """setup.cfg lists packages by name, so a new folder must be written there: where it lies, and under which name."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    folders = dict(line.split(" = ") for line in config["options"]["package_dir"].split("\n") if line)
    packages = {
        Path(folder).relative_to(ROOT).as_posix().replace("/", ".")
        for folder, _, files in os.walk(ROOT / "mmada_lite", followlinks=True)
        if "__init__.py" in files
    }
    assert set(folders) == packages
    assert set(config["options"]["packages"].split()) == packages
    assert all((ROOT / folder / "__init__.py").is_file() for folder in folders.values())


def test_public_names() -> None:
    assert {"load", "Model", "TextSettings", "ImageSettings", "Error"} <= set(mmada_lite.__all__)
    assert all(getattr(mmada_lite, name) is not None for name in mmada_lite.__all__)
    assert set(mmada_lite.__all__) <= set(dir(mmada_lite))
    with pytest.raises(AttributeError):
        _ = mmada_lite.nothing
