"""The words of the manual hold: links lead somewhere, commands and programs run, names exist, lines are short, no diary."""

import json
import re
from pathlib import Path

import pytest
from checks import MOST_WORDS, broken_links, diary, long_lines, misspelled, unknown_names, word_count
from commands import clone, parse_faults, run_commands, run_python
from pages import ROOT, Page, manual

import mmada_lite
from mmada_lite.decoding.settings import ImageSettings, TextSettings, from_plain

PAGES = manual()
NAMES = [page.name for page in PAGES]
LABORATORY = "docs/lab/"  # dated: its names and words are those of their day
HOLDS = [page for page in PAGES if not page.name.startswith(LABORATORY)]
RUN = [page for page in PAGES if page.name in ("README.md", "docs/quickstart.md", "docs/cli.md")]
ELSEWHERE = ("docs/serve.md", "docs/clients.md", "docs/deploy.md")  # tests/serve runs what it shows, against a server
PYTHON = [page for page in HOLDS if page.name not in ELSEWHERE and any(block.language == "python" for block in page.blocks)]


def _named(page: Page) -> str:
    return page.name


def none(faults: list[str]) -> None:
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)


@pytest.mark.parametrize("page", PAGES, ids=_named)
def test_links_and_pictures(page: Page) -> None:
    none(broken_links(page, PAGES))


@pytest.mark.parametrize("page", HOLDS, ids=_named)
def test_lines_are_short(page: Page) -> None:
    none(long_lines(page))


@pytest.mark.parametrize("page", HOLDS, ids=_named)
def test_it_is_a_manual_and_no_diary(page: Page) -> None:
    none(diary(page))


@pytest.mark.parametrize("page", [page for page in HOLDS if page.name != "CHANGELOG.md"], ids=_named)
def test_names_exist(page: Page) -> None:
    none(unknown_names(page))


def test_spelling() -> None:
    none(misspelled(PAGES))


def test_the_manual_is_short() -> None:
    counted = [page for page in HOLDS if page.name == "README.md" or page.path.parent == ROOT / "docs"]
    assert word_count(counted) <= MOST_WORDS, {page.name: word_count([page]) for page in counted}


@pytest.mark.parametrize("page", HOLDS, ids=_named)
def test_commands_parse(page: Page) -> None:
    pytest.importorskip("torch", reason="trainings and benchmarks need torch")
    none(parse_faults(page))


@pytest.mark.manual
@pytest.mark.parametrize("page", RUN, ids=_named)
def test_commands_run(page: Page, tmp_path: Path) -> None:
    none(run_commands(page, clone(tmp_path / "clone")))


@pytest.mark.manual
@pytest.mark.parametrize("page", PYTHON, ids=_named)
def test_python_runs(page: Page, tmp_path: Path) -> None:
    none(run_python(page, clone(tmp_path / "clone")))


def test_sources_name_pages_that_exist() -> None:
    """A page that --help, an error or a comment names is there."""
    files = [ROOT / ".ci" / "run", *(path for top in ("mmada_lite", "export", "quant", "train", "bench", "examples")
             for path in (ROOT / top).rglob("*") if path.suffix in (".py", ".js", ".cpp", ".hpp"))]  # fmt: skip
    for path in files:
        if "node_modules" in path.parts:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for page in re.findall(r"docs/[\w/-]+\.md", line):
                assert (ROOT / page).is_file(), f"{path.relative_to(ROOT)}:{number}: there is no {page}"


def test_defaults_that_a_page_writes_are_settings() -> None:
    (page,) = (page for page in HOLDS if page.name == "docs/checkpoint.md")
    (written,) = (block for block in page.blocks if block.language == "json")
    defaults = json.loads(written.text)["defaults"]
    assert from_plain(TextSettings, defaults["text"]) != TextSettings()
    assert from_plain(ImageSettings, defaults["image"]) != ImageSettings()


def test_one_version() -> None:
    version = mmada_lite.__version__
    written = {
        "mmada_lite/cpp/CMakeLists.txt": r"project\(mmada_lite VERSION ([\d.]+)",
        "CITATION.cff": r"^version: \"?([\d.]+)",
        "CHANGELOG.md": r"^## \[?v?([\d.]+)",
    }
    for name, pattern in written.items():
        (first, *_) = re.findall(pattern, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
        assert first == version, name
