"""Laws of the training data: splits by a real hash, captions, compositing, the background rule, masks. Icons are synthetic;
nothing is fetched."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from mmada_lite.errors import Error
from mmada_lite.train.data import texts
from mmada_lite.train.data.concepts import BACKGROUNDS, COLOURS, CONCEPT_NAMES, CONCEPTS
from mmada_lite.train.data.pictures import PLAIN, Augmentation, background_of, compose
from mmada_lite.train.data.pool import Pool
from mmada_lite.train.data.sequences import ANSWER_LENGTH, Sequences, answer_rows, equal_length, picture_rows, spread
from mmada_lite.train.data.sources import STYLES, IconSet, Style, render_all, styles
from mmada_lite.train.data.tokenizer import SPECIAL_TOKENS, train_tokenizer
from mmada_lite.vocabulary import Tokenizer, Vocabulary

CODES = 256


def disc(colour: tuple[int, int, int], size: int = 96) -> np.ndarray:
    """A filled circle on transparency, RGBA."""
    y, x = np.mgrid[:size, :size] - size / 2
    icon = np.zeros((size, size, 4), np.uint8)
    icon[..., :3] = colour
    icon[..., 3] = np.where(x * x + y * y < (0.45 * size) ** 2, 255, 0)
    return icon


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(texts.corpus(), 512, file)
    return Tokenizer.from_file(file)


@pytest.fixture(scope="session")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary.from_tokenizer(tokenizer, codebook_size=CODES, size=len(tokenizer) + CODES)


@pytest.fixture(scope="session")
def pool() -> Pool:
    """Two pictures of each kind of each training pair."""
    rng = np.random.default_rng(0)
    rows = [(i, COLOURS.index(k), tidy) for i, k in texts.pairs(held=False) for tidy in (True, False) for _ in range(2)]
    concept, colour, tidy = (np.array(column) for column in zip(*rows, strict=True))
    return Pool(rng.integers(CODES, size=(len(rows), 64)), concept, colour, tidy.astype(bool))


def test_split_is_crc32_and_stays() -> None:
    assert texts.held_out("apple on red") == (zlib.crc32(b"apple on red") % 10 == 0)
    held, kept = set(texts.pairs(held=True)), set(texts.pairs(held=False))
    assert not held & kept
    assert len(held | kept) == len(CONCEPTS) * len(COLOURS)
    assert {i for i, _ in kept} == set(range(len(CONCEPTS)))
    assert {k for _, k in kept} == set(COLOURS)
    assert 15 <= len(held) <= 40


def test_sums_are_held_out_in_both_orders() -> None:
    held, kept = set(texts.sums(held=True)), set(texts.sums(held=False))
    assert not held & kept
    assert all((b, a) in held for a, b in held)
    rng = np.random.default_rng(0)
    asked = {texts.text_question(rng, sorted(kept))[0] for _ in range(3000)}
    assert not asked & {template.format(a=a, b=b) for a, b in held for template in texts.SUM_QUESTIONS}


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
            assert (answer == "yes") == (question == f"is this {CONCEPTS[3].phrase}?")


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


def test_tokenizer_has_single_digits_and_all_special_tokens(tokenizer: Tokenizer) -> None:
    assert len(tokenizer) <= 512
    ids = [tokenizer.find(token, -1) for token in SPECIAL_TOKENS]
    assert -1 not in ids
    assert len(set(ids)) == len(ids)
    assert len(tokenizer.encode("2718")) == 4
    assert tokenizer.decode(tokenizer.encode("what is 17 + 5?")) == "what is 17 + 5?"


def test_answers_fit(tokenizer: Tokenizer, vocabulary: Vocabulary, pool: Pool) -> None:
    sequences = Sequences(tokenizer, vocabulary, pool)
    for answer, _ in texts.FACTS:
        assert len(sequences.answer(answer)) == ANSWER_LENGTH
    for concept in CONCEPTS:
        assert vocabulary.special.eot in sequences.answer(texts.standard_caption(concept, "orange"))


def test_picture_rows_mask_codes_only(vocabulary: Vocabulary) -> None:
    rng = np.random.default_rng(5)
    prompts, codes = rng.integers(400, size=(16, 7)), rng.integers(CODES, size=(16, 64))
    rows = picture_rows(prompts, codes, vocabulary, rng)
    masked = rows.tokens == vocabulary.special.mask
    assert masked[:, 8:-1].sum(axis=1).min() >= 1
    assert not masked[:, :8].any()
    assert (rows.tokens[~masked] == rows.targets[~masked]).all()
    assert (rows.targets[:, 8:-1] - vocabulary.image_code_offset == codes).all()
    assert ((rows.weight > 0) == masked).all()
    assert rows.weight.sum() == pytest.approx(1.0)
    expected = np.sort(np.rint(64 * np.cos(np.pi / 2 * (np.arange(16) + 0.5) / 16)))
    assert np.abs(np.sort(masked.sum(axis=1)) - expected).max() <= 4


def test_answer_rows_never_mask_the_prompt(vocabulary: Vocabulary) -> None:
    rng = np.random.default_rng(6)
    prompts, answers = rng.integers(400, size=(256, 9)), rng.integers(400, size=(256, ANSWER_LENGTH))
    rows = answer_rows("text", prompts, answers, vocabulary, rng)
    assert (rows.tokens[:, :9] == prompts).all()
    assert (rows.weight[:, :9] == 0).all()
    assert rows.weight.sum() == pytest.approx(1.0, abs=0.25)  # in expectation over masks
    assert 0.57 < (rows.weight[:, 9:] > 0).mean() < 0.76  # p leans to 1: two thirds


def test_layouts_of_the_three_tasks(tokenizer: Tokenizer, vocabulary: Vocabulary, pool: Pool) -> None:
    sequences, special = Sequences(tokenizer, vocabulary, pool), vocabulary.special
    rng = np.random.default_rng(7)
    for _ in range(5):
        asked = sequences.ask(4, rng)
        assert (asked.targets[:, 0] == special.mmu).all()
        assert (asked.targets[:, 1] == special.soi).all()
        assert (asked.targets[:, 66] == special.eoi).all()
        assert (asked.targets[:, 67] == special.bos).all()
        plain = sequences.text(4, rng)
        assert (plain.targets[:, 0] == special.bos).all()
        assert (plain.targets[:, -ANSWER_LENGTH:] == special.eot).sum() == 4
        painted = sequences.paint(4, rng)
        assert (painted.targets[:, 0] == special.t2i).all()
        assert (painted.targets[:, -1] == special.eoi).all()
    sequences.caption_dropout = 1.0
    without = sequences.paint(4, rng)
    assert (without.targets[:, :4] == [special.t2i, special.bos, special.eos, special.soi]).all()


def test_no_held_out_pair_is_ever_drawn(tokenizer: Tokenizer, vocabulary: Vocabulary, pool: Pool) -> None:
    sequences, rng = Sequences(tokenizer, vocabulary, pool), np.random.default_rng(8)
    held = set(texts.pairs(held=True))
    assert not {sequences._pair(rng) for _ in range(2000)} & held
    assert not {(int(i), COLOURS[k]) for i, k in zip(pool.concept, pool.colour, strict=True)} & held


def test_groups_have_one_length_and_spread_is_uniform() -> None:
    rng = np.random.default_rng(9)
    kept = equal_length(lambda: ([0] * int(rng.integers(1, 5)), None), 20)
    assert len(kept) == 20
    assert len({len(ids) for ids, _ in kept}) == 1
    values = np.sort(spread(50, rng))
    assert (np.floor(values * 50) == np.arange(50)).all()


def icon_folder(cache: Path, style: Style) -> None:
    folder = cache / style.folder
    folder.mkdir(parents=True)
    icons = {
        "round": {"body": '<circle cx="8" cy="8" r="7" fill="#f00"/>'},
        "wide": {"body": '<rect width="32" height="16" fill="#00f"/>', "width": 32, "height": 16},
        "hand-dark-skin-tone": {"body": "<g/>"},
        "hand-medium-light": {"body": "<g/>"},
        "nothing": {"body": "<g/>"},
    }
    content = {"width": 16, "height": 16, "icons": icons, "aliases": {"ball": {"parent": "round"}}}
    (folder / "icons.json").write_text(json.dumps(content), encoding="utf-8")


def test_icons_are_read_and_rendered(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py", reason="rendering needs resvg-py")
    icon_folder(tmp_path, STYLES[0])
    icons = IconSet(tmp_path, STYLES[0])
    assert icons.names() == ["nothing", "round", "wide"]
    assert "ball" in icons
    assert (icons.render("ball", 32) == icons.render("round", 32)).all()
    assert icons.render("wide", 32).shape == (32, 32, 4)
    assert icons.render("round", 32)[16, 16].tolist() == [255, 0, 0, 255]
    assert icons.render("round", 32)[0, 0, 3] == 0
    assert [name for name, _ in render_all(tmp_path, STYLES[0], 32)] == ["round", "wide"]


def test_missing_icons_are_named(tmp_path: Path) -> None:
    with pytest.raises(Error, match="fetch"):
        IconSet(tmp_path, STYLES[0])
    icon_folder(tmp_path, STYLES[0])
    with pytest.raises(Error, match="no icon 'unicorn'"):
        IconSet(tmp_path, STYLES[0]).svg("unicorn")
