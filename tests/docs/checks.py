"""What must hold for the words of a page: each check returns its faults as `page:line: what`. None runs anything."""

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote

from commands import _IGNORED
from pages import ROOT, Page

from mmada_lite.cli.main import build_parser

LONGEST_LINE, MOST_WORDS = 120, 17_000
# The words of a diary: they tell what happened to the project, where a manual says what holds.
DIARY = (
    r"told|asked for|beside (?:the )?other work|a trial without|(?:one|a|in) trial\b|we tried|was tried|were tried|turned out"
    r"|no longer|used to be|at that time|yesterday|last (?:week|month|time)|not measured again|the issue asks?"
)
FOREIGN = {"--depth", "--extra-index-url", "--index-url", "--prefix", "--bind", "--collect-all", "--no-build-isolation"}
OTHERS = {  # names that look like ours and are another program's
    *("clear_page_erms", "nproc_per_node", "save_external_prepacked_constant_initializers", "SkipSimplifiedLayerNormalization"),
    *("main.cpp", "SharedArrayBuffer"),
}
_SOURCES = ("*.py", "*.js", "*.[ch]pp", "*.json", "*.cfg", "*.toml", "*.cmake", "*.yml", "*.ipynb", "CMakeLists.txt", "run")
_SPELLED = (  # names that look like ours: snake_case, CamelCase with two humps, name=value
    r"[a-z]+[a-z0-9]*(?:_[a-z0-9]+)+",
    r"(?:[A-Z]+[a-z0-9]+){2,}",
    r"[a-z][a-z_]*(?==)",
)


def _files(root: Path, patterns: Sequence[str] = ("*",)) -> Iterator[Path]:
    for path in root.rglob("*"):
        inside = path.relative_to(root).parts
        ours = path.is_file() and not any(Path(part).match(each) for part in inside for each in _IGNORED)
        if ours and any(path.match(pattern) for pattern in patterns):
            yield path


@cache
def _sources() -> str:
    mine = Path(__file__).parent
    return "\n".join(path.read_text(encoding="utf-8") for path in _files(ROOT, _SOURCES) if mine not in path.parents)


@cache
def _known() -> set[str]:
    return OTHERS | set(re.findall(r"\w+", _sources()))


@cache
def _options() -> set[str]:
    ours = {spelling for parser in build_parser()[1].values() for each in parser._actions for spelling in each.option_strings}
    return ours | FOREIGN | set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", _sources()))


@cache
def _names() -> set[str]:
    return {path.name for path in _files(ROOT)}


def broken_links(page: Page, others: Iterable[Page]) -> list[str]:
    """Links to files and anchors that are not there, and pictures without words for those who do not see them."""
    anchors = {other.path.resolve(): other.anchors for other in others} | {page.path.resolve(): page.anchors}
    faults = []
    for link in page.links:
        if link.alt is not None and not link.alt.strip():
            faults.append(f"{page.name}:{link.line}: the picture {link.target} has no words for those who do not see it")
        if re.match(r"[a-z]+:", link.target):
            if not link.target.startswith(("https://", "mailto:")):
                faults.append(f"{page.name}:{link.line}: {link.target} is not https")
            continue
        file, _, anchor = unquote(link.target).partition("#")
        path = (page.path.parent / file).resolve() if file else page.path.resolve()
        if not path.exists() or not path.is_relative_to(page.root.resolve()):
            faults.append(f"{page.name}:{link.line}: {link.target}: there is no such {'picture' if link.alt else 'file'}")
        elif anchor and path in anchors and anchor not in anchors[path]:
            faults.append(f"{page.name}:{link.line}: {link.target}: {path.name} has no heading #{anchor}")
    return faults


def long_lines(page: Page) -> list[str]:
    """Lines of prose that are too long. A picture or a link that fills its line by itself cannot be broken."""
    alone = re.compile(r"\s*(?:[-*] )?!?\[[^\]]*\]\(\S+\)\W*$")
    return [
        f"{page.name}:{number}: {len(line)} characters; break the line at {LONGEST_LINE}"
        for number, line in page.prose()
        if len(line) > LONGEST_LINE and not alone.match(line)
    ]


