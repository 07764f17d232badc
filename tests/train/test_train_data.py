"""Laws of the training data: splits by a real hash, captions, compositing, the background rule, masks. Icons are synthetic;
nothing is fetched."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from toys import disc

from mmada_lite.errors import Error
from mmada_lite.train.data import texts
from mmada_lite.train.data.concepts import BACKGROUNDS, COLOURS, CONCEPT_NAMES, CONCEPTS, NUMBERS, SMALL
from mmada_lite.train.data.pictures import PLAIN, Augmentation, background_of, compose
from mmada_lite.train.data.sources import STYLES, IconSet, Style, render_all, styles
from mmada_lite.train.data.thoughts import CLOSE, OPEN, answer_of
from mmada_lite.train.data.tokenizer import SPECIAL_TOKENS
from mmada_lite.vocabulary import Tokenizer


def test_split_is_crc32_and_stays() -> None:
    assert texts.held_out("apple on red") == (zlib.crc32(b"apple on red") % 10 == 0)
    unseen, trained = set(texts.pairs(held_out=True)), set(texts.pairs(held_out=False))
    assert not unseen & trained
    assert len(unseen | trained) == len(CONCEPTS) * len(COLOURS)
    assert {i for i, _ in trained} == set(range(len(CONCEPTS)))
    assert {k for _, k in trained} == set(COLOURS)
    assert 0.07 < len(unseen) / len(unseen | trained) < 0.13


def test_concepts_have_names_of_their_own() -> None:
    assert len(CONCEPTS) == len(set(CONCEPT_NAMES)) == len({c.plural for c in CONCEPTS}) >= 60
    assert [CONCEPT_NAMES[NUMBERS[name]] for name in CONCEPT_NAMES] == list(CONCEPT_NAMES)
    assert all(" " not in name for name in CONCEPT_NAMES)  # thoughts are read word by word
    assert len(set(SMALL)) == len(SMALL)


def test_styles_never_mix_roles() -> None:
    assert [s.name for s in styles("validation")] == ["emojione"]
    assert {s.name for s in styles("test")} == {"openmoji", "emojione-v1"}
    assert not any("SA" in s.licence for s in styles("train"))
    assert len({s.name for s in STYLES}) == len(STYLES)


def test_captions_read_well() -> None:
    by_name = dict(zip(CONCEPT_NAMES, CONCEPTS, strict=True))
    assert texts.standard_caption(by_name["apple"], "blue") == "an apple on a blue background"
    assert texts.standard_caption(by_name["cat"], "orange") == "a cat on an orange background"
    assert texts.standard_caption(by_name["sun"], "black") == "the sun on a black background"
    assert not any(colour in name.split() for name in CONCEPT_NAMES for colour in COLOURS)


def test_yes_and_no_are_true() -> None:
    rng = np.random.default_rng(1)
    for _ in range(500):
        question, answer = texts.picture_question(CONCEPTS[3], "blue", rng)
        if question.startswith("is this"):
            assert (answer_of(answer) == "yes") == (question == f"is this {CONCEPTS[3].phrase}?")


@pytest.mark.parametrize("colour", COLOURS)
def test_background_rule_reads_what_was_composed(colour: str) -> None:
    rng = np.random.default_rng(2)
    for tone in ((220, 40, 40), (250, 210, 60), (250, 250, 250), (20, 20, 20)):
        for how in (PLAIN, Augmentation()):
            picture = compose(disc(tone), colour, rng, how)
            assert picture.shape == (64, 64, 3)
            assert picture.dtype == np.uint8
            assert background_of(picture) == colour


def test_an_icon_of_the_background_colour_stays_visible() -> None:
    for colour, tones in BACKGROUNDS.items():
        if colour in ("white", "gray"):
            continue  # white has no dark tone, and gray's tones lie close together
        picture = compose(disc(tones[0]), colour, np.random.default_rng(3), PLAIN).astype(int)
        assert np.linalg.norm(picture[32, 32] - picture[1, 1]) > 30, colour


def test_compositing_repeats_with_its_seed() -> None:
    first, second = (compose(disc((9, 200, 90)), "pink", np.random.default_rng(4), Augmentation()) for _ in range(2))
    assert (first == second).all()


def test_tokenizer_has_single_digits_thoughts_and_all_special_tokens(toy_tokenizer: Path) -> None:
    tokenizer = Tokenizer.from_file(toy_tokenizer)
    assert len(tokenizer) <= 768
    ids = [tokenizer.find(token, -1) for token in (*SPECIAL_TOKENS, OPEN, CLOSE)]
    assert -1 not in ids
    assert len(set(ids)) == len(ids)
    assert len(tokenizer.encode("2718")) == 4
    for text in ("what is 17 + 5?", "<think> 7+5+0=12 </think> 12"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("<think> 7 </think> 7")[0] == tokenizer.find(OPEN, -1)


def icon_folder(cache: Path, style: Style) -> None:
    folder = cache / style.folder
    folder.mkdir(parents=True)
    icons = {
        "round": {"body": '<circle cx="8" cy="8" r="7" fill="#f00"/>'},
        "wide": {"body": '<rect width="32" height="16" fill="#00f"/>', "width": 32, "height": 16},
        "hand-dark-skin-tone": {"body": "<g/>"},
        "hand-medium-light": {"body": "<g/>"},
        "nothing": {"body": "<g/>"},
        "spoilt": {"body": "<circle"},
        "used": {"body": '<defs><circle id="a" cx="8" cy="8" r="7" fill="#0f0"/></defs><use xlink:href="#a"/>'},
    }
    content = {"width": 16, "height": 16, "icons": icons, "aliases": {"ball": {"parent": "round"}}}
    (folder / "icons.json").write_text(json.dumps(content), encoding="utf-8")


def test_icons_are_read_and_rendered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("resvg_py", reason="rendering needs resvg-py")
    icon_folder(tmp_path, STYLES[0])
    icons = IconSet(tmp_path, STYLES[0])
    assert icons.names() == ["nothing", "round", "spoilt", "used", "wide"]
    assert "ball" in icons
    assert (icons.render("ball", 32) == icons.render("round", 32)).all()
    assert icons.render("wide", 32).shape == (32, 32, 4)
    assert icons.render("round", 32)[16, 16].tolist() == [255, 0, 0, 255]
    assert icons.render("round", 32)[0, 0, 3] == 0
    assert icons.render("used", 32)[16, 16].tolist() == [0, 255, 0, 255]
    assert [name for name, _ in render_all(tmp_path, STYLES[0], 32)] == ["round", "used", "wide"]
    assert [record.getMessage().split(" and is")[0] for record in caplog.records] == [
        f"style {STYLES[0].name}: the icon spoilt cannot be drawn"
    ]


def test_missing_icons_are_named(tmp_path: Path) -> None:
    with pytest.raises(Error, match="fetch"):
        IconSet(tmp_path, STYLES[0])
    icon_folder(tmp_path, STYLES[0])
    with pytest.raises(Error, match="no icon 'unicorn'"):
        IconSet(tmp_path, STYLES[0]).svg("unicorn")
