"""Holes and partial answers, beside the same asked whole: words of captions, facts, sums without a thought and after a given
one, and descriptions of untouched pictures. The model was never trained on holes. It knows nothing of files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mmada_lite.bench.quality.models import EvalModel, Pictures
from mmada_lite.decoding import generate
from mmada_lite.decoding.generate import Decoding, TextTokens
from mmada_lite.decoding.rows import text_prompt, turn_end
from mmada_lite.decoding.score import choose
from mmada_lite.forms.filling import Filling
from mmada_lite.forms.holes import read_partial
from mmada_lite.forms.rows import Row, beginning, forms
from mmada_lite.train import rollouts
from mmada_lite.train.data.arithmetic import Problem, every_held_out, thought_of
from mmada_lite.train.data.concepts import COLOURS, CONCEPTS
from mmada_lite.train.data.texts import DESCRIBE_QUESTIONS, FACTS, WHAT_QUESTIONS, Half, pairs, standard_caption
from mmada_lite.train.data.thoughts import CLOSE, OPEN, answer_of
from mmada_lite.train.intervals import pooled, tally

Report = dict[str, object]
Ask = Callable[[Sequence[str], Pictures | None], list[str]]
Shown = Mapping[str, tuple[Pictures, NDArray[np.int64], NDArray[np.int64]]]  # role -> pictures, concepts, colours
ANY = "[mask:*]"
PARTIAL = re.compile("_begun|_any_length|^describe_holes")  # answers of which a part is given
KINDS = ("sum1", "difference1", "sum2", "difference2")  # whose held-out problems are few enough to ask all


class Blanks:
    """Fills texts and answers of a model. Those whose holes stand at the same places are written together, which changes none
    of them."""

    def __init__(self, model: EvalModel) -> None:
        self.model = model
        self._encode, self._special = model.tokenizer.encode, model.vocabulary.special
        self._tokens = TextTokens.of(self._special, model.tokenizer)
        self._end = turn_end(model.tokenizer, model.vocabulary)

    def hole(self, words: str, before: str = "") -> str:
        """A hole of as many tokens as the words take behind what stands before them."""
        return f"[mask:{len(self._encode(' ' + words if before.endswith(' ') else words))}]"

    def texts(self, texts: Sequence[str]) -> list[str]:
        """Texts with their holes filled."""
        return self._written([text_prompt(self.model.tokenizer, self.model.vocabulary)] * len(texts), texts)

    def answers(self, questions: Sequence[str], given: Sequence[str], codes: NDArray[np.int64] | None = None) -> list[str]:
        """Answers of which a part is given, to questions, each after its picture's codes where there are some."""
        return self._written(rollouts.question_prompts(self.model, questions, codes), given)

    def chosen(
        self, questions: Sequence[str], choices: Sequence[Sequence[str]], codes: NDArray[np.int64] | None = None
    ) -> list[str]:
        """The likeliest of its choices for each question, as the whole answer."""
        found = list[str]()
        for prompt, few in zip(rollouts.question_prompts(self.model, questions, codes), choices, strict=True):
            ids = [self._encode(each) for each in few]
            answer = [self._special.mask] * max(self.model.text.answer_length, *(len(each) + 1 for each in ids))
            best = choose(self.model.denoiser, prompt, [answer], ids, self._special.mask, self._tokens.stop)
            found.append(few[best.index])
        return found

    def _written(self, prompts: Sequence[Sequence[int]], texts: Sequence[str]) -> list[str]:
        written, alike = [""] * len(texts), dict[tuple[object, ...], list[tuple[int, Row]]]()
        for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            tried = self._rows(text)
            if len(tried) == 1:
                alike.setdefault((len(prompt), len(tried[0].ids), *tried[0].holes), []).append((number, tried[0]))
                continue
            filling = Filling(tried, partial(self._decoding, [prompt] * len(tried)), self._tokens.stop)
            for _ in filling.steps:
                pass
            written[number] = self._text(filling.row, filling.ids)
        for group in alike.values():
            for part in (group[first : first + rollouts.ROWS] for first in range(0, len(group), rollouts.ROWS)):
                decoding = self._decoding([prompts[number] for number, _ in part], [row.ids for _, row in part])
                for _ in decoding.steps:
                    pass
                for (number, row), ids in zip(part, decoding.ids, strict=True):
                    written[number] = self._text(row, ids)
        return written

    def _decoding(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Decoding:
        return generate.complete(self.model.denoiser, prompts[: len(answers)], self.model.text, self._tokens, answer=answers)

    def _text(self, row: Row, ids: NDArray[np.int64]) -> str:
        stop, mask = self._tokens.stop, self._special.mask
        return row.read(ids, np.zeros(len(ids)), self.model.tokenizer.decode, stop, mask)[0]

    def _rows(self, text: str) -> list[Row]:
        given, mask = read_partial(text), self._special.mask
        if not given.holes:
            return [beginning(given, self._encode, self.model.text.answer_length, mask)]
        return forms(given, self._encode, self._end, self._special.eos, self.model.text.block_length, mask)


def examined(
    model: EvalModel,
    ask: Ask,
    shown: Shown,
    rng: np.random.Generator,
    most: int,
    half: Half,
    unseen: Sequence[tuple[str, str]] = (),
) -> Report:
    """Right is what is exactly as it should be, given words and all. most: cases of a kind; half: of what is held out; unseen:
    facts (question, answer) in wordings that no training saw."""
    blanks, report = Blanks(model), Report()
    _facts(blanks, ask, report, most)
    if unseen:
        _unseen_facts(blanks, ask, report, unseen[:most])
    _sums(blanks, ask, report, rng, most, half)
    _captions(blanks, report, most, half)
    for role, (pictures, concepts, colours) in shown.items():
        _descriptions(blanks, ask, report, role, pictures, concepts.tolist(), colours.tolist())
    report["partial"] = pooled(report, [name for name in report if PARTIAL.search(name)])
    return report


def _facts(blanks: Blanks, ask: Ask, report: Report, most: int) -> None:
    """All that it was trained on: there are no others."""
    asked = [(wording, reply) for reply, wordings in FACTS for wording in wordings][:most]
    questions, replies = [wording for wording, _ in asked], [reply for _, reply in asked]
    report["fact_whole"] = _same(ask(questions, None), replies)
    report["fact_hole"] = _same(blanks.answers(questions, [blanks.hole(reply) for reply in replies]), replies)
    report["fact_any_length"] = _same(blanks.answers(questions, [ANY] * len(asked)), replies)
    begun = [(question, reply) for question, reply in asked if " " in reply]
    firsts = [reply.split(" ")[0] for _, reply in begun]
    report["fact_begun"] = _same(blanks.answers([question for question, _ in begun], firsts), [reply for _, reply in begun])


def _unseen_facts(blanks: Blanks, ask: Ask, report: Report, asked: Sequence[tuple[str, str]]) -> None:
    """As a hole and asked whole; wordings of one answer are alike."""
    questions, replies = [wording for wording, _ in asked], [reply for _, reply in asked]
    numbers = {reply: number for number, reply in enumerate(dict.fromkeys(replies))}
    filled = blanks.answers(questions, [blanks.hole(reply) for reply in replies])
    for way, found in (("whole", ask(questions, None)), ("hole", filled)):
        right = [one == other for one, other in zip(found, replies, strict=True)]
        report[f"unseen_fact_{way}"] = tally(right, "fact", [numbers[reply] for reply in replies])


def _sums(blanks: Blanks, ask: Ask, report: Report, rng: np.random.Generator, most: int, half: Half) -> None:
    """Held-out problems, whose results the model writes behind a thought alone."""
    problems = _drawn([problem for kind in KINDS for problem in every_held_out(kind, half)], rng, most)
    questions, results = [f"what is {p}?" for p in problems], [str(p.answer) for p in problems]
    report["sum_whole"] = _same([answer_of(reply) for reply in ask(questions, None)], results)
    report["sum_hole"] = _same(blanks.answers(questions, [blanks.hole(result) for result in results]), results)
    before = [f"{OPEN} {thought_of(p)} {CLOSE} " for p in problems]
    both = list(zip(before, results, strict=True))
    given = [thought + blanks.hole(result, thought) for thought, result in both]
    report["sum_hole_after_thought"] = _same(blanks.answers(questions, given), [thought + result for thought, result in both])


def _drawn(problems: Sequence[Problem], rng: np.random.Generator, most: int) -> list[Problem]:
    """All of them, or as many as are wanted."""
    return [problems[number] for number in rng.permutation(len(problems))[:most]]


def _captions(blanks: Blanks, report: Report, most: int, half: Half) -> None:
    """Of things on backgrounds that were never drawn together: the words that the others determine, and two as one hole."""
    captions = [standard_caption(CONCEPTS[i], colour) for i, colour in pairs(True, half)][:most]
    for name, first, last in (("article", -3, -2), ("on", -4, -3), ("background", -1, None), ("on_a", -4, -2)):
        cases = [_parted(caption, first, last) for caption in captions]
        known = [before + blanks.hole(word, before) + after for before, word, after in cases]
        report[f"caption_{name}_hole"] = _same(blanks.texts(known), captions)
        if name in ("background", "on_a"):
            found = blanks.texts([before + ANY + after for before, _, after in cases])
            report[f"caption_{name}_any_length"] = _same(found, captions)


def _parted(caption: str, first: int, last: int | None) -> tuple[str, str, str]:
    """A caption before, in and behind its words `first` to `last`."""
    words = caption.split(" ")
    behind = words[last:] if last is not None else []
    return " ".join(words[:first]) + " ", " ".join(words[first:last]), " ".join(["", *behind])


def _descriptions(
    blanks: Blanks, ask: Ask, report: Report, role: str, pictures: Pictures, concepts: list[int], colours: list[int]
) -> None:
    """What is seen, whole and as holes of a caption whose other words are given."""
    things = [CONCEPTS[concept].phrase.split(" ", 1) for concept in concepts]
    named = [(" ".join(["", *words[:-1]]).strip(), words[-1]) for words in things]  # article, where there is one, and name
    captions = [standard_caption(CONCEPTS[c], COLOURS[k]) for c, k in zip(concepts, colours, strict=True)]
    codes, questions = blanks.model.encode(pictures), [DESCRIBE_QUESTIONS[0]] * len(captions)
    report[f"describe_whole_{role}"] = _same(ask(questions, pictures), captions)
    both, any_length = list[str](), list[str]()
    for (article, name), colour, caption in zip(named, colours, captions, strict=True):
        before = f"{article} " if article else ""
        middle = caption[len(before) + len(name) :].rsplit(COLOURS[colour], 1)[0]
        both.append(f"{before}{blanks.hole(name, before)}{middle}{blanks.hole(COLOURS[colour], middle)} background")
        any_length.append(f"{before}[mask:*4]{middle}{COLOURS[colour]} background")
    report[f"describe_holes_{role}"] = _same(blanks.answers(questions, both, codes), captions)
    report[f"describe_thing_any_length_{role}"] = _same(blanks.answers(questions, any_length, codes), captions)
    begun = [caption.rsplit(" ", 2)[0] for caption in captions]
    report[f"describe_begun_{role}"] = _same(blanks.answers(questions, begun, codes), captions)
    what = [" ".join(part for part in pair if part) for pair in named]
    report[f"what_whole_{role}"] = _same(ask([WHAT_QUESTIONS[0]] * len(what), pictures), what)
    holes = [blanks.hole(words) for words in what]
    report[f"what_hole_{role}"] = _same(blanks.answers([WHAT_QUESTIONS[0]] * len(what), holes, codes), what)


def examined_choices(model: EvalModel, ask: Ask, shown: Shown, rng: np.random.Generator, most: int, half: Half) -> Report:
    """The likeliest of a few answers, beside the same asked whole: a fact among three others, a result among near ones, the
    background among all, yes or no. most: cases of a kind."""
    report, blanks = Report(), Blanks(model)
    asked = [(wording, reply) for reply, wordings in FACTS for wording in wordings][:most]
    replies = [reply for reply, _ in FACTS]
    questions, wanted = [wording for wording, _ in asked], [reply for _, reply in asked]
    others = [[str(o) for o in rng.permutation([r for r in dict.fromkeys(replies) if r != reply])[:3]] for reply in wanted]
    choices = [[reply, *three] for reply, three in zip(wanted, others, strict=True)]
    report["fact_choice_of_4"] = _same(blanks.chosen(questions, choices), wanted)
    problems = _drawn(every_held_out("sum2", half), rng, most)
    results = [[str(p.answer + near) for near in (0, -1, 1, 10)] for p in problems]
    chosen = blanks.chosen([f"what is {p}?" for p in problems], results)
    report["sum_choice_of_4"] = _same(chosen, [str(p.answer) for p in problems])
    for role, (pictures, concepts, colours) in shown.items():
        codes, grounds = model.encode(pictures), [COLOURS[colour] for colour in colours]
        question = ["what colour is the background?"] * len(grounds)
        report[f"background_whole_{role}"] = _same(ask(question, pictures), grounds)
        report[f"background_choice_of_10_{role}"] = _same(blanks.chosen(question, [COLOURS] * len(grounds), codes), grounds)
        same = rng.random(len(grounds)) < 0.5
        about = np.where(same, concepts, (concepts + rng.integers(1, len(CONCEPTS), size=len(grounds))) % len(CONCEPTS))
        question, right = [f"is this {CONCEPTS[c].phrase}?" for c in about], ["yes" if yes else "no" for yes in same]
        report[f"yes_no_whole_{role}"] = _same([answer_of(reply) for reply in ask(question, pictures)], right)
        report[f"yes_no_choice_{role}"] = _same(blanks.chosen(question, [("yes", "no")] * len(right), codes), right)
    return report


def _same(got: Sequence[str], wanted: Sequence[str]) -> dict[str, float | str]:
    return tally(one == other for one, other in zip(got, wanted, strict=True))
