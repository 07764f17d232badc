"""Planted faults: each check of the manual finds what is wrong, says in which file and line, and lets the right go by."""

from collections.abc import Callable
from pathlib import Path

import pytest
from checks import broken_links, diary, long_lines, misspelled, unknown_names, word_count
from commands import commands, newcomer, parse_faults, run_commands, run_python
from pages import Page, manual


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Page]:
    """A page of this text, two lines below its heading, with a picture and another page beside it."""
    (tmp_path / "there.png").write_bytes(b"")
    (tmp_path / "other.md").write_text("# Other page\n\n## What's new, here?\n\n## What's new, here?\n")

    def write(text: str, name: str = "page.md") -> Page:
        (tmp_path / name).write_text(f"# A page\n\n{text}\n")
        return Page(tmp_path / name, tmp_path)

    return write


def fenced(text: str, language: str = "", mark: str = "") -> str:
    return f"{mark}```{language}\n{text}\n```"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("see\n[this](gone.md)", "page.md:4: gone.md: there is no such file"),
        ("![a cat](gone.png)", "page.md:3: gone.png: there is no such picture"),
        ("![](there.png)", "page.md:3: the picture there.png has no words for those who do not see it"),
        ('<img src="gone.png" alt="a cat">', "page.md:3: gone.png: there is no such picture"),
        ("[this](other.md#nowhere)", "page.md:3: other.md#nowhere: other.md has no heading #nowhere"),
        ("[this](#nowhere)", "page.md:3: #nowhere: page.md has no heading #nowhere"),
        ("[out](../../etc)", "page.md:3: ../../etc: there is no such file"),
        ("[far](http://example.org)", "page.md:3: http://example.org is not https"),
        ("| a |\n|---|\n| [x](gone.md) |", "page.md:5: gone.md: there is no such file"),
    ],
)
def test_a_broken_link_or_picture(written: Callable[..., Page], text: str, fault: str) -> None:
    page = written(text)
    assert broken_links(page, manual(page.root)) == [fault]


def test_right_links(written: Callable[..., Page]) -> None:
    page = written(
        "[a](other.md) [b](other.md#whats-new-here-1) [c](#a-page) [d](https://example.org)\n![a cat](there.png)\n\n"
        + fenced("[no](link.md)")
    )
    assert broken_links(page, manual(page.root)) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("mmada-lite paint x --stpes 3", "paint has no option --stpes; did you mean --steps?"),
        ("mmada-lite draw x", "no verb is called 'draw'"),
        ("ls && .venv/bin/mmada-lite info | mmada-lite ask - --steps 8", "the following arguments are required: QUESTION"),
        ("mmada-lite paint x \\\n  --seed seven  # a comment", "--seed: 'seven' is not a whole number"),
        ("mmada-lite train fly", "invalid choice: 'fly'"),
        ("mmada-lite train gallery --colour red", "has no option --colour"),
        ("mmada-lite bench fly", "no benchmark is called 'fly'"),
        ("THREADS=1 python -m mmada_lite.bench.walkthrough_8b --work w --nowhere > x.json", "has no option --nowhere"),
        ("python3 -m mmada_lite.nothing", "No module named 'mmada_lite.nothing'"),
    ],
)
def test_a_broken_command(written: Callable[..., Page], text: str, fault: str) -> None:
    pytest.importorskip("torch", reason="trainings and benchmarks need torch")
    for language, mark, line in (("", "", 5), ("sh", "<!-- needs: a network -->\n", 6)):
        (found,) = parse_faults(written(fenced(f"# before\n{text}", language, mark)))
        assert found.startswith(f"page.md:{line}: m")
        assert fault in found


def test_right_commands(written: Callable[..., Page]) -> None:
    text = (
        'mmada-lite paint "a red; apple" -o - 2>/dev/null | mmada-lite ask - "what & why?"\nmmada-lite VERB --help\n'
        "echo mmada-lite nothing\nx=$(mmada-lite info --json)\nmmada-lite export --help; mmada-lite --version\n"
        "mmada-lite train export --folder runs/x && mmada-lite bench latency --rounds 2\npip install mmada-lite"
    )
    page = written(fenced(text, "bash") + "\n\n" + fenced("mmada-lite nothing", "text"))
    assert parse_faults(page) == []
    assert [words[1] for block in page.blocks for _, words in commands(block)] == [
        *("paint", "ask", "VERB", "info", "export", "--version", "train", "bench")
    ]


def test_a_command_that_fails(written: Callable[..., Page], tmp_path: Path) -> None:
    page = written(
        fenced("echo 1 > made")
        + "\n\n"
        + fenced("test -f made\ntest -f gone | cat\necho not here", "sh")
        + "\n\n<!-- needs: a GPU -->\n"
        + fenced("false")
    )
    (fault,) = run_commands(page, tmp_path)
    assert fault.startswith("page.md:9: exit code 1: ")
    assert (tmp_path / "made").read_text() == "1\n"
    (fault,) = run_commands(written(fenced("cd x\nsh .ci/run")), tmp_path)
    assert fault == "page.md:4: .ci/run is not run by a test; mark the block <!-- needs: ... -->"


