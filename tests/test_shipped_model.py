"""The small model as it is shipped: the bundle is what the exporter makes of the checkpoint, and both do the same work."""

from pathlib import Path

import numpy as np
import pytest
from mmada_lite.train.evaluate import Subject, answer, draw, question

import mmada_lite
from mmada_lite.bundle import Bundle
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.model import embedded_bundle
from mmada_lite.train.data.concepts import COLOURS, CONCEPTS
from mmada_lite.train.data.pictures import background_of
from mmada_lite.train.data.texts import SUM_QUESTIONS, pairs, standard_caption, sums
from mmada_lite.train.judge import Judge

SHIPPED = Path(__file__).parent.parent / "train" / "shipped"


@pytest.fixture(scope="module")
def model() -> mmada_lite.Model:
    return mmada_lite.load(device="cpu")


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject.load(SHIPPED / "emoji")


def test_the_bundle_is_the_checkpoint_exported(tmp_path: Path) -> None:
    again = Bundle.open(export_checkpoint(SHIPPED / "emoji", tmp_path / "again", precision="fp16"))
    shipped = Bundle.open(embedded_bundle(), verify="full")
    notes = {"NOTICE", "model_card.md"}
    assert {n: f.sha256 for n, f in again.files.items()} == {n: f.sha256 for n, f in shipped.files.items() if n not in notes}
    assert notes < set(shipped.files)
    assert (again.vocabulary, again.image_defaults, again.text_defaults) == (
        shipped.vocabulary,
        shipped.image_defaults,
        shipped.text_defaults,
    )


def test_torch_and_the_bundle_draw_and_answer_alike(model: mmada_lite.Model, subject: Subject) -> None:
    captions = ["a star on a black background", "a cat on a purple background"]
    for caption in captions:
        ours = np.asarray(model.paint(caption, seed=3).picture).astype(int)
        theirs = draw(subject, [caption], seed=3)[0].astype(int)
        assert np.abs(ours - theirs).max() <= 1  # the same codes; rounding of pixels alone
    for text in ("what is 12 + 7?", "what colour is a banana?", "hello"):
        assert model.chat(text).text == answer(subject, [question(subject, text)])[0]


def test_drawings_of_pairs_never_seen_are_told_apart(model: mmada_lite.Model) -> None:
    """Through the bundle: one drawing of each of 30 held-out pairs; the targets of the first landing with room for chance."""
    wanted = pairs(held=True)
    pictures = np.stack([np.asarray(model.paint(standard_caption(CONCEPTS[i], k), seed=7).picture) for i, k in wanted])
    named = Judge.load(SHIPPED / "judge").classify(pictures) == np.array([i for i, _ in wanted])
    grounds = [background_of(p) == k for p, (_, k) in zip(pictures, wanted, strict=True)]
    assert len(wanted) == 30
    assert named.mean() >= 0.75
    assert np.mean(grounds) >= 0.9


def test_backgrounds_and_sums_are_answered(model: mmada_lite.Model) -> None:
    for colour in COLOURS[::3]:
        picture = model.paint(f"a frog on a {colour} background".replace("a o", "an o")).picture
        assert model.ask(picture, "what colour is the background?").text == colour
    held = sums(held=True)[::4]
    right = [model.chat(SUM_QUESTIONS[0].format(a=a, b=b)).text == str(a + b) for a, b in held]
    assert np.mean(right) >= 0.7
