"""A page of the manual taken apart: fenced blocks, names in backticks, links and pictures, anchors, lines of prose, each with
the line that it stands on. It judges nothing.

`<!-- needs: REASON -->` before a block says that no test can run it: it needs weights, a GPU, a network, a terminal, or is
the command that runs the tests.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
_PARSER = MarkdownIt("commonmark").enable("table")
_NEEDS = re.compile(r"<!--\s*needs:\s*(.+?)\s*-->", re.DOTALL)
_PICTURE = re.compile(r"<img\b[^>]*>")
_ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block; `line` is that of its first line of text."""

    line: int
    language: str
    text: str
    needs: str | None


@dataclass(frozen=True, slots=True)
class Code:
    """Words in backticks; `column` of a table, counted from 0, or None."""

    line: int
    text: str
    column: int | None


@dataclass(frozen=True, slots=True)
class Link:
    """A link, or with `alt` a picture."""

    line: int
    target: str
    alt: str | None


@dataclass
class Page:
    """One Markdown file; `name` is its path from the root."""

    path: Path
    root: Path = ROOT
    blocks: list[Block] = field(default_factory=list)
    codes: list[Code] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.name = self.path.relative_to(self.root).as_posix()
        self.text = self.path.read_text(encoding="utf-8")
        self.lines = self.text.splitlines()
        self._beside: set[int] = set()  # lines that are no prose: blocks, comments, tables
        needs, column, heading = None, None, False
        for token in _PARSER.parse(self.text):
            if token.type in ("fence", "code_block", "html_block", "table_open"):
                self._beside.update(range(*self._span(token)))
            if token.type in ("fence", "code_block"):
                first = self._span(token)[0] + 1 + (token.type == "fence")
                self.blocks.append(Block(first, token.info.split(" ")[0].strip(), token.content, needs))
            column = 0 if token.type == "tr_open" else None if token.type == "table_close" else column
            if token.type == "inline":
                self._read_inline(token, column)
                if heading:
                    self._add_anchor(token)
            column = column + 1 if column is not None and token.type in ("td_close", "th_close") else column
            heading = token.type == "heading_open"
            needs = None
            if token.type == "html_block":
                needs = _only(_NEEDS.findall(token.content))
                self._read_html(token)

    def prose(self) -> Iterator[tuple[int, str]]:
        """The lines that a person reads as sentences, with their numbers: no blocks, no tables, no comments."""
        for number, line in enumerate(self.lines):
            if number not in self._beside:
                yield number + 1, line

    @staticmethod
    def _span(token: Token) -> tuple[int, int]:
        assert token.map is not None
        return token.map[0], token.map[1]

    def _line_of(self, token: Token, text: str) -> int:
        first, last = self._span(token)
        return next((n + 1 for n in range(first, last) if text in self.lines[n]), first + 1)

    def _read_inline(self, token: Token, column: int | None) -> None:
        for child in token.children or ():
            if child.type == "code_inline":
                self.codes.append(Code(self._line_of(token, child.content), child.content, column))
            elif child.type == "link_open":
                target = str(child.attrGet("href"))
                self.links.append(Link(self._line_of(token, target), target, None))
            elif child.type == "image":
                target = str(child.attrGet("src"))
                self.links.append(Link(self._line_of(token, target), target, child.content))
            elif child.type == "html_inline":
                self._read_tag(child.content, self._line_of(token, child.content))

    def _read_html(self, token: Token) -> None:
        for number in range(*self._span(token)):
            for tag in re.findall(r"<\w[^>]*>", self.lines[number]):
                self._read_tag(tag, number + 1)

    def _read_tag(self, tag: str, line: int) -> None:
        attributes = dict(_ATTRIBUTE.findall(tag))
        self.anchors |= {attributes[name] for name in ("id", "name") if name in attributes}
        if _PICTURE.match(tag):
            self.links.append(Link(line, attributes.get("src", ""), attributes.get("alt", "")))
        elif "href" in attributes:
            self.links.append(Link(line, attributes["href"], None))

    def _add_anchor(self, token: Token) -> None:
        """The anchor of a heading, as code hosts and the site spell it."""
        words = "".join(child.content for child in token.children or () if child.type in ("text", "code_inline"))
        slug = re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", words.strip().lower()))
        same = (f"{slug}-{number}" for number in range(1, 100))
        self.anchors.add(slug if slug not in self.anchors else next(each for each in same if each not in self.anchors))


def _only(found: list[str]) -> str | None:
    return found[-1] if found else None


def manual(root: Path = ROOT) -> list[Page]:
    """README and the other pages at the root, docs and its laboratory, and the pages of the examples."""
    patterns = ("*.md", "docs/**/*.md", "examples/*/README.md")
    return [Page(path, root) for pattern in patterns for path in sorted(root.glob(pattern))]