def test_a_command_that_does_not_end(written: Callable[..., Page], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commands.LONGEST", 0.5)
    (fault,) = run_commands(written(fenced("sleep 60 | cat")), tmp_path)
    assert fault.startswith("page.md:4: exit code 1: it runs for more than 0.5 s; mark the block")


def test_a_program_that_fails(written: Callable[..., Page], tmp_path: Path) -> None:
    first = fenced("import mmada_lite\nx = 1", "python")
    right, wrong = fenced("assert x == 1", "python"), fenced("y = x\ny.z", "python")
    marked = fenced("open('gone')", "python", "<!-- needs: a GPU -->\n")
    name = "README.md"
    assert run_python(written(f"{first}\n\n{right}\n\n{marked}", name), tmp_path) == []
    faults = run_python(written(f"{first}\n\n{wrong}", name), tmp_path)
    assert faults == ["README.md:10: AttributeError: 'int' object has no attribute 'z'"]
    broken = fenced("x = 1\nx = = 2", "python", "<!-- needs: a GPU -->\n")
    assert run_python(written(broken, name), tmp_path) == ["README.md:6: invalid syntax"]


@pytest.mark.parametrize(
    "name",
    [
        *("mmada_lite.loud()", "mmada_lite.decoding.nothing", "mmada_lite.TextSettings.nothing", "mmada_lite/nothing.py"),
        *("docs/nothing.md", "--no-such-option", "mmada-lite draw", "mmada-lite paint --no-such-option", "no_such_setting"),
        *("NoSuchSettings", "model.no_such_name(1)", "nothing.cpp", "tests/no*where", "replace(cash_at=1)"),
    ],
)
def test_a_name_that_is_nowhere(written: Callable[..., Page], name: str) -> None:
    (fault,) = unknown_names(written(f"Here is\nthe name `{name}`."))
    assert fault.startswith(f"page.md:4: `{name}`: ")


def test_an_extra_that_is_nowhere(written: Callable[..., Page]) -> None:
    page = written(fenced('pip install "mmada-lite[cpu,nothing]"\npip install ".[dev]"'))
    assert unknown_names(page) == ["page.md:4: no extra is called 'nothing'"]


def test_names_that_are_somewhere_or_not_ours(written: Callable[..., Page]) -> None:
    names = ["mmada_lite.load()", "mmada_lite.TextSettings.steps", "export/bundle.py", "mmada_lite/cpp/", "--answer-length 8"]
    names += ["answer_length", 'cache="dual"', "TextSettings", "philox.js", "tests/docs/test_*.py", "runs/mine", "16 x 16"]
    names += ["image/png", "bundle.json", "mmada-lite plan -m 8b --memory 8GB", "model.text_defaults.replace(steps=24)"]
    assert unknown_names(written(" ".join(f"`{name}`" for name in names))) == []


def test_old_names_stand_in_the_first_column(written: Callable[..., Page]) -> None:
    page = written("| was | is |\n|---|---|\n| `no_such_name` | `steps` |\n| `old` | `no_such_name` |", "renamed.md")
    assert unknown_names(page) == ["renamed.md:6: `no_such_name`: no_such_name is nowhere in the sources"]


def test_a_long_line(written: Callable[..., Page]) -> None:
    long = "word " * 30
    alone = f"![{long}](there.png)"
    page = written(f"{long}\n\n{fenced(long)}\n\n| {long} |\n|---|\n\n{alone}\n\n- {long}")
    assert [fault.split(": ")[0] for fault in long_lines(page)] == ["page.md:3", "page.md:14"]


def test_words_of_a_diary(written: Callable[..., Page]) -> None:
    page = written("It asked\nfor it; we were told so, `told` and all.\nIt is a trial of nerves.\nUntold, a triangle.")
    assert [fault.split(" is ")[0] for fault in diary(page)] == ["page.md:4: 'told'", "page.md:5: 'a trial'"]


def test_a_misspelled_word(written: Callable[..., Page]) -> None:
    assert misspelled([written("Right.\nIt is teh end.")]) == ["page.md:4: teh ==> the"]
    assert misspelled([written("The colour of a licence.")]) == []


def test_a_word_holds_a_letter_or_a_digit(written: Callable[..., Page]) -> None:
    assert word_count([written("one two\n`three`  - 4\n\n| five=5 |\n| --- |\n\n<!-- end -->")]) == 8


def test_what_a_newcomer_types(written: Callable[..., Page]) -> None:
    page = written(
        fenced("git clone --depth 1 ADDRESS x && cd x\n.ci/run") + "\n\n" + fenced("mmada-lite paint x") + "\n\n" + fenced("ls")
    )
    lines = newcomer(page, "file:///here").splitlines()
    assert lines[:2] == ["git clone --depth 1 file:///here x && cd x", ". .venv/bin/activate"]
    assert lines[3:] == ["mmada-lite paint x"]
