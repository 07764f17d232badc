"""Builds the site of the manual in build/site: `python docs/build_site.py`, after `pip install "mmada-lite[docs]"`.

It lays the pages that mkdocs.yml lists, and the files that they link to, at the same places in build/site-source, lets the
generator build them strictly, and lays the drawing page of examples/web beside them, where npm has brought its packages. It
writes no page and changes no word: links alone, where a file of the repository is none of the site.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from os.path import relpath
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 1_000_000  # bytes of a file that a page links to and the site carries along
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^()\s]+)\)")
WEB, DRAWING = Path("examples/web"), Path("examples/web/draw.html")  # its index.html would be the page of README.md
PACKAGES = (
    "onnxruntime-web/dist/ort.wasm.min.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
    "@huggingface/tokenizers/dist/tokenizers.min.mjs",
)
MODEL = Path("mmada_lite/models/emoji")


def navigation(entries: list[Any]) -> Iterator[str]:
    """The pages that the navigation lists, whatever they are called there."""
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        else:
            for below in entry.values():
                yield from navigation(below if isinstance(below, list) else [below])


def lay(pages: list[str], target: Path, draws: bool) -> list[Path]:
    """Write the pages and what they link to. Returns the files that are no pages, by their path in the repository."""
    todo, files = [Path(page) for page in pages], list[Path]()
    seen = set(todo)
    while todo:
        page = todo.pop()
        text, linked = relinked(page, draws)
        (target / page).parent.mkdir(parents=True, exist_ok=True)
        (target / page).write_text(text, encoding="utf-8")
        for each in linked - seen:
            seen.add(each)
            (todo if each.suffix == ".md" else files).append(each)
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, target / file)
    return files


def relinked(page: Path, draws: bool) -> tuple[str, set[Path]]:
    """A page's text with links that hold on the site, and the files of the repository that they lead to."""
    linked: set[Path] = set()

    def link(found: re.Match[str]) -> str:
        words, (file, _, anchor) = found[1], found[2].partition("#")
        if not file or ":" in file:
            return found[0]
        path = (ROOT / page.parent / file).resolve()
        if path == ROOT / WEB / "index.html" and draws:
            return f"{words}({relpath(DRAWING, page.parent)})"
        path = path / "README.md" if (path / "README.md").is_file() else path
        if not path.is_relative_to(ROOT) or not path.is_file() or path.stat().st_size > LARGEST or path.suffix == ".html":
            return words.removeprefix("!").strip("[]") if path.exists() else found[0]
        linked.add(path.relative_to(ROOT))
        return f"{words}({relpath(path, ROOT / page.parent)}{'#' + anchor if anchor else ''})"

    parts = re.split(r"(^```.*?^```)", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(link, part) for part in parts), linked


def add_drawing(site: Path) -> None:
    """The page that draws in the reader's tab, its packages, and the small model."""
    for file in [*(ROOT / WEB).glob("*.js"), ROOT / WEB / "style.css"]:
        shutil.copyfile(file, site / WEB / file.name)
    shutil.copyfile(ROOT / WEB / "index.html", site / DRAWING)
    for package in PACKAGES:
        (site / WEB / "node_modules" / package).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / WEB / "node_modules" / package, site / WEB / "node_modules" / package)
    shutil.copytree(ROOT / MODEL, site / MODEL, dirs_exist_ok=True)


def main() -> int:
    """Build. Returns the generator's exit code."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    source, site, pages = ROOT / config["docs_dir"], ROOT / config["site_dir"], list(navigation(config["nav"]))
    if gone := [page for page in pages if not (ROOT / page).is_file()]:
        print(f"mkdocs.yml lists {', '.join(gone)}, which is not there", file=sys.stderr)
        return 2
    draws = (ROOT / WEB / "node_modules" / PACKAGES[0]).is_file()
    for folder in (source, site):
        shutil.rmtree(folder, ignore_errors=True)
    files = lay(pages, source, draws)
    code = subprocess.run([sys.executable, "-m", "zensical", "build", "--clean", "--strict"], cwd=ROOT).returncode
    if code:
        return code
    for file in files:  # the generator leaves out what begins with a dot
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, site / file)
    if draws:
        add_drawing(site)
    else:
        print("without the drawing page: npm ci --prefix examples/web brings its packages")
    print(f"{relpath(site)}/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
