"""Which module of ours imports which, read from the sources: what the laws of the house and the drawing of it rest on."""

import ast
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORKSHOPS = {"export", "quant", "bench", "train"}


def sources() -> Iterator[Path]:
    """The runtime's files: everything under mmada_lite but what is a link to a workshop."""
    for folder, names, files in os.walk(ROOT / "mmada_lite", followlinks=False):
        names[:] = [name for name in names if not (Path(folder) / name).is_symlink() and name != "__pycache__"]
        yield from (Path(folder) / file for file in files if file.endswith(".py"))


@dataclass(frozen=True, slots=True)
class Import:
    """One module of ours imports another; late: not when it is imported itself, but in a function or for the type checker."""

    importer: str
    imported: str
    late: bool


def project() -> dict[str, Path]:
    """Every module of ours by its name as it is installed: mmada_lite.export.graph lies in export/graph.py."""
    files = [*sources(), *(path for wing in WORKSHOPS for path in (ROOT / wing).rglob("*.py"))]
    return {module_of(path.relative_to(ROOT)): path for path in files}


def module_of(path: Path) -> str:
    parts = [*([] if path.parts[0] == "mmada_lite" else ["mmada_lite"]), *path.with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def project_imports(modules: Mapping[str, Path]) -> list[Import]:
    """Those of our modules that our modules import: on top, inside functions, for the type checker alone, by a spelled name."""
    edges = []
    for importer, path in modules.items():
        for names, late in _imported(ast.parse(path.read_text(encoding="utf-8"))):
            ours = next((name for name in names if name in modules), None)
            if ours is not None and ours != importer:
                edges.append(Import(importer, ours, late))
    return edges


def _imported(node: ast.AST, late: bool = False) -> Iterator[tuple[tuple[str, ...], bool]]:
    """(what may be a module's name, longest first; whether it is imported late) of everything below a node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (((alias.name,), late) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (((f"{child.module}.{alias.name}", str(child.module)), late) for alias in child.names)
        elif isinstance(child, ast.Call) and getattr(child.func, "id", getattr(child.func, "attr", None)) == "import_module":
            yield from (((str(each.value),), late) for each in child.args if isinstance(each, ast.Constant))
        yield from _imported(child, late or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) or _for_types(child))


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def wing_of(module: str) -> str:
    """export of mmada_lite.export.graph, bundle of mmada_lite.bundle, mmada_lite of the package itself."""
    return module.split(".")[1] if "." in module else module


def between_wings(imports: Iterable[Import]) -> set[tuple[str, str]]:
    edges = {(wing_of(each.importer), wing_of(each.imported)) for each in imports}
    return {(importer, imported) for importer, imported in edges if importer != imported}
