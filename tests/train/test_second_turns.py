"""Laws of what is said besides: second turns go on from the first, facts come in other wordings of which a tenth is held out,
questions of yes and no are half no, capitals change nothing but letters, two things without places are named in their order."""

import re
from collections import Counter

import numpy as np
import pytest

from mmada_lite.decoding.rows import chat_ids
from mmada_lite.knowledge import in_lower_case
from mmada_lite.train.data import scenes, texts, turns
from mmada_lite.train.data.arithmetic import Problem, problem_in, response_to, true_share
from mmada_lite.train.data.concepts import COLOURS, CONCEPT_NAMES, CONCEPTS, NUMBERS, PAIRED, SMALL
from mmada_lite.train.data.conversations import KEPT_THOUGHT
from mmada_lite.train.data.knowledge import knows
from mmada_lite.train.data.layouts import Layout
from mmada_lite.train.data.scenes import GRIDS, draw_layout, layout_held_out, together_caption
from mmada_lite.train.data.sequences import PROBLEM_SHARES, Sequences
from mmada_lite.train.data.texts import FACTS, half_of, typed
from mmada_lite.train.data.thoughts import CLOSE, answer_of, split_thought
from mmada_lite.train.data.turns import MOST, TURNS, Draws, Turn, and_thing, two_about_one, two_problems

HELD_OUT = {question for question, _ in texts.fact_wordings(held_out=True)}
AND = re.compile(r"(?:and )?(plus|minus|\+|-) (\d+)\?")


def draws(seed: int) -> Draws:
    return Draws(np.random.default_rng(seed), np.random.default_rng(seed + 1000))


def goes_on(first: Turn, second: Turn) -> Problem:
    """The problem that a second turn stands for, by the result of the first."""
    match = AND.fullmatch(second.question.lower())
    assert match is not None, second
    return Problem(int(answer_of(first.response)), "+" if match[1] in ("plus", "+") else "-", int(match[2]))


@pytest.mark.parametrize("held_out", [False, True])
def test_a_second_problem_begins_with_the_result_of_the_first(held_out: bool) -> None:
    signs, results = set(), set()
    for seed in range(300):
        first, second = two_problems(held_out, draws(seed), "test")
        given, problem = problem_in(first.question), goes_on(first, second)
        assert given is not None
        assert response_to(given) == first.response
        assert second.response == response_to(problem)
        assert given.held_out == problem.held_out == held_out
        assert not held_out or {half_of(given.split_text), half_of(problem.split_text)} == {"test"}
        assert problem.first <= MOST
        signs.add(problem.sign)
        results.add(problem.first)
    assert signs == {"+", "-"}
    assert len(results) > 100


def test_what_is_asked_of_it_is_what_is_known_of_the_thing() -> None:
    """ "it" is the thing of the picture: with its name in that place the question is one of the facts."""
    facts = {question: answer for answer, questions in FACTS for question in questions}
    for name, known in turns.OF_IT.items():
        for question, answer in known:
            assert facts[question.replace(" it ", f" {CONCEPTS[NUMBERS[name]].phrase} ")] == answer
    for name, colour in texts.COLOUR_OF.items():
        question = f"what colour is {CONCEPTS[NUMBERS[name]].phrase}?"
        assert facts.get(question, colour) == colour
        asked = [and_thing(name, np.random.default_rng(seed)) for seed in range(60)]
        of_colour = {turn.response for turn in asked if turn and turn.question in turns.COLOUR_OF_IT}
        assert of_colour == {colour}
        assert {turn.response for turn in asked if turn} == of_colour | {a for _, a in turns.OF_IT.get(name, ())}
    assert and_thing("key", np.random.default_rng(0)) is None


def test_half_of_the_talks_about_a_picture_leave_it_for_one_turn() -> None:
    concept, about, elsewhere = CONCEPTS[NUMBERS["key"]], set[str](), Counter[str]()
    for seed in range(2000):
        about.add(texts.picture_question(concept, "red", np.random.default_rng(seed))[0])
    for seed in range(400):
        first, second = two_about_one("single", concept, "red", PROBLEM_SHARES, draws(seed))
        elsewhere[f"{first.question in about}, {second.question in about}"] += 1
        assert two_about_one("and_thing", concept, "red", PROBLEM_SHARES, draws(seed))[1].question in about
    assert 150 < elsewhere["True, True"] < 250
    assert 60 < elsewhere["False, True"] < 140
    assert 60 < elsewhere["True, False"] < 140
    assert not elsewhere["False, False"]


def told(sequences: Sequences, row: np.ndarray) -> list[str]:
    """What is said in a conversation, message by message."""
    special, inside = sequences.vocabulary.special, list[int]()
    said = list[str]()
    for token in row[row.tolist().index(special.bos) + 1 :].tolist():
        if token == special.start_header:
            inside = []
        elif token in (special.eot, special.eos):
            said += [sequences.tokenizer.decode(inside)] if inside else []
            inside = []
        elif token != special.end_header:
            inside.append(token)
    return [text.partition("\n")[2] for text in said]


