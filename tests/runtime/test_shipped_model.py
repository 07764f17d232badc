"""The small model as it is shipped: the bundle is what the exporter makes of the checkpoint, both do the same work, and the
work is good. What the model knows is read from its card; how good it is, with intervals, is for `bench quality`."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from mmada_lite.bench.quality.models import EvalModel, open_model
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.model import embedded_bundle
from mmada_lite.train import rollouts
from mmada_lite.train.data.arithmetic import distinct_problems, response_to
from mmada_lite.train.data.concepts import CONCEPTS, NUMBERS
from mmada_lite.train.data.pictures import background_of
from mmada_lite.train.data.texts import FACTS, pairs, standard_caption
from mmada_lite.train.judge import Judge

SHIPPED = Path(__file__).parents[2] / "train" / "shipped"
NOTES = ("NOTICE", "model_card.md")  # laid beside the graphs


@pytest.fixture(scope="module")
def bundle() -> EvalModel:
    return open_model(embedded_bundle(), "cpu")


@pytest.fixture(scope="module")
def checkpoint() -> EvalModel:
    return open_model(SHIPPED / "emoji")


def drawn(model: EvalModel, captions: list[str], seed: int) -> np.ndarray:
    """Pictures [N, H, W, 3] of captions."""
    side = round(len(model.encode(np.zeros((1, 64, 64, 3), np.uint8))[0]) ** 0.5)
    codes = rollouts.draw(model, rollouts.caption_prompts(model, captions), model.image, side * side, seed).codes
    return model.decode(codes, (side, side))


def answers_of(model: EvalModel, questions: list[str], pictures: np.ndarray | None = None) -> list[str]:
    codes = None if pictures is None else model.encode(pictures)
    return rollouts.answers(model, rollouts.question_prompts(model, questions, codes), model.text)


def test_the_bundle_is_the_checkpoint_exported_byte_for_byte(tmp_path: Path) -> None:
    again, shipped = export_checkpoint(SHIPPED / "emoji", tmp_path / "again", precision="fp16"), Path(embedded_bundle())
    made, kept = ({path.name for path in folder.iterdir() if path.is_file()} for folder in (again, shipped))
    assert kept - {"__init__.py"} == made | set(NOTES)
    for name in made - {"bundle.json", *NOTES}:
        assert (again / name).read_bytes() == (shipped / name).read_bytes(), name
    ours, theirs = (json.loads((folder / "bundle.json").read_text(encoding="utf-8")) for folder in (again, shipped))
    for name in NOTES:
        assert theirs["files"].pop(name)["sha256"] == hashlib.sha256((shipped / name).read_bytes()).hexdigest()
        ours["files"].pop(name, None)
    made_by, shipped_by = ours.pop("provenance"), theirs.pop("provenance")  # when, and with which packages, may differ
    assert [made_by[key] for key in ("source", "source_sha256")] == [shipped_by[key] for key in ("source", "source_sha256")]
    assert ours == theirs


def test_the_checkpoint_and_its_tokenizer_are_small() -> None:
    assert sum(path.stat().st_size for path in (SHIPPED / "emoji").rglob("*") if path.is_file()) <= 24 * 2**20


@pytest.mark.slow
def test_torch_and_the_bundle_draw_and_answer_alike(bundle: EvalModel, checkpoint: EvalModel) -> None:
    captions = ["a star on a black background", "a cat on a purple background"]
    ours, theirs = (drawn(model, captions, 3).astype(int) for model in (bundle, checkpoint))
    assert np.abs(ours - theirs).max() <= 1  # the same codes; rounding of pixels alone
    questions = ["what is 12 + 7?", "what colour is a banana?", "hello"]
    assert answers_of(bundle, questions) == answers_of(checkpoint, questions)


def test_drawings_of_pairs_never_seen_have_their_background_and_thing(bundle: EvalModel) -> None:
    """One drawing of each of two dozen held-out pairs of what the card names; the model sees the backgrounds that it drew."""
    card = (Path(embedded_bundle()) / "model_card.md").read_text(encoding="utf-8")
    listed = re.search(r"\*\*Things:\*\*(.*?)\.", card, re.DOTALL)
    assert listed is not None
    known = {NUMBERS[name] for name in re.sub(r"\s+", " ", listed[1]).strip().split(", ")}
    held_out = [(i, colour) for i, colour in pairs(held_out=True) if i in known]
    wanted = held_out[:: max(1, len(held_out) // 24)][:24]
    pictures = drawn(bundle, [standard_caption(CONCEPTS[i], colour) for i, colour in wanted], 7)
    colours = [colour for _, colour in wanted]
    assert np.mean([background_of(p) == colour for p, colour in zip(pictures, colours, strict=True)]) >= 0.9
    assert np.mean(Judge.load(SHIPPED / "judge").classify(pictures) == np.array([i for i, _ in wanted])) >= 0.6
    answers = answers_of(bundle, ["what colour is the background?"] * len(pictures), pictures)
    assert np.mean([a == colour for a, colour in zip(answers, colours, strict=True)]) >= 0.8


def test_facts_are_known(bundle: EvalModel) -> None:
    facts = [(wordings[0], reply) for reply, wordings in FACTS]
    replies = answers_of(bundle, [question for question, _ in facts])
    assert np.mean([f == reply for f, (_, reply) in zip(replies, facts, strict=True)]) >= 0.8


@pytest.mark.parametrize("kind", ["sum2", "difference2", "sum3"])
def test_problems_never_seen_are_right_with_their_thought(bundle: EvalModel, kind: str) -> None:
    problems = distinct_problems(kind, True, 24, np.random.default_rng(5))
    answers = answers_of(bundle, [f"what is {problem}?" for problem in problems])
    assert np.mean([answer == response_to(problem) for answer, problem in zip(answers, problems, strict=True)]) >= 0.85
