"""Help leads on: every verb, fault and report names its page of the manual; a shell completes what there is."""

import subprocess
from pathlib import Path

import pytest

from mmada_lite.cli import PAGES
from mmada_lite.cli.main import VERBS, main

ROOT = Path(__file__).parents[2]


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command prints on standard output, which ends well, with its line breaks taken out."""
    code: object
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code
    assert code == 0
    return " ".join(capsys.readouterr().out.split())


def test_every_verb_has_a_page_that_is_there() -> None:
    assert set(PAGES) == set(VERBS)
    for page in set(PAGES.values()):
        assert (ROOT / page).is_file(), page


@pytest.mark.parametrize("verb", VERBS)
def test_help_ends_with_the_page(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    if verb == "train":
        pytest.importorskip("torch", reason="training needs torch")
    said = shown(capsys, verb, "--help").rstrip(".")
    assert said.endswith(f"Manual: {PAGES[verb]}")
    assert said.count("Manual:") == 1


@pytest.mark.parametrize("verb", ["info", "plan", "doctor"])
def test_a_report_ends_with_the_page(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, verb).endswith(PAGES[verb])


@pytest.mark.parametrize(
    ("words", "end"),
    [
        (["paint", " "], "say what is to be drawn (see docs/cli.md)\n"),
        (["info", "nowhere"], " (see docs/bundle.md)\n"),
        (["plan", "--memory", "much"], " (see docs/devices.md)\n"),
        (["paint", "x", "--stpes", "3"], "did you mean --steps? (see docs/cli.md)\n"),
        (["paint", "x", "--zzz"], "see mmada-lite paint --help\n"),  # which names the page
    ],
)
def test_a_fault_leads_to_its_page_once(words: list[str], end: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.endswith(end), error
    assert (error.count("\n"), error.count("docs/") <= 1) == (1, True)


def test_a_shell_completes_verbs_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab", reason='completion needs pip install "mmada-lite[completion]"')
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "cat.png").touch()

    def completed(*words: str) -> list[str]:
        given = " ".join(f"'{word}'" for word in words)
        script = (
            f"source ./script; COMP_WORDS=({given}); COMP_CWORD={len(words) - 1}; _shtab_mmada_lite; echo ${{COMPREPLY[@]}}"
        )
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
        return done.stdout.split()

    assert completed("mmada-lite", "pa") == ["paint"]
    assert completed("mmada-lite", "paint", "a cat", "--answer") == []
    assert completed("mmada-lite", "paint", "a cat", "--spe") == ["--speed"]
    assert completed("mmada-lite", "export", "x", "--target", "te") == ["tensorrt"]
    assert completed("mmada-lite", "ask", "ca") == ["cat.png"]


def test_without_its_extra_completion_names_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "shtab", None)
    assert main(["completion", "zsh"]) == 2
    assert 'pip install "mmada-lite[completion]"' in capsys.readouterr().err