def diary(page: Page) -> list[str]:
    """Words that tell a history."""
    found = []
    for number, line in enumerate(page.lines, 1):
        sentence = re.sub(r"`[^`]*`", "", line)
        found += [(number, word) for word in re.findall(rf"\b(?:{DIARY})", sentence, re.IGNORECASE)]
    return [f"{page.name}:{number}: {word!r} is a word of a diary; say what holds" for number, word in found]


def word_count(pages: Iterable[Page]) -> int:
    """What white space separates and holds a letter or a digit, so that the bars of a table are none."""
    return sum(any(map(str.isalnum, token)) for page in pages for token in page.text.split())


def misspelled(pages: Sequence[Page]) -> list[str]:
    """What codespell's list of common misspellings knows."""
    command = [sys.executable, "-m", "codespell_lib", "--ignore-words-list", "hist,ser,thirdparty"]
    done = subprocess.run([*command, *(str(page.path) for page in pages)], capture_output=True, text=True)
    assert not done.stderr.strip(), done.stderr
    return [line.replace(f"{pages[0].root}/", "") for line in done.stdout.splitlines()]


def unknown_names(page: Page) -> list[str]:
    """Names in backticks that look like ours and are nowhere. In a table of old and new names, the first column is the old."""
    names = [code for code in page.codes if page.path.name != "renamed.md" or (code.column or 0) > 0]
    found = [(code.line, code.text, fault) for code in names if (fault := _name_fault(code.text, page))]
    extras = [(n, extra) for n, line in enumerate(page.lines, 1) for extra in _unknown_extras(line)]
    return [f"{page.name}:{line}: `{text}`: {fault}" for line, text, fault in found] + [
        f"{page.name}:{line}: no extra is called {extra!r}" for line, extra in extras
    ]


def _name_fault(text: str, page: Page) -> str | None:
    bare = re.sub(r"\(.*\)$", "", text.strip())
    if text.startswith(("mmada-lite ", "python -m mmada_lite", "--")):
        unknown = [option for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text) if option not in _options()]
        verb = re.match(r"mmada-lite ([a-z]\w*)", text)
        if verb and verb[1] not in build_parser(())[1]:
            return f"no verb is called {verb[1]}"
        return f"there is no option {unknown[0]}" if unknown else None
    if bare in _names():
        return None
    if f'Route("{bare}"' in _sources():  # a path of the server's
        return None
    if re.fullmatch(r"mmada_lite(\.\w+)+", bare):
        return None if _resolves(bare) else "there is no such module or name"
    if re.fullmatch(r"\.{0,2}[\w.*-]*(/[\w.*-]+)+/?", bare):
        return _path_fault(bare, page)
    if re.fullmatch(r"[\w-]+\.(py|js|hpp|cpp|cmake)", bare):
        return None if bare in OTHERS else "there is no such file"
    unquoted = re.sub(r"\"[^\"]*\"|'[^']*'", "", text)
    spelled = [name for part in re.split(r"[.\s:,]+", unquoted) for name in re.findall("|".join(_SPELLED), part)]
    missing = [name for name in spelled if not {name, re.sub("_[iln]$", "", name), re.sub("(?<=_)[iln]$", "", name)} & _known()]
    return f"{missing[0]} is nowhere in the sources" if missing and not re.search(r"[{}<>$/]", unquoted) else None


def _resolves(name: str) -> bool:
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: object = import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            fields = getattr(found, "__dataclass_fields__", {})
            if not hasattr(found, part) and part not in fields:
                return False
            found = getattr(found, part, None)
        return True
    return False


def _path_fault(text: str, page: Page) -> str | None:
    """A path below the root, the package or the page's folder; others are ours only where they end as our sources do."""
    places = (ROOT, ROOT / "mmada_lite", page.path.parent)
    if any(list(place.glob(text.strip("/"))) if "*" in text else (place / text).exists() for place in places):
        return None
    ours = (ROOT / text.split("/")[0]).exists() or re.search(r"\.(py|js|hpp|cpp|md)$", text)
    made = re.search(r"node_modules|^\.(venv|cache)\b|^build|^dist", text)
    return "there is no such path" if ours and not made else None


@cache
def _extras() -> set[str]:
    from configparser import ConfigParser

    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    return set(config["options.extras_require"])


def _unknown_extras(line: str) -> list[str]:
    named = [extra for names in re.findall(r"(?:mmada-lite|\"\.)\[([a-z, -]+)\]", line) for extra in names.split(",")]
    return [extra.strip() for extra in named if extra.strip() not in _extras()]
