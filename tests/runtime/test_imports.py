"""What the runtime may import, and that importing it changes nothing. Static over the sources, and alive in a process."""

import ast
import configparser
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmada_lite

ROOT = Path(__file__).parents[2]
RUNTIME = {"numpy", "onnxruntime", "tokenizers", "PIL"}
WORKSHOPS = {"export", "quant", "bench", "train"}
HEAVY = {"torch", "onnx", "transformers", "safetensors", "resvg_py"}


def sources() -> Iterator[Path]:
    """The runtime's files: everything under mmada_lite but what is a link to a workshop."""
    for folder, names, files in os.walk(ROOT / "mmada_lite", followlinks=False):
        names[:] = [name for name in names if not (Path(folder) / name).is_symlink() and name != "__pycache__"]
        yield from (Path(folder) / file for file in files if file.endswith(".py"))


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
        assert allowed, f"{path} imports {name}"
        if first == "mmada_lite" and "cli" not in path.parts:
            assert not WORKSHOPS & set(rest[:1]), f"{path} imports the workshop {name}"


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
    found = {
        Path(folder).relative_to(ROOT).as_posix().replace("/", ".")
        for folder, _, files in os.walk(ROOT / "mmada_lite", followlinks=True)
        if "__init__.py" in files
    }
    assert set(folders) == found
    assert set(config["options"]["packages"].split()) == found
    assert all((ROOT / folder / "__init__.py").is_file() for folder in folders.values())


def test_public_names() -> None:
    assert {"load", "Model", "TextSettings", "ImageSettings", "Error"} <= set(mmada_lite.__all__)
    assert all(getattr(mmada_lite, name) is not None for name in mmada_lite.__all__)
    assert set(mmada_lite.__all__) <= set(dir(mmada_lite))
    with pytest.raises(AttributeError):
        _ = mmada_lite.nothing
