"""Commands and programs in the blocks of a page: taken from their lines, read by the program's own parser, or run.

A page is run in a copy of the checkout, its blocks one after the other, so that a later one finds what an earlier one wrote.
`photo.jpg` and `mask.png` stand for the reader's own files. Outside README and quickstart, Python blocks find a loaded `model`.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from unittest import mock

from pages import ROOT, Block, Page
from PIL import Image, ImageDraw

from mmada_lite.arguments import Parser
from mmada_lite.cli.main import _HANDED_ON, VERBS, build_parser, main
from mmada_lite.errors import Error

SHELL = ("", "sh", "bash", "shell", "console")
LONGEST = 150  # seconds for a block of commands, or for all the Python of a page
_MODULE = re.compile(r"mmada_lite(\.[a-z_0-9.]+)?$")
_FAR = re.compile(r"\.ci/run|\bpytest\b|\bpip3? install|\bapt-get\b|\bgit clone|\bnpm\b|\bhttp\.server\b")
_IGNORED = (".git", ".venv", ".cache", ".*_cache", "node_modules", "runs", "build", "dist", "__pycache__", "*.egg-info")


def commands(block: Block) -> Iterator[tuple[int, list[str]]]:
    """The calls of our program in a block: (line, its words from `mmada-lite` or `python -m mmada_lite...` on)."""
    if block.language not in SHELL:
        return
    begun, begins = "", 0
    for number, line in enumerate(block.text.splitlines(), block.line):
        begins, begun = (begins, f"{begun} {line}") if begun else (number, line)
        if begun.endswith("\\"):
            begun = begun[:-1]
            continue
        try:
            words = _words(begun)
        except ValueError:  # a quote that goes on
            continue
        begun = ""
        yield from ((begins, call) for call in _calls(words))


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, "#"
    return list(lexer)


def _calls(words: list[str]) -> Iterator[list[str]]:
    call: list[str] = []
    skipped = False
    for word in [*words, ";"]:
        if word and set(word) <= set("();|&"):
            if ours := _ours(call):
                yield ours
            call = []
        elif word and set(word) <= set("<>&"):
            call, skipped = call[:-1] if call and call[-1] in ("1", "2") else call, True
        elif not skipped:
            call.append(word)
        else:
            skipped = False


def _ours(call: list[str]) -> list[str]:
    """The words from our program's name on; [] where another program is called."""
    while call and (re.match(r"\w+=", call[0]) or call[0] in ("time", "exec", "!", "$")):
        call = call[1:]
    name = call[0].rpartition("/")[2] if call else ""
    if name == "mmada-lite":
        return ["mmada-lite", *call[1:]]
    if re.fullmatch(r"python[\d.]*", name) and call[1:2] == ["-m"] and _MODULE.match((call[2:3] or [""])[0]):
        return call[2:]
    return []


class _Parsed(Exception):
    """The arguments were right; nothing beyond is to be done."""


def parser_fault(words: list[str]) -> str | None:
    """What the program's own parser says against a command, None where it takes it."""
    program, *rest = words
    if rest and rest[0].isupper():  # VERB stands for any
        return None
    rest = [word for word in rest if word not in ("...", "…")]
    error = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
            if program not in ("mmada-lite", "mmada_lite"):
                _parse(import_module(program if program != "mmada_lite.train" else "mmada_lite.train.__main__").main, rest)
            elif rest[:1] and rest[0] in _HANDED_ON:
                _parse(main, rest)
            else:
                if rest[:1] and not rest[0].startswith("-") and rest[0] not in VERBS:
                    return f"no verb is called {rest[0]!r}"
                parser, subparsers = build_parser(rest[:1] if rest[0] in VERBS else ())
                arguments, unknown = parser.parse_known_args(rest)
                if unknown:
                    subparsers[arguments.verb].refuse(unknown[0])
    except (Error, AttributeError, ImportError) as fault:
        return str(fault)
    except SystemExit:
        return None  # --help, --version
    return error.getvalue().strip() or None


def _parse(run, words: list[str]) -> None:  # type: ignore[no-untyped-def]
    """Run a program up to the end of its parsing."""
    real = Parser.parse_args

    def stop(self: Parser, *given: object) -> None:
        real(self, *given)  # type: ignore[arg-type]
        raise _Parsed

    with mock.patch.object(Parser, "parse_args", stop), contextlib.suppress(_Parsed):
        run(words)


