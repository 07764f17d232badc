"""`mmada-lite info --cpp`: where the C++ host lies in this package, and the line that compiles a program with it here.

It knows where an onnxruntime keeps its library and where headers usually are; it compiles nothing itself.
"""

import shlex
from importlib.util import find_spec
from pathlib import Path

from mmada_lite.errors import Error

SOURCES = Path(__file__).parent.parent / "cpp"
HEADER = "onnxruntime_cxx_api.h"
_PLACES = (
    Path("onnxruntime-headers"),  # where the README puts them
    Path("/usr/include/onnxruntime"),
    Path("/usr/include/onnxruntime/core/session"),
    Path("/usr/local/include/onnxruntime"),
    Path("/usr/local/include/onnxruntime/core/session"),
    Path("/usr/include"),
    Path("/usr/local/include"),
)


def find_library() -> Path:
    """The library inside the installed onnxruntime. Raises Error when there is none."""
    spec = find_spec("onnxruntime")
    folders = [Path(folder) / "capi" for folder in (spec.submodule_search_locations or [])] if spec else []
    libraries = sorted(path for folder in folders for path in folder.glob("libonnxruntime.*") if not path.is_symlink())
    if not libraries:
        raise Error('onnxruntime is not installed, or without its library; pip install "mmada-lite[cpu]" brings both')
    return libraries[-1]


def find_headers(given: str) -> Path:
    """The folder that holds onnxruntime's C++ headers: the given one, or the first of the usual ones that does.

    Raises Error, with the command that fetches them, when there is none.
    """
    for place in [Path(given)] if given else _PLACES:
        if (place / HEADER).is_file():
            return place.absolute()
    fetch = f"bash {shlex.quote(str(SOURCES / 'fetch-headers'))} onnxruntime-headers"
    where = f"{given} holds no {HEADER}" if given else "onnxruntime's C++ headers are not here, and its wheel has none"
    raise Error(f"{where}; on Debian 13 `apt-get install libonnxruntime-dev`, on an older Debian `{fetch}`")


def compile_lines(headers: Path, library: Path) -> list[str]:
    """Two commands: a link under the name that programs look for, and the compiler's line for main.cpp."""
    sources, include, lib, at = (shlex.quote(str(path)) for path in (SOURCES / "src", SOURCES, library, headers))
    return [
        f"mkdir -p lib && ln -sfn {lib} lib/libonnxruntime.so.1",
        f"g++ -std=c++17 -O2 -I {include} -I {at} main.cpp {sources}/*.cpp lib/libonnxruntime.so.1 "
        '-Wl,-rpath,"$PWD/lib" -pthread -o main',
    ]


def show(headers: str) -> int:
    """Print the lines; `headers` is a folder, or empty for the usual ones."""
    print("\n".join(compile_lines(find_headers(headers), find_library())))
    return 0
