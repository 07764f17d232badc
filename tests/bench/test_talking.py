"""Laws of the exams of second turns, of capitals, of things that a picture grows by and of "is this a ...?": what is asked is
what the exam says, and what is right counts. The model is planted."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import SIDE, discs

from mmada_lite.bench.quality import context as quality_context
from mmada_lite.bench.quality import conversation, several, wording
from mmada_lite.bench.quality.context import EvalContext
from mmada_lite.bench.quality.models import open_model
from mmada_lite.bench.quality.tasks import TASKS
from mmada_lite.knowledge import in_lower_case
from mmada_lite.train.data.arithmetic import Problem
from mmada_lite.train.data.concepts import CONCEPT_NAMES, CONCEPTS, SMALL
from mmada_lite.train.data.texts import COLOUR_OF, fact_wordings, on_side
from mmada_lite.train.data.thoughts import answer_of
from mmada_lite.train.data.turns import COLOUR_OF_IT
from mmada_lite.train.intervals import clusters_of
from mmada_lite.vocabulary import Tokenizer


@dataclass
class Planted:
    """A model that is never asked: its tokenizer reads, its pictures are their own codes, a tone each."""

    tokenizer: Tokenizer
    as_written: Tokenizer
    decoded: list[tuple[int, int]] = field(default_factory=list)

    def encode(self, pictures: np.ndarray) -> np.ndarray:
        """The grey of the middle of each code's square."""
        return pictures[:, 4::8, 4::8, 0].reshape(len(pictures), -1).astype(np.int64)

    def decode(self, codes: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        self.decoded.append(grid)
        tones = codes.reshape(len(codes), *grid, 1).astype(np.uint8)
        return tones.repeat(8, axis=1).repeat(8, axis=2).repeat(3, axis=3)


@pytest.fixture
def context(toy_tokenizer: Path) -> EvalContext:
    small, written = (Tokenizer.from_file(toy_tokenizer, lower_case=lower) for lower in (True, False))
    icons = {role: discs()[:, :, ::4, ::4] for role in ("train", "validation")}
    return EvalContext(Planted(small, written), lambda cells: np.zeros(len(cells), np.int64), icons, 64)  # type: ignore[arg-type]


def test_every_other_thing_is_asked_about_as_often_as_yes(context: EvalContext, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()
    monkeypatch.setattr(quality_context, "compose", lambda *_: np.zeros((2, 2, 3), np.uint8))
    monkeypatch.setattr(EvalContext, "ask", lambda _, questions, pictures: asked.extend(questions) or ["no"] * len(questions))
    report: Any = TASKS["yes_no"](replace(context, count=2 * 64 * 63))
    assert report["is_yes_validation"]["total"] == report["is_no_validation"]["total"] == 64 * 63
    assert (report["is_yes_validation"]["right"], report["yes_no_validation"]["share"]) == (0, 0.5)
    icons = {answer: clusters_of(report[f"is_{answer}_validation"]) for answer in ("yes", "no")}
    assert set(Counter(icons["yes"]).values()) == set(Counter(icons["no"]).values()) == {63}  # every icon, both ways
    about = Counter(asked)
    assert min(about.values()) > 90
    assert max(about.values()) < 170
    things = np.arange(len(asked)) % 64
    wrong = [n for n, question in enumerate(asked) if question != f"is this {CONCEPTS[things[n]].phrase}?"]
    assert len(wrong) == 64 * 63
    apart = Counter((CONCEPT_NAMES.index(_thing(asked[n])) - int(things[n])) % 64 for n in wrong)
    assert set(apart) == set(range(1, 64))
    assert set(apart.values()) == {64}  # none of the others more often


def _thing(question: str) -> str:
    phrase = question.removeprefix("is this ").removesuffix("?")
    return next(concept.name for concept in CONCEPTS if concept.phrase == phrase)


def test_a_picture_grows_at_each_edge_by_what_its_caption_names(context: EvalContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearer half is given; what is drawn beyond it, and nothing else, is what the judge sees."""
    captions = list[str]()
    monkeypatch.setattr(several.rollouts, "caption_prompts", lambda _, texts: captions.extend(texts) or [[]] * len(texts))
    known = list[np.ndarray]()

    def drawn(_: object, __: object, codes: np.ndarray, unknown: np.ndarray) -> np.ndarray:
        known.extend(unknown)
        new = np.array([SMALL.index(_concept(caption)) for caption in captions])
        return np.where(unknown, 200 + new[:, None, None], codes)

    monkeypatch.setattr(several, "fill", drawn)

    def judge(cells: np.ndarray) -> np.ndarray:
        assert cells.shape[1:] == (64, 64, 3)
        tones = cells[:, 32, 32, 0].astype(int) - 200
        return np.array([SMALL[tone] if 0 <= tone < len(SMALL) else -1 for tone in tones])

    report: Any = several.growing(replace(context, classify=judge))
    assert (report["new_thing"]["right"], report["new_thing"]["total"]) == (32, 32)
    assert [report[f"new_thing_{edge}"]["total"] for edge in several.EDGES] == [8] * 4
    assert {CONCEPT_NAMES[_concept(caption)] for caption in captions} <= {CONCEPT_NAMES[n] for n in SMALL}
    above, right, below, left = (known[turn] for turn in range(4))
    assert above[:4].all() and not above[4:].any()  # noqa: PT018
    assert right[:, 4:].all() and not right[:, :4].any()  # noqa: PT018
    assert (below == above[::-1]).all()
    assert (left == right[:, ::-1]).all()
    assert set(context.model.decoded) == {(12, SIDE), (SIDE, 12)}  # type: ignore[attr-defined]


def _concept(caption: str) -> int:
    return next(n for n, concept in enumerate(CONCEPTS) if caption.startswith(f"{concept.phrase} on"))


def test_two_things_are_found_in_either_grid_and_any_order(context: EvalContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted drawings: at once side by side, whatever was asked, and after a thought one above the other in the other order;
    the judge reads tones."""
    captions, thoughts = list[str](), list[str]()
    monkeypatch.setattr(several.rollouts, "caption_to_thought_prompts", lambda _, texts: captions.extend(texts) or [])
    monkeypatch.setattr(several.rollouts, "answers", lambda *_: [f"<think> {text} </think>" for text in captions])
    monkeypatch.setattr(several.rollouts, "caption_prompts", lambda *_: ["once"])
    monkeypatch.setattr(several.rollouts, "thought_to_image_prompts", lambda *_: thoughts.append("") or ["thought"])
    context = replace(context, model=replace_model(context), classify=lambda cells: cells[:, 32, 32, 0].astype(np.int64))

    def pictures(_: EvalContext, prompts: Sequence[str], seed: int) -> np.ndarray:
        drawn = np.zeros((len(captions), 64, 64, 3), np.uint8)
        for picture, caption in zip(drawn, captions, strict=True):
            first, second = (next(n for n, c in enumerate(CONCEPTS) if c.phrase == part) for part in _parts(caption))
            if prompts == ["once"]:
                picture[:, :32], picture[:, 32:] = first, second
            else:
                picture[:32], picture[32:] = second, first if "on " in caption else second
        return drawn

    monkeypatch.setattr(EvalContext, "pictures", pictures)
    report: Any = several.two_things(context)
    assert (report["both"]["share"], report["both"]["total"]) == (1, 32)
    assert (report["both_plain_after_thought"]["right"], report["both_on_colour_after_thought"]["right"]) == (0, 16)
    assert report["thought_names_both"]["share"] == 1
    assert report["background"]["total"] == 16
    assert sum(" background" in caption for caption in captions) == 16


def replace_model(context: EvalContext) -> Any:
    model: Any = context.model
    model.text = None
    return model


def _parts(caption: str) -> list[str]:
    return caption.split(" on ")[0].split(" and ")


def test_capitals_are_asked_as_written_and_as_the_runtime_reads_them(
    context: EvalContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted model that knows lower case alone: it is right where what it reads has no capitals."""
    read = list[str]()

    def kinds(_: EvalContext) -> dict[str, wording.Kind]:
        def right(own: EvalContext, texts: Sequence[str]) -> list[bool]:
            seen = [own.model.tokenizer.decode(own.model.tokenizer.encode(text)) for text in texts]
            read.extend(seen)
            return [text == in_lower_case(text) for text in seen]

        return {"fact": wording.Kind(["what is a cat?", "hello"], "fact", [0, 1], right)}

    monkeypatch.setattr(wording, "_kinds", kinds)
    report: Any = wording.capitals(context)
    shares = {name: report[name]["share"] for name in report if "share" in report[name]}
    assert (shares["lower"], shares["sentence_raw"], shares["upper_raw"]) == (1, 0, 0)
    assert (shares["sentence_runtime"], shares["upper_runtime"]) == (1, 1)
    assert report["upper_raw_less_lower"]["mean"] == -100
    assert report["upper_runtime_less_lower"]["mean"] == 0
    assert {"What is a cat?", "Hello.", "WHAT IS A CAT?", "hello."} <= set(read)
    assert read.count("what is a cat?") == 3  # once for lower case, and again beside what a full stop changes, both times
    alike = replace(context, model=replace_tokenizer(context))
    assert not [name for name in wording.capitals(alike) if "runtime" in name]


def replace_tokenizer(context: EvalContext) -> Any:
    return Planted(context.model.as_written, context.model.as_written)


def test_a_second_turn_asks_the_same_behind_a_true_first_one(context: EvalContext, monkeypatch: pytest.MonkeyPatch) -> None:
    conversations = list[conversation.Asked]()

    def replies(_: EvalContext, asked: Sequence[conversation.Asked]) -> list[str]:
        """Right as a first turn, and behind facts."""
        conversations.extend(asked)
        knows = [not each.before or any(each.before[0] == turn for turn in facts) for each in asked]
        return [each.wanted if known else "" for each, known in zip(asked, knows, strict=True)]

    facts = [(wording, reply) for reply, wordings in conversation.FACTS for wording in wordings] + fact_wordings(False)
    for referring in ("_referring_problems", "_referring_things"):
        monkeypatch.setattr(conversation, referring, lambda *_: [])
    monkeypatch.setattr(conversation, "replies_to", replies)
    report: Any = conversation.turns(context)
    assert {report[f"first_{kind}"]["total"] for kind in conversation.KINDS} == {16}
    assert report["first"]["share"] == 1
    assert report["second"]["right"] == 6 * len(conversation.KINDS)  # of each kind 16, a third behind facts
    assert report["second_over_first"]["mean"] == pytest.approx(6 / 16, abs=1e-3)
    second = [each for each in conversations if each.before]
    firsts = {(each.question, each.wanted) for each in conversations if not each.before}
    assert {(each.question, each.wanted) for each in second} == firsts
    behind = Counter(_kind(each.before[0]) for each in second if "<think>" in each.before[0][1])
    assert behind["sum"] == 5 * len(conversation.KINDS)
    for each in second:
        question, answer = each.before[0]
        assert question != each.question
        if each.background and (question, answer) not in facts and _kind((question, answer)) != "sum":
            assert answer == each.background  # what else it says of the picture would tell
    bare = [each for each in second if _kind(each.before[0]) == "sum" and "<think>" not in each.before[0][1]]
    assert len(bare) == behind["sum"]
    assert report["second_behind_bare_answers"]["total"] == sum(behind.values())  # yes and no stand behind a thought too


def test_what_refers_to_a_first_turn_goes_on_from_it(context: EvalContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both problems are held out, in the half that is asked; a thing is asked about behind its name."""
    conversations = list[conversation.Asked]()

    def right(_: EvalContext, asked: Sequence[conversation.Asked]) -> list[str]:
        conversations.extend(each for each in asked if each.before)
        return [each.wanted for each in asked]

    monkeypatch.setattr(conversation, "replies_to", right)
    report: Any = conversation.turns(context)
    assert report["referring"] == report["referring"] | {"share": 1, "total": 32}
    problems = [
        each for each in conversations if each.question.removeprefix("and ").split(" ")[0] in ("plus", "minus", "+", "-")
    ]
    assert len(problems) == report["second_and_problem"]["total"] == 16
    for each in problems:
        first, number = answer_of(each.before[0][1]), int("".join(filter(str.isdigit, each.question)))
        sign = "-" if "minus" in each.question or "-" in each.question else "+"
        assert int(answer_of(each.wanted)) == int(first) + (number if sign == "+" else -number)
        assert on_side(Problem(int(first), sign, number).split_text, True, context.half)
    things = [each for each in conversations if each.question in COLOUR_OF_IT]
    named = {concept.phrase: concept.name for concept in CONCEPTS}
    assert things
    assert all(each.wanted == COLOUR_OF[named[each.before[0][1]]] and each.picture is not None for each in things)


def _kind(turn: conversation.Turn) -> str:
    return "sum" if any(character.isdigit() for character in turn[0]) else "other"


def test_a_conversation_is_laid_in_ids_as_the_runtime_lays_it(
    toy_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture, the first question, its answer with the thought, the second question."""
    from toys import write_place

    import mmada_lite

    place = write_place(tmp_path, toy_tokenizer)
    model, runtime = open_model(place / "checkpoint"), mmada_lite.load(place / "bundle", device="cpu")
    prompts = list[list[int]]()
    monkeypatch.setattr(
        conversation.rollouts, "answers", lambda _, rows, settings, seed: prompts.extend(rows) or [""] * len(rows)
    )
    picture = np.full((64, 64, 3), 90, np.uint8)
    picture[16:48, 16:48] = 200
    before = (("what is 1 + 2?", "<think> 1+2+0=3 </think> 3"),)
    asked = [conversation.Asked("what is this?", "", picture, before=before), conversation.Asked("hello", "")]
    context = EvalContext(model, lambda cells: np.zeros(len(cells), np.int64), {}, 4)
    conversation.replies_to(context, asked)
    said = [
        {"role": "user", "content": before[0][0]},
        {"role": "assistant", "content": before[0][1]},
        {"role": "user", "content": "what is this?"},
    ]
    laid = list[list[int]]()
    monkeypatch.setattr(type(runtime._writer), "whole", lambda _, ids, *rest: laid.append(list(ids)))
    monkeypatch.setattr(type(runtime), "_answered", lambda *_: None)
    from PIL import Image

    runtime.ask(Image.fromarray(picture), said)
    runtime.chat("hello")
    assert prompts == laid
    assert answer_of(before[0][1]) == "3"
