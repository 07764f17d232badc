"""Laws of what a user touches, on a bundle of random weights: streams equal their joins, and given codes stay given."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mmada_lite
from mmada_lite import Error, ImageSettings, TextSettings
from mmada_lite.decoding.denoiser import Window
from mmada_lite.decoding.kv_cache import KeyValues
from mmada_lite.ort import loader
from mmada_lite.streams import Drawing

SIDE = 16  # pixels; 4 x 4 codes of 4 pixels
FEW = ImageSettings(steps=4, guidance=1.0)


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> mmada_lite.Model:
    return mmada_lite.load(tiny_bundle, device="cpu", threads=1)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def left_half() -> Image.Image:
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (0, 0, SIDE // 2, SIDE))
    return mask


def codes_of(model: mmada_lite.Model, image: Image.Image) -> np.ndarray:
    return model.codec.encode(mmada_lite.images.to_pixels(image))[0]


def test_a_large_model_reads_the_picture_before_its_weights_come(
    tiny_bundle: Path, model: mmada_lite.Model, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, drawn = model.ask(picture, "what is this?").text, model.paint("a cat", FEW, seed=3).picture
    opened: list[str] = []
    open_session = loader.open_session
    monkeypatch.setattr(loader, "LARGE", 0)
    monkeypatch.setattr(
        loader, "open_session", lambda path, *rest, **how: opened.append(path.stem) or open_session(path, *rest, **how)
    )
    large = mmada_lite.load(tiny_bundle, device="cpu", threads=1)
    assert not opened
    assert large.ask(picture, "what is this?").text == answer
    assert opened[0] == "image_encoder"
    assert sorted(opened[1:]) == ["backbone", "embedder", "image_head", "text_head"]  # by threads, in any order
    assert np.array_equal(np.asarray(large.paint("a cat", FEW, seed=3).picture), np.asarray(drawn))
    assert opened[5:] == ["image_decoder"]


@pytest.mark.parametrize("keep", [False, True])
def test_keys_and_values_lie_in_arrays_of_their_own(tiny_bundle: Path, keep: bool) -> None:
    """What a call keeps is not written over by the next one, and what it gives does not hang on whether it keeps."""
    denoiser = mmada_lite.load(tiny_bundle, device="cpu", threads=1).denoiser
    rng, places = np.random.default_rng(0), np.arange(24)
    first, other = (Window(rng.integers(0, 200, (1, 24)), places, places[None, 4:9]) for _ in range(2))
    hidden, kept = denoiser.forward(first, keep=True)
    assert kept is not None
    assert len({array.ctypes.data for array in (*kept.keys, *kept.values)}) == 2 * len(kept.keys)
    before = [array.copy() for array in (hidden, *kept.keys, *kept.values)]
    denoiser.forward(other, keep=keep)
    again, _ = denoiser.forward(first, keep=keep)
    for now, then in zip((again, *kept.keys, *kept.values), before, strict=True):
        np.testing.assert_array_equal(now, then)
    with_past = Window(
        first.tokens[:, 10:],
        places[10:],
        np.array([[0, 5]]),
        KeyValues(*(_cut_at(10, part) for part in (kept.keys, kept.values))),
    )
    assert np.isfinite(denoiser.forward(with_past, keep=keep)[0]).all()


def _cut_at(place: int, arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    return tuple(array[:, :, :place] for array in arrays)


def test_a_streamed_answer_is_the_joined_one(model):
    settings = TextSettings(answer_length=12, steps=6, block_length=4)
    stream = model.chat("hello", settings)
    marks = [stream.so_far("_").count("_") for _ in stream]
    streamed, joined = stream.result(), model.chat("hello", settings).result()
    assert marks[-1] == 0 or not streamed.complete
    assert stream.text == streamed.text == joined.text
    assert (streamed.ids == joined.ids).all()
    assert (streamed.steps, streamed.model_calls) == (joined.steps, joined.model_calls) == (len(marks), len(marks))
    assert stream.last is not None
    assert streamed.seconds == stream.last.seconds


@pytest.mark.parametrize("cache", ["none", "prefix", "dual", "prompt"])
def test_sampled_answers_repeat_with_their_seed(model, cache):
    settings = TextSettings(answer_length=12, steps=12, block_length=6, temperature=1.0).replace(cache=cache)
    first, again, other = (model.chat("hello", settings, seed=s).result().ids.tolist() for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_cache_that_is_always_refreshed_equals_none(model):
    """One step per block: every step is the block's first, which computes everything."""
    plain = TextSettings(answer_length=12, steps=3, block_length=4)
    ids = [model.chat("hello", plain.replace(cache=cache)).result().ids.tolist() for cache in ("none", "prefix", "dual")]
    assert ids[0] == ids[1] == ids[2]