def test_conversations_are_kept_as_chat_keeps_them(toy_sequences: Sequences) -> None:
    """Every row is the runtime's own of its messages; the second answer alone is hidden; what is said is true; nothing that is
    held out is said. Of the first answers some are kept with their thought, as `chat` keeps them."""
    rng, special = np.random.default_rng(3), toy_sequences.vocabulary.special
    kept, thoughts, kinds = 0, 0, Counter[str]()
    for _ in range(250):
        rows = toy_sequences.turn(2, rng)
        for row, tokens in zip(rows.targets, rows.tokens, strict=True):
            start = row.tolist().index(special.bos)
            question, said, again, answer = told(toy_sequences, row)
            messages = [("user", question), ("assistant", said), ("user", again)]
            before = chat_ids(
                toy_sequences.tokenizer,
                toy_sequences.vocabulary,
                [{"role": role, "content": text} for role, text in messages],
            )
            assert row[start : start + len(before)].tolist() == before
            assert (tokens[: start + len(before)] == row[: start + len(before)]).all()
            assert row[start + len(before) :].tolist()[: len(toy_sequences.tokenizer.encode(answer))] == (
                toy_sequences.tokenizer.encode(answer)
            )
            asked = again.lower()
            assert not {question.lower(), asked, asked.removesuffix(".")} & HELD_OUT
            kinds[("scene" if "<think>" in answer else "single") if start else "text"] += 1
            if (problem := problem_in(question)) is not None:
                assert not problem.held_out
                assert answer_of(said) == str(problem.answer)
                kept, thoughts = kept + (CLOSE in said), thoughts + 1
            if AND.fullmatch(asked):
                problem = goes_on(Turn(question, said), Turn(again, answer))
                assert answer == response_to(problem)
                assert not problem.held_out
            elif (problem := problem_in(again)) is not None:
                parts = split_thought(answer)
                assert not problem.held_out
                assert parts is not None
                assert true_share(problem, parts.thought) == 1.0
                assert parts.answer == str(problem.answer)
    assert KEPT_THOUGHT == 0.5
    assert 0.35 < kept / thoughts < 0.65
    assert min(kinds.values()) > 40
    assert sum(TURNS.values()) == pytest.approx(1.0)


def test_rows_of_a_held_out_side_ask_problems_of_it_alone(toy_sequences: Sequences) -> None:
    of = toy_sequences.material
    exam = Sequences(toy_sequences.tokenizer, toy_sequences.vocabulary, of.singles, of.several, held_out=True)
    for seed in range(20):
        question, _, _ = exam.conversations.second_turn("and_problem", "lower", True, draws(seed))
        first = problem_in(toy_sequences.tokenizer.decode(question))
        assert first is not None
        assert first.held_out
        prompt, _ = exam.conversations.to_fill("sum", "sum2", np.random.default_rng(seed))
        problem = problem_in(toy_sequences.tokenizer.decode(prompt))
        assert problem is not None
        assert problem.held_out


def test_wordings_of_facts_are_split_and_one_question_has_one_answer() -> None:
    trained, unseen = (texts.fact_wordings(side) for side in (False, True))
    plain = {question for _, questions in FACTS for question in questions}
    assert not {q for q, _ in trained} & {q for q, _ in unseen}
    assert not (plain & {q for q, _ in trained + unseen})
    assert 0.07 < len(unseen) / len(trained + unseen) < 0.13
    assert all(texts.held_out(q) for q, _ in unseen)
    assert not any(texts.held_out(q) for q, _ in trained)
    halves = [set(texts.fact_wordings(True, half)) for half in ("validation", "test")]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == set(unseen)
    assert min(map(len, halves)) > 100
    answers = dict(trained + unseen)
    assert len(answers) == len(trained + unseen)
    known = {answer for answer, _ in FACTS} | set(texts.COLOUR_OF.values())
    assert set(answers.values()) <= known
    for answer, questions in FACTS:  # a frame around a fact changes no answer
        assert all(answers.get(frame.format(q), answer) == answer for q in questions for frame in texts.FRAMES)


def test_no_wording_that_is_held_out_is_trained(toy_sequences: Sequences) -> None:
    rng = np.random.default_rng(0)
    drawn = Counter(texts.fact(rng)[0] for _ in range(4000))
    assert not set(drawn) & HELD_OUT
    plain = {question for _, questions in FACTS for question in questions}
    assert 1850 < sum(count for question, count in drawn.items() if question in plain) < 2150
    for task in ("fact", "fill", "turn"):
        for _ in range(120):
            for row in toy_sequences.tasks[task](4, rng).targets:
                said = {text.lower().strip() for text in told(toy_sequences, row)}
                assert not (said | {text.removesuffix(".") for text in said}) & HELD_OUT


