"""Random models that say much and end often, answers with holes and choices for them, and what a host must make of them: what
Python makes. For every host that is spoken to in lines of JSON."""

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from line_host import Host
from recorded_fill import BASE, FILE, LEAST, Gaps

from mmada_lite import Error, Model, TextSettings, load
from mmada_lite.bench.parity.check import _Models
from mmada_lite.decoding.generate import TextTokens, complete
from mmada_lite.decoding.score import choose
from mmada_lite.decoding.settings import plain
from mmada_lite.forms.holes import read_partial
from mmada_lite.model import embedded_bundle

LOUD, ENDING = 8.0, 3.0  # times the head's random weights, and those of the stop tokens once more
TOLERANCE = 1e-4  # nats between two ways of adding up
ROOM = 1e-5  # nats that decide alike in every way of adding up: what differs by less is decided by it


def loud_bundle(checkpoint: Path, folder: Path, seed: int) -> Path:
    """The tiny checkpoint with other weights, as a bundle: its logits lie far apart, so that no rounding decides between two
    tokens, and stop tokens are often the best."""
    import torch

    from mmada_lite.export.bundle import export_checkpoint
    from mmada_lite.train.model import MMaDA

    copy = Path(shutil.copytree(checkpoint, folder / "checkpoint"))
    model = MMaDA.load(copy)
    model.initialize(torch.Generator().manual_seed(seed))
    head = model.transformer.ff_out.weight
    with torch.no_grad():
        head *= LOUD
        head[[257, 267]] *= ENDING
    model.save(copy, "float32")
    return export_checkpoint(copy, folder / "bundle", precision="fp32")


@dataclass(frozen=True)
class Filling:
    """An answer of which the masks are to be written, and how."""

    prompt: list[int]
    answer: list[int]
    settings: TextSettings
    seed: int


