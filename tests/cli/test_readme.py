"""What the README shows must work: commands parse, links lead somewhere, the Python runs on the small model."""

import re
import shlex
from pathlib import Path

import pytest

from mmada_lite.cli.main import VERBS, build_parser, main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = "".join(re.findall(r"^```\w*\n(.*?)^```", README, re.DOTALL | re.MULTILINE))
OWN = ("train", "bench")  # verbs with verbs and options of their own
DOCUMENTS = README + "".join((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("training", "benchmarks"))
_FOUND = re.findall(r"mmada[-_]lite[. ](train|bench) ([a-z_]+)((?: [^`|&#\n]+)?)", DOCUMENTS)
WORKSHOP = sorted({(verb, name, rest.strip()) for verb, name, rest in _FOUND})
COMMANDS = sorted(set(re.findall(r"mmada-lite ((?:" + "|".join(VERBS) + r")\b[^|&#\n]*)", BLOCKS)))


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith(OWN)])
def test_every_command_parses(command: str) -> None:
    parser, _ = build_parser()
    _, unknown = parser.parse_known_args(shlex.split(command))
    assert unknown == []


@pytest.mark.parametrize(("verb", "name", "rest"), WORKSHOP)
def test_trainings_and_benchmarks_are_what_the_documents_say(
    verb: str, name: str, rest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The name is known, and every option that is shown stands in its help."""
    pytest.importorskip("torch", reason="trainings and benchmarks need torch")
    with pytest.raises(SystemExit) as ended:
        main([verb, name, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert verb == "bench" or name in shown
    assert all(option in shown for option in rest.split() if option.startswith("-"))


def test_there_are_commands_for_most_verbs() -> None:
    assert {command.split()[0] for command in COMMANDS} >= set(VERBS) - {*OWN, "check"}


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((\w[^)#]*)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert (tmp_path / "wide.png").is_file()
    assert capsys.readouterr().out.startswith("step 1: ")