def test_questions_of_yes_and_no_are_half_no_and_ask_for_any_other_thing() -> None:
    rng, concept, answers, others = np.random.default_rng(0), CONCEPTS[NUMBERS["key"]], Counter[str](), set[str]()
    phrases = {each.phrase: each for each in CONCEPTS}
    for _ in range(3000):
        question, response = texts.yes_no_question(concept, rng)
        seen, answer = split_thought(response) or ("", "")
        assert seen == concept.phrase
        (asked,) = (p for template in texts.YES_NO_QUESTIONS[1:] for p in phrases if template.format(p) == question)
        assert (answer == "yes") == (asked == concept.phrase)
        answers[answer] += 1
        others |= {asked} - {concept.phrase}
    assert 1400 < answers["no"] < 1600
    assert others == set(phrases) - {concept.phrase}
    assert len(others) == len(CONCEPTS) - 1 == 63
    shares = Counter(answer_of(texts.picture_question(concept, "red", rng)[1]) in ("yes", "no") for _ in range(3000))
    assert 0.16 < shares[True] / 3000 < 0.22


def test_capitals_change_letters_and_end_a_sentence() -> None:
    assert [typed("what is this?", how) for how in texts.TYPED] == [
        "what is this?",
        "What is this?",
        "What Is This?",
        "WHAT IS THIS?",
    ]
    assert [typed("a cat on red", how) for how in texts.TYPED] == [
        "a cat on red",
        "A cat on red.",
        "A Cat On Red",
        "A CAT ON RED.",
    ]
    assert typed("47 + 85 =", "sentence") == "47 + 85 ="
    for answer, questions in FACTS:
        for text in (answer, *questions):
            for how in texts.TYPED:
                assert in_lower_case(typed(text, how)) in (text, text + ".")
    assert sum(texts.TYPED.values()) == pytest.approx(1.0)
    assert texts.TYPED["lower"] > 0.8  # what is typed in capitals is one in eight


def test_capitals_are_text_that_the_tokenizer_reads(toy_sequences: Sequences) -> None:
    encode, decode = toy_sequences.tokenizer.encode, toy_sequences.tokenizer.decode
    for text in ("A Key On A Pink Background", "WHAT IS 47 + 85?", "Which colour is it."):
        assert decode(encode(text)) == text


def test_two_things_without_places_are_named_from_the_left(toy_sequences: Sequences) -> None:
    assert together_caption(Layout(1, 2, ("cat", "apple")), "orange") == "a cat and an apple on an orange background"
    assert together_caption(Layout(1, 2, ("apple", "cat")), None) == "an apple and a cat"
    of, found, relations = toy_sequences.material, 0, 0
    rng, shown = np.random.default_rng(5), {tuple(codes): n for n, codes in enumerate(of.several.codes.tolist())}
    offset = toy_sequences.vocabulary.image_code_offset
    for _ in range(150):
        for row in toy_sequences.pair(4, rng).targets:
            layout, _ = of.seen_several(shown[tuple((row[-65:-1] - offset).tolist())])
            caption = toy_sequences.tokenizer.decode([t for t in row[:-66].tolist() if t > 11]).lower()
            phrases = [CONCEPTS[NUMBERS[str(name)]].phrase for name in layout.names]
            relations += any(f" {relation} " in caption for relation in scenes.RELATIONS)
            if " and " in caption:
                found += 1
                assert layout.columns == 2
                assert caption.startswith(" and ".join(phrases))
                assert not layout_held_out(layout)
    assert 0.25 < found / relations < 0.45  # half of those side by side, which are half


def test_pictures_of_two_may_show_more_than_those_of_four() -> None:
    rng, names = np.random.default_rng(0), set[str]()
    for number in range(600):
        layout = draw_layout(GRIDS[1 + number % 2], False, rng, among=PAIRED)
        assert not layout_held_out(layout)
        names |= {name for _, name in layout.named}
    assert names == {CONCEPT_NAMES[n] for n in PAIRED}
    assert set(SMALL) < set(PAIRED)
    assert len(set(PAIRED)) == len(PAIRED)


def test_what_is_known_is_every_word_that_is_asked() -> None:
    known, rng = knows(), np.random.default_rng(1)
    words = set(known["words"])
    assert (known["turns"], known["case"]) == (2, "lower")
    for seed in range(300):
        colour = COLOURS[seed % len(COLOURS)]
        concept = CONCEPTS[seed % len(CONCEPTS)]
        spoken = [*two_problems(False, draws(seed)), *two_about_one("and_thing", concept, colour, PROBLEM_SHARES, draws(seed))]
        spoken += [turns.text_turn(PROBLEM_SHARES, rng), Turn(*texts.fact(rng)), Turn(*texts.yes_no_question(concept, rng))]
        for turn in spoken:
            assert set(re.findall(r"[^\W\d_]+", " ".join(turn).replace("think", ""))) <= words
    assert {word for question in HELD_OUT for word in re.findall(r"[^\W\d_]+", question)} <= words
