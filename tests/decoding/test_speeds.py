"""Laws of the named speeds and of drafts on the model in the package: a bundle's defaults stay the base, and exact is exact."""

import json
from dataclasses import replace

import pytest

import mmada_lite
from mmada_lite import Error, ImageSettings, Model, TextSettings
from mmada_lite.cli.main import build_parser, main
from mmada_lite.cli.model_options import image_settings, text_settings
from mmada_lite.decoding import settings
from mmada_lite.decoding.settings import PRESETS, changed_settings, with_speed

BASE = TextSettings(answer_length=6, steps=6, block_length=6)


@pytest.fixture(scope="module")
def shipped() -> Model:
    return mmada_lite.load(device="cpu", threads=1)


@pytest.mark.slow
def test_drafts_write_what_the_model_in_the_package_writes_alone(shipped: Model) -> None:
    """100 questions without a cache and 100 with one: the same ids, in fewer forwards."""
    alone = drafted = 0
    for number in range(200):
        question = f"what is {number // 2 % 10} + {number // 20}?"
        chosen = BASE.replace(cache=("none", "dual")[number % 2])
        one = shipped.chat(question, chosen).result()
        other = shipped.chat(question, chosen.replace(speculative_steps=4)).result()
        assert one.ids.tolist() == other.ids.tolist(), question
        alone, drafted = alone + one.model_calls, drafted + other.model_calls
    assert drafted < alone


def test_a_speed_changes_what_it_names_and_nothing_else() -> None:
    text, image = BASE.replace(guidance=0.5), ImageSettings(steps=3)
    assert with_speed("exact", text, image) == (text, image)
    for speed, (text_changes, image_changes) in PRESETS.items():
        fast_text, fast_image = with_speed(speed, text, image)
        share = image_changes.get("steps", 1.0)
        assert fast_text == text.replace(**text_changes)
        assert fast_image == image.replace(**{**image_changes, "steps": max(1, round(share * 3))})
        assert (fast_text.answer_length, fast_text.guidance, share <= 1) == (6, 0.5, True)
    with pytest.raises(Error, match="exact, balanced, fast"):
        with_speed("quick", text, image)


@pytest.mark.parametrize(("own", "steps"), [(16, 4), (15, 4), (10, 2), (2, 1), (1, 1)])
def test_a_speed_draws_in_a_share_of_a_bundles_own_steps(own: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And an option wins over it."""
    monkeypatch.setattr(settings, "PRESETS", {"few": ({}, {"steps": 0.25, "unconditional_every": 2})})
    text, image = with_speed("few", BASE, ImageSettings(steps=own, guidance=2.0))
    assert (text, image) == (BASE, ImageSettings(steps=steps, guidance=2.0).replace(unconditional_every=2))
    given = build_parser()[0].parse_args(["paint", "a cat", "--steps", "12"])
    assert image_settings(image, given) == image.replace(steps=12)


def test_a_share_of_steps_is_for_speeds_alone() -> None:
    with pytest.raises(Error, match="steps"):
        ImageSettings().replace(steps=0.25)


def test_speeds_take_fewer_forwards(shipped: Model) -> None:
    counts = []
    for speed in ("exact", "balanced", "fast"):
        text, _ = with_speed(speed, BASE.replace(answer_length=16, steps=16), shipped.image_defaults)
        counts.append(shipped.chat("what is 2 + 3?", text).result().model_calls)
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < counts[0]


def test_load_takes_a_speed() -> None:
    model = mmada_lite.load(device="cpu", threads=1, speed="fast")
    bundle = model.bundle
    assert (model.text_defaults, model.image_defaults) == with_speed("fast", bundle.text_defaults, bundle.image_defaults)
    with pytest.raises(Error, match="no speed is called 'warp'"):
        mmada_lite.load(speed="warp")


def test_suffix_and_refresh_grow_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "PRESETS", {"fast": ({"cache": "dual", "refresh": 2, "suffix_window": 8}, {})})
    for block, suffix, refresh in ((4, 8, 2), (8, 8, 2), (32, 32, 8)):
        chosen, _ = with_speed("fast", BASE.replace(block_length=block, answer_length=64, steps=64), ImageSettings())
        assert (chosen.acceleration.suffix_window, chosen.acceleration.refresh) == (suffix, refresh)


def test_no_cache_needs_no_renewal() -> None:
    """What a speed would renew is let go with the cache; what was said beside it is not."""
    quick, _ = with_speed("fast", BASE, ImageSettings())
    parser = build_parser()[0]
    assert text_settings(quick, parser.parse_args(["chat", "x", "--cache", "none"])).acceleration.refresh is None
    with pytest.raises(Error, match="renew a cache and there is none"):
        text_settings(quick, parser.parse_args(["chat", "x", "--cache", "none", "--refresh", "3"]))


def test_the_command_line_spells_every_later_setting() -> None:
    options = (
        "--entropy-bound 0.5 --early-stop 0.9 --refresh 4 --refresh-drift 0.2 --suffix-window 0 --thought-first "
        "--select margin --speculative-steps 2"
    )
    arguments = build_parser()[0].parse_args(["chat", "x", "--cache", "dual", *options.split()])
    used = {"cache": "dual", "select": "margin", "speculative_steps": 2, "entropy_bound": 0.5, "early_stop": 0.9, "refresh": 4}
    used |= {"refresh_drift": 0.2, "suffix_window": 0, "thought_first": True}
    assert changed_settings(text_settings(TextSettings(), arguments).acceleration) == used
    arguments = build_parser()[0].parse_args(["ask", "x.png", "y", "--threshold", "0.9", "--lookahead", "8"])
    assert changed_settings(text_settings(TextSettings(), arguments).acceleration) == {"threshold": 0.9, "lookahead": 8}


def test_one_rule_takes_the_place_of_the_other() -> None:
    """Neither a preset's threshold nor a bundle's bound stands in the way of what is said."""
    arguments = build_parser()[0].parse_args(["chat", "x", "--entropy-bound", "0.5"])
    assert text_settings(BASE.replace(threshold=0.9), arguments).acceleration.threshold is None
    arguments = build_parser()[0].parse_args(["chat", "x", "--threshold", "0.5"])
    assert text_settings(BASE.replace(entropy_bound=0.9), arguments).acceleration.entropy_bound is None


def test_a_speed_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "what is 2 + 3?", "--speed", "balanced", "--device", "cpu", "--threads", "1", "--json"]) == 0
    used = json.loads(capsys.readouterr().out.splitlines()[-1])["settings"]
    assert {name: used[name] for name in PRESETS["balanced"][0]} == dict(PRESETS["balanced"][0])
    assert main(["chat", "hello", "--speed", "warp"]) == 2
    assert "no speed is called 'warp'; use one of exact, balanced, fast" in capsys.readouterr().err


def test_drafts_are_refused_where_rows_cannot_be_batched(shipped: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "device", replace(shipped.device, name="rtx"))
    with pytest.raises(Error, match="speculative_steps 2 is for the CPU and this model is on rtx"):
        shipped.chat("hello", BASE.replace(speculative_steps=2))