def test_guidance_zero_is_the_conditional_row_alone(model):
    free = [model.paint("a cat", FEW.replace(guidance=g), seed=3).result().codes for g in (0.0, 1e-9)]
    assert (free[0] == free[1]).all()


def test_a_painted_picture(model):
    drawing = model.paint("a cat", FEW, seed=5)
    previews = [drawing.preview() for _ in drawing]
    assert len(previews) == 4
    assert np.array_equal(previews[-1], drawing.picture)
    assert drawing.result() is drawing.result()
    assert (drawing.result().steps, drawing.result().model_calls) == (4, 4)
    assert drawing.picture.size == (SIDE, SIDE)
    assert drawing.last is not None
    assert drawing.last.remaining == 0


def test_inpainting_keeps_given_codes_and_pixels(model, picture):
    drawing = model.inpaint(picture, left_half(), "a cat", FEW, seed=1)
    given = codes_of(model, picture)
    for _ in drawing:
        assert (drawing.codes[:, 2:] == given[:, 2:]).all()
    kept, drawn = np.asarray(picture), np.asarray(drawing.picture)
    assert (drawn[:, SIDE // 2 :] == kept[:, SIDE // 2 :]).all()
    assert (drawn[:, : SIDE // 2] != kept[:, : SIDE // 2]).any()
    through = model.inpaint(picture, left_half(), "a cat", FEW, seed=1, keep_pixels=False)
    assert (through.result().codes == drawing.codes).all()


def test_a_thin_stroke_of_a_large_mask_is_drawn_anew(model):
    large, stroke = Image.new("RGB", (1000, 1000), "red"), Image.new("L", (1000, 1000))
    stroke.paste(255, (700, 0, 701, 1000))
    drawing, given = model.inpaint(large, stroke, "a cat", FEW).result(), model.codes_of(large)
    column = 700 * given.shape[1] // 1000
    assert (np.delete(drawing.codes, column, axis=1) == np.delete(given, column, axis=1)).all()
    assert drawing.steps == FEW.steps


def test_default_steps_shrink_with_the_hole_and_said_steps_do_not(model, picture):
    hole = Image.new("L", (SIDE, SIDE))
    hole.putpixel((0, 0), 255)
    assert model.inpaint(picture, hole, "a cat").result().steps == 1
    with pytest.raises(Error, match="4 steps for 1 codes"):
        model.inpaint(picture, hole, "a cat", FEW)


@pytest.mark.parametrize(
    ("side", "amount", "size"),
    [("right", 0.5, (24, 16)), ("left", 0.25, (20, 16)), ("top", 1.0, (16, 32)), ("bottom", 1.75, (16, 44))],
)
def test_extending_keeps_the_picture_and_grows_one_side(model, picture, side, amount, size):
    drawing: Drawing = model.extend(picture, "a cat", FEW.replace(steps=2), side=side, amount=amount)
    indices = [step.index for step in drawing]
    assert indices == list(range(drawing.last.total_steps))
    image = drawing.picture
    assert image.size == size
    left = image.width - SIDE if side == "left" else 0
    top = image.height - SIDE if side == "top" else 0
    assert np.array_equal(image.crop((left, top, left + SIDE, top + SIDE)), picture)
    grid, given = drawing.codes, codes_of(model, picture)
    top_row, left_column = (grid.shape[0] - 4 if side == "top" else 0), (grid.shape[1] - 4 if side == "left" else 0)
    assert (grid[top_row : top_row + 4, left_column : left_column + 4] == given).all()


def test_impossible_extensions(model, picture):
    for side, amount, word in (("up", 0.5, "side is"), ("left", 0.0, "cannot extend"), ("left", 5.0, "cannot extend")):
        with pytest.raises(Error, match=word):
            model.extend(picture, "a cat", side=side, amount=amount)
    with pytest.raises(Error, match="9 steps for 8 codes"):
        model.extend(picture, "a cat", FEW.replace(steps=9), amount=0.5)


def test_a_picture_is_asked_about(model, picture):
    settings = TextSettings(answer_length=8, steps=8, block_length=8)
    wide = Image.new("RGB", (40, 20), "white")
    wide.paste(picture.resize((20, 20)), (10, 0))
    assert (
        model.ask(wide, "what is this?", settings).text == model.ask(picture.resize((20, 20)), "what is this?", settings).text
    )
    assert model.ask(wide, "what is this?", settings, fit="squash").result().steps == 8


def test_conversations(model):
    settings = TextSettings(answer_length=4, steps=4, block_length=4)
    one = model.chat("hello", settings).text
    assert one == model.chat([{"role": "user", "content": "hello"}], settings).text
    with pytest.raises(Error, match="empty"):
        model.chat([], settings)
    with pytest.raises(Error, match="the model reads 256; shorten it by"):
        model.chat("word " * 300, settings)