def parse_faults(page: Page) -> list[str]:
    """Every command of a page that the program would refuse."""
    found = [(line, words, parser_fault(words)) for block in page.blocks for line, words in commands(block)]
    return [f"{page.name}:{line}: {shlex.join(words)}: {fault}" for line, words, fault in found if fault]


def clone(folder: Path) -> Path:
    """A copy of the checkout with `mmada-lite` in .venv/bin, and a photo and a mask of the reader's own."""
    shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(*_IGNORED))
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, words in {"mmada-lite": "-m mmada_lite", "python": "", "python3": ""}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words} "$@"\n')
        (programs / name).chmod(0o755)
    photo = Image.new("RGB", (96, 72), "white")
    ImageDraw.Draw(photo).ellipse((24, 12, 72, 60), fill="red")
    photo.save(folder / "photo.jpg")
    mask = Image.new("L", photo.size)
    mask.paste(255, (48, 0, 96, 72))
    mask.save(folder / "mask.png")
    return folder


def _run(words: list[str], folder: Path) -> tuple[int, str]:
    """Exit code, and what was written to standard error. What takes too long ends with all that it started."""
    environment = {**os.environ, "PATH": f"{folder}/.venv/bin:{os.environ['PATH']}", "PYTHONPATH": f"{folder}:{ROOT}"}
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(words, cwd=folder, env=environment, start_new_session=True, **quiet)  # type: ignore[call-overload]
    try:
        error = process.communicate(timeout=LONGEST)[1].decode(errors="replace").strip()
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        error = process.communicate()[1].decode(errors="replace").strip()
        return 1, f"{error}\nit runs for more than {LONGEST} s; mark the block <!-- needs: ... -->".strip()
    return process.returncode, error


def run_commands(page: Page, folder: Path) -> list[str]:
    """Run the unmarked blocks of commands, each in a shell that ends at the first failure; say which line that is."""
    faults = []
    for block in page.blocks:
        if block.language in SHELL and block.needs is None:
            if far := _FAR.search(block.text):
                faults.append(f"{page.name}:{block.line}: {far[0]} is not run by a test; mark the block <!-- needs: ... -->")
                continue
            script = f"trap 'echo line $LINENO >&2' ERR\nset -Eeo pipefail\n{block.text}"
            code, error = _run(["bash", "-c", script], folder)
            if code:
                inside = re.findall(r"line (\d+)", error)
                line = block.line + (int(inside[-1]) - 3 if inside else 0)
                faults.append(f"{page.name}:{line}: exit code {code}: {error}")
    return faults


def run_python(page: Page, folder: Path) -> list[str]:
    """Run the unmarked Python blocks of a page as one program, whose lines have the page's numbers; marked ones compile."""
    lines = [""] * len(page.lines)
    for block in page.blocks:
        if block.language == "python" and block.needs is None:
            text = block.text.splitlines()
            lines[block.line - 1 : block.line - 1 + len(text)] = text
        elif block.language == "python":
            try:
                compile(block.text, page.name, "exec")
            except SyntaxError as error:
                return [f"{page.name}:{block.line - 1 + (error.lineno or 1)}: {error.msg}"]
    if not any(lines):
        return []
    loaded = "" if page.name in ("README.md", "docs/quickstart.md") else "import mmada_lite; model = mmada_lite.load(); "
    (folder / "page.txt").write_text("\n".join(lines), encoding="utf-8")
    runner = f"{loaded}exec(compile(open('page.txt', encoding='utf-8').read(), {page.name!r}, 'exec'))"
    code, error = _run([sys.executable, "-c", runner], folder)
    places = re.findall(rf'"{re.escape(page.name)}", line (\d+)', error)
    return [f"{page.name}:{places[-1] if places else 1}: {error.splitlines()[-1] if error else code}"] if code else []


def newcomer(page: Page, address: str) -> str:
    """A script of what a README tells a newcomer: its block with `git clone`, less the run of the tests, and the next block."""
    blocks = [block.text for block in page.blocks if block.language in SHELL]
    first = next(number for number, text in enumerate(blocks) if "git clone" in text)
    setup = [line for line in blocks[first].splitlines() if line.strip() != ".ci/run"]
    own = "python -c \"from PIL import Image as i; [i.new('L', (64, 64), 255).save(f) for f in ('photo.jpg', 'mask.png')]\""
    script = "\n".join([*setup, ". .venv/bin/activate", own, blocks[first + 1]])
    return re.sub(r"\b(ADDRESS|REPOSITORY)\b", address, script)


if __name__ == "__main__":
    print(newcomer(Page(ROOT / "README.md"), sys.argv[1]))