def fillings(model: Model, count: int, seed: int) -> list[Filling]:
    """Answers of several holes, or of one, or of masks alone, with settings of every kind that all hosts know."""
    chooser, mask = random.Random(seed), model.vocabulary.special.mask
    known = [token for token in range(model.vocabulary.size) if token != mask]
    cases = []
    for number in range(count):
        answer = list[int]()
        while mask not in answer:
            for _ in range(chooser.randint(1, 4)):
                answer += chooser.choices(known, k=chooser.choice([0, 1, 2, 5])) + [mask] * chooser.choice([0, 1, 3, 7])
        length = chooser.randint(3, 24)
        block = chooser.randint(2, 12)
        settings = TextSettings(
            answer_length=length,
            steps=chooser.randint(-(-length // block), length),
            block_length=block,
            temperature=chooser.choice([0.0, 0.0, 1.0]),
            guidance=chooser.choice([0.0, 0.0, 1.5]),
            order=chooser.choice(["low_confidence", "low_confidence", "random"]),
        ).replace(cache=chooser.choice(["none", "prefix", "dual"]), threshold=chooser.choice([None, None, 0.3]))
        cases.append(Filling(chooser.choices(known, k=chooser.randint(1, 9)), answer, settings, number * 977))
    return cases


def same_filling(host: Host, model: Model, case: Filling) -> bool:
    """The host writes what Python writes, in the same steps. Given ids are as they were, and nothing before the tail is
    left open. False where it differs, which it may where a decision had no `ROOM`."""
    mask, given = model.vocabulary.special.mask, np.array(case.answer)
    gaps = Gaps(model.denoiser)
    decoding = complete(
        gaps,
        case.prompt,
        case.settings,
        TextTokens.of(model.vocabulary.special, None),
        answer=case.answer,
        seed=case.seed,
    )
    steps = list(decoding.steps)
    found = host.call("complete", prompt=case.prompt, answer=case.answer, settings=plain(case.settings), seed=str(case.seed))
    assert "error" not in found, (case, found)
    log_probabilities = np.concatenate([step.log_probabilities for step in steps])
    alike = (
        found.get("ids") == decoding.ids[0].tolist()
        and found["positions"] == [step.positions.tolist() for step in steps]
        and found["log_probabilities"] == pytest.approx(log_probabilities.tolist(), abs=TOLERANCE)
    )
    assert alike or gaps.least < ROOM, (case, found)
    ids, known = np.array(found["ids"]), given != mask
    assert (ids[known] == given[known]).all()
    assert (ids[: np.flatnonzero(known).max(initial=-1) + 1] != mask).all()
    return alike


@dataclass(frozen=True)
class Choosing:
    """What may stand in the one hole of an answer, or of each its own."""

    prompt: list[int]
    answers: list[list[int]]
    choices: list[list[int]]
    guidance: float


def choosings(model: Model, count: int, seed: int) -> list[Choosing]:
    """Choices for a hole with something behind it, for one at the end, and for a whole answer."""
    chooser, mask = random.Random(seed), model.vocabulary.special.mask
    known = [token for token in range(model.vocabulary.size) if token != mask]
    cases = []
    for _ in range(count):
        length, before, behind = chooser.randint(1, 5), chooser.choices(known, k=chooser.choice([0, 0, 1, 4])), list[int]()
        if chooser.random() < 0.6:
            behind = chooser.choices(known, k=chooser.randint(1, 4))
        lengths = [chooser.randint(1, length) for _ in range(chooser.randint(1, 5))]
        choices = list({tuple(chooser.choices(known[:256], k=each)) for each in lengths})
        answers = [before + [mask] * length + behind]
        if chooser.random() < 0.3:
            answers = [before + [mask] * len(choice) + behind for choice in choices]
        prompt = chooser.choices(known, k=chooser.randint(1, 9))
        cases.append(Choosing(prompt, answers, [list(ids) for ids in choices], chooser.choice([0.0, 0.0, 1.5])))
    return cases


def same_choice(host: Host, model: Model, case: Choosing) -> bool:
    """The host chooses what Python chooses, and every likelihood is the same. False as of `same_filling`."""
    special = model.vocabulary.special
    stop = frozenset({special.eos, special.eot})
    gaps = Gaps(model.denoiser)
    ours = choose(gaps, case.prompt, case.answers, case.choices, special.mask, stop, guidance=case.guidance)
    settings = {"guidance": case.guidance}
    found = host.call("choose", prompt=case.prompt, answers=case.answers, choices=case.choices, settings=settings)
    assert "error" not in found, (case, found)
    assert [choice["ids"] for choice in found["choices"]] == case.choices
    likelihoods = [choice["log_likelihood"] for choice in found["choices"]]
    alike = (
        (found["index"], found["ids"]) == (ours.index, ours.answer.tolist())
        and likelihoods == pytest.approx(ours.log_likelihood.tolist(), abs=1e-3)
        and [choice["probability"] for choice in found["choices"]] == pytest.approx(ours.probability.tolist(), abs=1e-3)
    )
    assert alike or gaps.least < ROOM, (case, found)
    return alike


def same_everywhere(host: Host, checkpoint: Path, folder: Path, models: int, cases: int) -> None:
    """Over so many random models, with so many answers and so many choices for each."""
    alike = list[bool]()
    for seed in range(models):
        bundle = loud_bundle(checkpoint, folder / str(seed), seed)
        model = load(bundle, device="cpu", threads=1)
        assert "error" not in host.call("load", folder=str(bundle), threads=1)
        alike += [same_filling(host, model, filling) for filling in fillings(model, cases, seed)]
        alike += [same_choice(host, model, choosing) for choosing in choosings(model, cases, seed)]
    assert sum(alike) >= 0.99 * len(alike)


# Recorded kinds of settings that Python alone decodes with: hosts refuse the first thing of these that they meet.
PYTHON_ALONE = {
    "balanced": ['"early_stop"'],
    "fast": ['"early_stop"'],
    "prompt": ['"refresh"', '"prompt"'],
    "lossless": ['"speculative_steps"'],
    "entropy": ['"entropy_bound"'],
    "reference": ["reference"],
}


def same_recording(host: Host, golden: Path, folder: Path) -> None:
    """Every recorded answer of tests/golden/fill is written as our torch model wrote it: places of each step, ids and their
    log probabilities, from bundles that end a text as the case does. What Python alone decodes with is refused by its name.

    No case has a smaller margin than `LEAST`, and adding up in another order differs by less than `TOLERANCE`, a tenth.
    """
    models, left_out = _Models(golden, folder), set()
    cases = json.loads(FILE.read_text(encoding="utf-8"))["cases"]
    for case in cases:
        settings, seed = BASE.replace(**case["settings"]), case["seed"]
        job = {"prompt": case["prompt"], "answer": case["answer"], "settings": plain(settings), "seed": str(seed)}
        if case["name"] in PYTHON_ALONE:
            refusal = host.call("complete", **job)["error"]
            assert any(lacked in refusal for lacked in PYTHON_ALONE[case["name"]]), (case["name"], refusal)
            assert "\n" not in refusal
            left_out.add(case["name"])
            continue
        models.denoiser("onnx", case["model"])  # exports it
        bundle = folder / case["model"].replace("/", "-")
        end_as(bundle, case)
        loaded = host.call("load", folder=str(bundle), threads=1)
        assert "error" not in loaded, loaded
        found = host.call("complete", **job)
        assert found.get("ids") == case["ids"], (case, found)
        assert found["positions"] == [positions for positions, _ in case["steps"]], case
        torch = models.denoiser("torch", case["model"])
        tokens = TextTokens(case["mask"], frozenset(case["stop"]), tuple(case["closing"]))
        steps = complete(torch, case["prompt"], settings, tokens, answer=case["answer"], seed=seed).steps
        log_probabilities = np.concatenate([step.log_probabilities for step in steps])
        assert found["log_probabilities"] == pytest.approx(log_probabilities.tolist(), abs=TOLERANCE), case
        assert case["margin"] >= LEAST
    assert left_out == set(PYTHON_ALONE)
    assert {case["name"] for case in cases} - left_out == {"exact", "few steps", "prefix", "guided", "warm"}
    no_text = "has no tokenizer.json, so it cannot read text; export it with its tokenizer"
    assert host.call("fill", text="a [mask:1]")["error"].endswith(no_text)


def end_as(bundle: Path, case: dict[str, Any]) -> None:
    """Let a bundle's two stop tokens be those of a recorded case, or such that nothing of the case is."""
    about = bundle / "bundle.json"
    content = json.loads(about.read_text(encoding="utf-8"))
    unwritten = next(token for token in range(case["mask"]) if token not in case["ids"])
    eos, eot = (case["stop"] + [unwritten] * 2)[:2]
    content["vocabulary"]["special"] |= {"eos": eos, "eot": eot}
    about.write_text(json.dumps(content), encoding="utf-8")


PARTS = [
    "[mask:3]",
    "[mask:*]",
    "[mask:*4]",
    "[mask",
    "[",
    "]",
    ":",
    "*",
    "\\",
    " ",
    "a",
    "é🍎",
    "0",
    "12",
    "[b:2]",
    "[b]",
    "_",
]
SPECIAL = "<|eot_id|>"


def same_notation(host: Host, count: int) -> None:
    """The host reads every text as Python reads it, or refuses it too, in one line."""
    chooser, refused = random.Random(0), 0
    for _ in range(count):
        parts = chooser.choices([*PARTS, SPECIAL, SPECIAL[:3], SPECIAL[3:]], k=chooser.randint(1, 9))
        found = host.call("partial", text="".join(parts), specials=[SPECIAL])
        try:
            partial = read_partial("".join(parts), [SPECIAL])
        except Error:
            assert "\n" not in found["error"], parts
            refused += 1
        else:
            holes = [[hole.lengths[0], hole.most, hole.space] for hole in partial.holes]
            assert found == {"pieces": list(partial.pieces), "holes": holes}, parts
    assert count // 9 < refused < count * 8 // 9


WORDS = ["a", "red", "heart ", " sum of 4", "é🍎", "\\[", "[mask:1]", " [mask:2]", "[mask:3]", " [mask:*3]", "[mask:*2] ", "."]


def same_texts(host: Host, model: Model, unit: int, count: int, seed: int) -> None:
    """The host fills texts and completes partial answers as Python does: ids, steps, spans and all. unit: bytes of what the
    host counts places of a text in: 1 UTF-8, 2 UTF-16."""
    chooser, refused = random.Random(seed), 0
    for number, case in enumerate(fillings(model, count, seed)):
        settings = case.settings.replace(answer_length=24, steps=chooser.randint(12, 24))
        text, chat = "".join(chooser.choices(WORDS, k=chooser.randint(2, 6))), chooser.random() < 0.5
        job: dict[str, Any] = {"settings": plain(settings), "seed": str(number)}
        job |= {"messages": [{"role": "user", "content": "a b"}], "answer": text} if chat else {"text": text}
        choices = chooser.choice([None, None, ["a", "red heart", "4"], ["yes", "no", "é"]])
        job |= {"choices": choices} if choices else {}
        found = host.call("chat" if chat else "fill", **job)
        try:
            if chat:
                answer = model.chat("a b", settings, answer=text, choices=choices, seed=number)
            else:
                answer = model.fill(text, settings, choices=choices, seed=number)
        except Error:
            assert "\n" not in found["error"], text
            refused += 1
            continue
        steps, result = list(answer), answer.result()
        assert (found.get("ids"), found.get("text")) == (result.ids.tolist(), result.text), (text, settings, found)
        assert found["positions"] == [step.positions.tolist() for step in steps], (text, settings)
        assert found["complete"] == result.complete
        theirs = [(each["text"], each["ids"]) for each in found["choices"]]
        assert theirs == [(each.text, list(each.ids)) for each in result.choices]
        likely = [each.log_likelihood for each in result.choices]
        assert [each["log_likelihood"] for each in found["choices"]] == pytest.approx(likely, abs=1e-3)
        assert len(found["spans"]) == len(result.spans)
        for theirs, ours in zip(found["spans"], result.spans, strict=True):
            encoding = "utf-8" if unit == 1 else "utf-16-le"
            places = [len(result.text[:place].encode(encoding)) // unit for place in (ours.start, ours.stop)]
            assert [theirs["start"], theirs["stop"], theirs["text"], theirs["ids"]] == [*places, ours.text, list(ours.ids)]
            assert [theirs["log_probability"], theirs["mean"]] == pytest.approx([ours.log_probability, ours.mean], abs=1e-3)
    assert refused < count * 3 // 4


class Fills:
    """The tests of a host, its fixture `host`. unit: as of `same_texts`."""

    unit: int

    @pytest.mark.parametrize(
        ("models", "cases"), [(3, 20), pytest.param(20, 100, marks=pytest.mark.slow)], ids=["some", "thousands"]
    )
    def test_random_answers_with_holes_and_choices(
        self, host: Host, tiny_checkpoint: Path, tmp_path: Path, models: int, cases: int
    ) -> None:
        same_everywhere(host, tiny_checkpoint, tmp_path, models, cases)

    def test_holes_are_read_alike(self, host: Host) -> None:
        same_notation(host, 2000)

    @pytest.mark.parametrize("seed", [0, 1])
    def test_texts_are_filled_alike(self, host: Host, tiny_checkpoint: Path, tmp_path: Path, seed: int) -> None:
        """Of a random model, in bytes, and of the packaged one."""
        folder = loud_bundle(tiny_checkpoint, tmp_path, seed) if seed else embedded_bundle()
        assert "error" not in host.call("load", folder=str(folder), threads=1)
        same_texts(host, load(folder, device="cpu", threads=1), self.unit, 25, seed)

    def test_recorded_holes_are_filled_step_by_step(self, host: Host, golden: Path, tmp_path: Path) -> None:
        same_recording(host, golden, tmp_path)
