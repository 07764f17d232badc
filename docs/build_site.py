"""Builds the site of the manual in build/site: `python docs/build_site.py`, after `pip install "mmada-lite[docs]"`.

It lays the pages that mkdocs.yml lists, and the files that they link to, at the same places in build/site-source, lets the
generator build them strictly, and lays the drawing page of examples/web beside them, where npm has brought its packages. It
writes no page and changes no word: links alone, where a file of the repository is none of the site.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from os.path import relpath
from pathlib import Path
from typing import Any

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
ABROAD = "https://unpkg.com/iframe-worker/shim"  # what the generator's search wants where pages are read from a disk
SHIM, AT_HOME = WEB / "node_modules/iframe-worker/shim/index.js", Path("assets/javascripts/iframe-worker.js")


def navigation(entries: list[Any]) -> Iterator[str]:
    """The pages of the repository that the navigation lists, whatever they are called there."""
    for entry in entries:
        if isinstance(entry, str):
            yield from [entry] if entry.endswith(".md") else []
        else:
            for below in entry.values():
                yield from navigation(below if isinstance(below, list) else [below])


def lay(pages: list[str], target: Path) -> set[Path]:
    """Write the pages and what they link to. Returns the files that are no pages, by their path in the repository."""
    files: set[Path] = set()
    for page in pages:
        text, linked = relinked(Path(page), pages)
        (target / page).parent.mkdir(parents=True, exist_ok=True)
        (target / page).write_text(text, encoding="utf-8")
        files |= linked
    copy(files, target)
    return files


def copy(files: Iterable[Path], target: Path) -> None:
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, target / file)


def relinked(page: Path, pages: list[str]) -> tuple[str, set[Path]]:
    """A page's text with links that hold on the site, and the files of the repository that they lead to. Of a link to what the
    site has not (a folder, a large file, a page of the tests) its words are left."""
    files: set[Path] = set()

    def link(found: re.Match[str]) -> str:
        words, (file, mark, anchor) = found[1], found[2].partition("#")
        path = (ROOT / page.parent / file).resolve()
        if not file or ":" in file or not path.exists():
            return found[0]  # the generator says what leads nowhere
        if path == ROOT / WEB / "index.html":
            return f"{words}({relpath(DRAWING, page.parent)})"
        path = path / "README.md" if path.is_dir() else path
        name = relpath(path, ROOT)
        if name in pages:
            return f"{words}({relpath(name, page.parent)}{mark}{anchor})"
        if path.suffix in (".md", ".html") or not path.is_file() or path.stat().st_size > LARGEST:
            return words.strip("[]")
        files.add(Path(name))
        return found[0]

    parts = re.split(r"(^```.*?^```)", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(link, part) for part in parts), files


def add_drawing(site: Path, packages: bool) -> None:
    """The page that draws in the reader's tab, its packages, and the small model; without the packages, the word of it."""
    if not packages:
        (site / DRAWING).write_text("<p>This page is missing: run npm ci --prefix examples/web, then build the site again.")
        return
    files = [path.relative_to(ROOT) for path in (*(ROOT / WEB).glob("*.js"), *(ROOT / MODEL).iterdir())]
    copy([*files, WEB / "style.css", *(WEB / "node_modules" / package for package in PACKAGES)], site)
    shutil.copyfile(ROOT / WEB / "index.html", site / DRAWING)


def bring_home(site: Path, packages: bool) -> None:
    """Let no page fetch a script from elsewhere: its copy stands in, or where npm has not brought one the page does without."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        near = relpath(site / AT_HOME, page.parent)
        tag = f'<script src="{ABROAD}" type="text/javascript"></script>'
        page.write_text(text.replace(tag, f'<script src="{near}"></script>' if packages else ""), encoding="utf-8")
    if packages:
        shutil.copyfile(ROOT / SHIM, site / AT_HOME)


def main() -> int:
    """Build. Returns the generator's exit code, or 2 with one line that says what is missing."""
    if find_spec("zensical") is None:
        print('the site needs zensical, which is not installed; pip install "mmada-lite[docs]"', file=sys.stderr)
        return 2
    import yaml

    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    source, site, pages = ROOT / config["docs_dir"], ROOT / config["site_dir"], list(navigation(config["nav"]))
    if gone := [page for page in pages if not (ROOT / page).is_file()]:
        print(f"mkdocs.yml lists {', '.join(gone)}, which is not there; write it or take it out of nav", file=sys.stderr)
        return 2
    packages = (ROOT / SHIM).is_file()  # npm has brought this and the packages of the drawing page
    for folder in (source, site):
        shutil.rmtree(folder, ignore_errors=True)
    files = lay(pages, source)
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        print(re.sub(r"\x1b\[[\d;]*m", "", done.stdout.partition("Traceback")[0]), file=sys.stderr)
        return done.returncode
    bring_home(site, packages)
    copy(files, site)  # once more: the generator leaves out what begins with a dot
    add_drawing(site, packages)
    if not packages:
        print("without the drawing page, and without search from a disk: npm ci --prefix examples/web brings both")
    print(f"{relpath(site)}/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
