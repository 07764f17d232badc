"""Every setting is declared once: its help, range and default are the same in --help, in the documents and in the code."""

from pathlib import Path

import pytest

from mmada_lite import Error, ImageAcceleration, ImageSettings, TextAcceleration, TextSettings
from mmada_lite.cli.main import build_parser, main
from mmada_lite.cli.model_options import image_settings, text_settings
from mmada_lite.cli.options import about
from mmada_lite.decoding.format_1 import RENAMED
from mmada_lite.decoding.setting_fields import Setting, renamed_option, settings_of, spelled
from mmada_lite.decoding.settings import plain
from mmada_lite.export.bundle_schema import bundle_schema, setting_schema

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (*settings_of(TextSettings), *settings_of(TextAcceleration))
IMAGE = (*settings_of(ImageSettings), *settings_of(ImageAcceleration))
VERBS = (("chat", TEXT), ("ask", TEXT), ("paint", IMAGE), ("inpaint", IMAGE), ("extend", IMAGE))


def shown(verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize(("verb", "settings"), VERBS)
def test_help_says_what_the_code_declares(
    verb: str, settings: tuple[Setting, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = " ".join(shown(verb, capsys, monkeypatch).split())
    for each in settings:
        option = f"{spelled(each.name)} {each.unit}".rstrip()
        assert f"{option}{', --no-thought-first' if each.kind == 'flag' else ''} {about(each)}" in said
        assert (each.help in about(each), each.range in about(each)) == (True, True)
        assert f"default: {each.default_in_words})" in about(each)


UNITS = {
    "whole": ("N",),
    "number": ("T", "G", "NATS", "SHARE", "X"),
    "probability": ("P",),
    "choice": ("NAME", "POLICY", "RULE"),
    "word": ("LAW",),
    "flag": ("",),
}


def test_help_names_values_of_a_kind_alike() -> None:
    for each in (*TEXT, *IMAGE):
        assert each.unit in UNITS[each.kind], each.name


def test_every_setting_stands_in_the_appendix() -> None:
    page = (DOCS / "speed.md").read_text(encoding="utf-8")
    for each in (*TEXT, *IMAGE):
        line = f"| `{each.name}` | {each.default_in_words} | {each.range.replace('<', '&lt;')} | {each.help} | {each.source} |"
        assert f"\n{line}\n" in page


def test_the_schema_says_what_the_code_declares() -> None:
    """docs/bundle.schema.json is what bundle_schema makes; tests/test_made.py compares the two."""
    defaults = bundle_schema()["properties"]["defaults"]["properties"]
    for kind, settings in (("text", TEXT), ("image", IMAGE)):
        said = defaults[kind]["properties"] | defaults[kind]["properties"]["acceleration"]["properties"]
        for each in settings:
            assert said[each.name] == setting_schema(each)
            assert (each.help in said[each.name]["description"], said[each.name]["default"]) == (True, each.default)
            if each.kind in ("whole", "number", "probability"):
                numbers = said[each.name].get("anyOf", [{}, said[each.name]])[1]
                assert (numbers["minimum"], numbers["maximum"]) == (each.smallest or each.least, each.most)


def test_renamed_settings_are_listed() -> None:
    lines = (DOCS / "renamed.md").read_text(encoding="utf-8").splitlines()
    for old, new in RENAMED.items():
        assert any(line.startswith(f"| `{old}`") and f"`{new}`" in line for line in lines), old


def test_the_few_settings_come_first_and_fit_a_screen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, advanced = shown("chat", capsys, monkeypatch).split("\nadvanced:\n")
    assert len(first.splitlines()) <= 40
    assert all(f"  {spelled(each.name)} " in first for each in settings_of(TextSettings))
    assert all(f"  {spelled(each.name)}" in advanced for each in settings_of(TextAcceleration))


def test_every_setting_can_be_said_and_taken_back() -> None:
    """A value of each kind reaches the settings; none and --no- undo what a bundle or a speed chose."""
    parser = build_parser()[0]
    base = TextSettings().replace(cache="dual", early_stop=1.0, refresh=2, suffix_window=8, thought_first=True)
    words = "chat x --early-stop none --refresh none --suffix-window none --no-thought-first --cache none --order random"
    assert text_settings(base, parser.parse_args(words.split())) == TextSettings(order="random")
    words = "paint x --candidate-ratio none --mode reference --sampling-temperature 0 --schedule pow2"
    chosen = image_settings(ImageSettings().replace(candidate_ratio=2.0), parser.parse_args(words.split()))
    assert chosen == ImageSettings(mode="reference", sampling_temperature=0.0, schedule="pow2")
    assert text_settings(base, parser.parse_args(["chat", "x"])) == base


@pytest.mark.parametrize(("verb", "settings"), VERBS)
def test_an_old_option_is_refused_with_the_new_one(
    verb: str, settings: tuple[Setting, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"chat": ["x"], "ask": ["x.png", "y"], "paint": ["x"], "inpaint": ["x.png", "y.png", "z"], "extend": ["x.png", "y"]}
    for old, new in RENAMED.items():
        if new not in [each.name for each in settings]:
            continue
        for words in ([spelled(old), "2"], [f"{spelled(old)}=2"]):
            assert main([verb, *given[verb], *words]) == 2
            line = f"mmada-lite: {verb} has no option {spelled(old)}; it is called {spelled(new)} now (see docs/renamed.md)\n"
            assert capsys.readouterr().err == line
    assert renamed_option("--steps") is None


def test_bad_values_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words, line in {
        "--threshold 2": "threshold 2.0 is not a probability",
        "--cache all": "cache is 'all'; use one of none, prefix, dual, prompt",
        "--mode sensible": "mode is 'sensible'; use one of default, reference",
        "--lookahead none": "'none' is not a whole number",
    }.items():
        assert main(["chat", "x", "--device", "cpu", *words.split()]) == 2
        error = capsys.readouterr().err
        assert (line in error, error.count("\n")) == (True, 1)


def test_settings_say_themselves_in_both_formats() -> None:
    """What --json prints is flat; a bundle keeps the layers."""
    settings = TextSettings().replace(cache="dual", kv_commit_every=2)
    assert (settings.flat()["kv_commit_every"], plain(settings)["acceleration"]["kv_commit_every"]) == (2, 2)
    with pytest.raises(Error, match="'settle' is called 'kv_commit_every' now"):
        settings.replace(settle=2)
