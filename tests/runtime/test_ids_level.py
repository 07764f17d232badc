"""Laws of the level below words and pictures, where ids go in and ids and steps come out: it is what the other calls are made
of, it takes a batch, and it refuses ids and codes that a model has not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mock_denoiser import MockDenoiser
from PIL import Image

import mmada_lite
from mmada_lite import Error, ImageSettings, Model, TextSettings
from mmada_lite.decoding import generate
from mmada_lite.decoding.generate import TextTokens
from mmada_lite.decoding.rows import chat_ids, paint_prompt, picture_prompt
from mmada_lite.decoding.sampling import PhiloxSampler
from mmada_lite.train import rollouts
from mmada_lite.vocabulary import Vocabulary, closing_ids

WRITTEN = TextSettings(answer_length=8, steps=4, block_length=4, temperature=1.0)
DRAWN = ImageSettings(steps=4, guidance=1.0)


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return mmada_lite.load(tiny_bundle, device="cpu", threads=1)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8))


def question(model: Model, text: str) -> list[int]:
    return chat_ids(model.tokenizer, model.vocabulary, [{"role": "user", "content": text}])


def test_a_chat_is_its_ids_completed(model: Model, picture: Image.Image) -> None:
    said, completed = model.chat("hello", WRITTEN, seed=5), model.complete(question(model, "hello"), WRITTEN, seed=5)
    assert [step.tokens.tolist() for step in completed] == [step.tokens.tolist() for step in said]
    assert completed.text == said.text
    assert completed.result().ids.tolist() == said.result().ids.tolist()
    for fit in ("crop", "squash"):
        row = [*picture_prompt(model.codes_of(picture, fit), model.vocabulary), *question(model, "what?")]
        asked = model.ask(picture, "what?", WRITTEN, seed=5, fit=fit)
        assert asked.result().ids.tolist() == model.complete(row, WRITTEN, seed=5).result().ids.tolist()


def test_a_painting_is_its_words_drawn(model: Model) -> None:
    blank = np.zeros((4, 4), dtype=np.int64)
    painted = model.paint("a cat", DRAWN, seed=5)
    drawn = model.draw(model.encode("a cat"), blank, blank == 0, DRAWN, seed=5)
    assert [step.tokens.tolist() for step in painted] == [step.tokens.tolist() for step in drawn]
    assert (painted.result().codes == drawn.result().codes).all()
    np.testing.assert_array_equal(np.asarray(painted.picture), np.asarray(model.picture_of(drawn.codes)))


def test_given_codes_stay_in_a_grid_of_any_shape(model: Model) -> None:
    """Also without settings, whose steps are cut to the few codes that there are."""
    codes, unknown = np.arange(6).reshape(2, 3), np.arange(6).reshape(2, 3) % 3 == 0
    drawing = model.draw(model.encode("a cat"), codes.tolist(), unknown.tolist())
    result = drawing.result()
    assert result.steps == unknown.sum() < model.image_defaults.steps
    assert result.codes.shape == (2, 3)
    assert (result.codes[~unknown] == codes[~unknown]).all()
    assert result.picture.size == (3 * model.codec.downsample, 2 * model.codec.downsample)


def test_words_and_codes_go_there_and_back(model: Model, picture: Image.Image) -> None:
    text = "a cat <|eot_id|> é"
    assert model.decode([model.vocabulary.special.mask, *model.encode(text), model.vocabulary.image_code_offset]) == text
    codes = model.codes_of(picture)
    assert (codes.shape, codes.dtype) == ((4, 4), np.int64)
    square = mmada_lite.images.fit(picture, model.codec.resolution)
    assert (codes == model.codec.encode(mmada_lite.images.to_pixels(square))[0]).all()
    assert model.picture_of(codes).size == (16, 16)


def test_ids_and_codes_that_the_model_has_not(model: Model) -> None:
    most = model.vocabulary.size - 1
    for wrong in ([5, most + 1], [-1, 5]):
        with pytest.raises(Error, match=rf"the id {wrong[0] if wrong[0] < 0 else wrong[1]} is none of the model's 0 to {most}"):
            model.complete(wrong)
    for not_ids in ([[1, 2]], [1.5], 3):
        with pytest.raises(Error, match=r"the ids are .*; give whole numbers, in a row"):
            model.complete(not_ids)  # type: ignore[arg-type]
    with pytest.raises(Error, match="the code 16 is none of the model's 0 to 15"):
        model.draw([5], [[0, 16]], [[False, True]])
    with pytest.raises(Error, match="the code -1 is none"):
        model.picture_of([[-1]])
    for no_grid in ([1, 2], [[0.5]], [[]]):
        with pytest.raises(Error, match=r"the codes are .*; give whole numbers, row by row of a grid"):
            model.picture_of(no_grid)
    with pytest.raises(Error, match="the codes are 1 x 2 and what is unknown is 2; give one flag for each code"):
        model.draw([5], [[0, 1]], [True, False])
    with pytest.raises(Error, match="no code is unknown"):
        model.draw([5], [[0, 1]], [[False, False]])
    with pytest.raises(Error, match="the id -1 is none"):
        model.draw([-1], [[0]], [[True]])
    with pytest.raises(Error, match="4 steps for 2 codes"):
        model.draw([5], [[0, 1]], [[True, True]], DRAWN)
    with pytest.raises(Error, match="takes 258 tokens and the model reads 256"):
        model.complete([5] * 250, WRITTEN)


def test_ids_need_no_tokenizer(model: Model, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mute"
    shutil.copytree(tiny_bundle, folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    del manifest["files"]["tokenizer.json"]
    (folder / "bundle.json").write_text(json.dumps(manifest))
    mute = mmada_lite.load(folder, device="cpu", threads=1)
    prompt = question(model, "hello")
    answer = mute.complete(prompt, WRITTEN, seed=5)
    assert answer.result().ids.tolist() == model.complete(prompt, WRITTEN, seed=5).result().ids.tolist()
    assert (answer.text, answer.so_far()) == ("", "")
    assert mute.draw([5], [[0, 1]], [[True, False]]).result().codes[0, 1] == 1
    with pytest.raises(Error, match=r"has no tokenizer\.json"):
        mute.encode("hello")


def test_rows_of_a_batch_are_written_as_each_alone(model: Model) -> None:
    greedy = TextSettings(answer_length=8, steps=4, block_length=4)
    tokens = TextTokens(model.vocabulary.special.mask)
    prompts = [[5, 6, 7], [8, 9, 10]]
    together = generate.complete(model.denoiser, prompts, greedy, tokens)
    assert together.ids.tolist() == [[tokens.mask] * 8] * 2
    assert len(list(together.steps)) == 4
    for prompt, ids in zip(prompts, together.ids, strict=True):
        alone = generate.complete(model.denoiser, prompt, greedy, tokens)
        list(alone.steps)
        assert alone.ids.tolist() == [ids.tolist()]


def test_training_writes_what_a_user_reads(model: Model) -> None:
    """Guided too, where both rows have their say."""
    prompt = question(model, "hello")
    for chosen in (WRITTEN, replace(WRITTEN, guidance=1.5), WRITTEN.replace(cache="dual", threshold=0.5)):
        written = rollouts.write(model, [prompt], chosen, seed=5)
        assert written.ids[0].tolist() == model.complete(prompt, chosen, seed=5).result().ids.tolist()


def test_rows_of_a_batch_are_drawn_as_each_alone(vocabulary: Vocabulary) -> None:
    """With codes of their own among what is unknown, guided and greedy; steps are cut to what the row with most has to draw."""
    chosen = ImageSettings(steps=9, guidance=2.0, temperature=0.0, sampling_temperature=0.0)
    prompts = [paint_prompt([5, 6], vocabulary), paint_prompt([7, 8], vocabulary)]
    codes, unknown = np.arange(12).reshape(2, 6), np.array([[True] * 5 + [False], [False, True] * 3])

    def denoiser() -> MockDenoiser:
        return MockDenoiser({p: p % 32 for p in range(40)}, {p: (p * 5 % 16 + 0.5) / 17 for p in range(40)})

    watched = denoiser()
    together = generate.draw(watched, prompts, codes, unknown, chosen, vocabulary)
    assert len(list(together.steps)) == 5
    assert {len(window.tokens) for window in watched.windows} == {2}
    assert (together.codes[~unknown] == codes[~unknown]).all()
    for row in range(2):
        alone = generate.draw(denoiser(), prompts[row], codes[row], unknown[row], chosen, vocabulary)
        list(alone.steps)
        assert (alone.codes[0] == together.codes[row]).all()


def test_the_seed_gives_the_numbers_unless_a_sampler_does(vocabulary: Vocabulary) -> None:
    chosen, tokens = TextSettings(answer_length=8, steps=8, temperature=1.0), TextTokens(vocabulary.special.mask)

    def written(**numbers: object) -> list[int]:
        decoding = generate.complete(MockDenoiser({}), [1, 2, 3], chosen, tokens, **numbers)  # type: ignore[arg-type]
        list(decoding.steps)
        ids: list[int] = decoding.ids[0].tolist()
        return ids

    assert written(seed=4) == written(sampler=PhiloxSampler(4, 1.0, 3)) != written(seed=5)


def test_what_a_text_looks_for_is_the_models(model: Model) -> None:
    special = model.vocabulary.special
    assert TextTokens.of(special, None) == TextTokens(special.mask, frozenset({special.eos, special.eot}), ())
    assert TextTokens.of(special, model.tokenizer).closing == tuple(closing_ids(model.tokenizer))
