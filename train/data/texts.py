"""The sentences of the small model: captions of pictures, questions about pictures with their answers, and plain facts; and
the split that holds some out, by a real hash of the text. Knows nothing of tokens, pixels or models.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import cache
from typing import Literal

import numpy as np

from mmada_lite.train.data.concepts import COLOURS, CONCEPTS, Concept
from mmada_lite.train.data.thoughts import with_thought

HELD_OUT_SHARE = 10  # one in ten
Typed = Literal["lower", "sentence", "title", "upper"]
Half = Literal["validation", "test"]  # of what is held out: models are chosen by the one, the card is measured on the other

TYPED: dict[Typed, float] = {"lower": 0.88, "sentence": 0.08, "title": 0.02, "upper": 0.02}  # shares of what people write

CAPTIONS = (
    "{a_concept} on {a_colour} background",
    "{a_concept} on {colour}",
    "{concept}, {colour} background",
    "a picture of {a_concept} on {a_colour} background",
    "{colour} background with {a_concept}",
)
CAPTIONS_WITHOUT_COLOUR = ("{a_concept}", "{concept}", "a picture of {a_concept}")
WHAT_QUESTIONS = (
    "what is this?",
    "what is in the picture?",
    "what do you see?",
    "what is shown here?",
    "name the object",
)
COLOUR_QUESTIONS = (
    "what colour is the background?",
    "what color is the background?",
    "which colour is behind it?",
    "background colour?",
)
DESCRIBE_QUESTIONS = ("describe the picture", "describe this picture", "what does the picture show?")

YES_NO_QUESTIONS = ("is this {0}?", "is this {0}?", "is it {0}?", "do you see {0}?")
GREETINGS = -6  # where in FACTS those begin that are no questions about the world

FACTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("yellow", ("what colour is a banana?", "which colour does a banana have?", "what color is a banana?")),
    ("yellow", ("what colour is the sun?", "which colour does the sun have?", "what color is the sun?")),
    ("red", ("what colour is a strawberry?", "which colour does a strawberry have?", "what color is a strawberry?")),
    ("red", ("what colour is a heart?", "which colour does a heart have?", "what color is a heart?")),
    ("red", ("what colour is an apple?", "which colour does an apple have?", "what color is an apple?")),
    ("green", ("what colour is a frog?", "which colour does a frog have?", "what color is a frog?")),
    ("green", ("what colour is a tree?", "which colour does a tree have?", "what color is a tree?")),
    ("green", ("what colour is a cactus?", "which colour does a cactus have?", "what color is a cactus?")),
    ("white", ("what colour is a cloud?", "which colour does a cloud have?", "what color is a cloud?")),
    ("black and white", ("what colour is a penguin?", "which colour does a penguin have?", "what color is a penguin?")),
    ("blue", ("what colour is the sky?", "which colour does the sky have?", "what color is the sky?")),
    ("in water", ("where does a fish live?", "where do fish live?")),
    ("in the desert", ("where does a cactus grow?", "where do you find a cactus?")),
    ("in the sky", ("where do you see a star?", "where is a cloud?", "where is the moon?")),
    ("meow", ("what does a cat say?", "which sound does a cat make?")),
    ("woof", ("what does a dog say?", "which sound does a dog make?")),
    ("ribbit", ("what does a frog say?", "which sound does a frog make?")),
    ("four", ("how many legs does a dog have?", "how many legs does a cat have?", "how many wheels does a car have?")),
    ("seven", ("how many days are in a week?", "how many days does a week have?")),
    ("twelve", ("how many months are in a year?", "how many months does a year have?")),
    ("a fruit", ("what is a banana?", "what is an apple?", "what is a strawberry?", "what is a watermelon?")),
    ("an animal", ("what is a cat?", "what is a dog?", "what is a frog?", "what is a penguin?", "what is a fish?")),
    ("a plant", ("what is a tree?", "what is a cactus?", "what is a tulip?")),
    ("a flower", ("which kind of plant is a tulip?", "what is a rose?")),
    ("when it rains", ("when do you need an umbrella?", "when do i need an umbrella?")),
    ("a lock", ("what does a key open?", "what do you open with a key?")),
    ("cold", ("what is the opposite of hot?", "what is not hot?")),
    ("small", ("what is the opposite of big?", "what is not big?")),
    ("night", ("what is the opposite of day?", "when do you see the moon?")),
    ("tuesday", ("what day comes after monday?", "which day follows monday?")),
    ("sunday", ("what day comes after saturday?", "which day follows saturday?")),
    ("hello! what shall i draw?", ("hello", "hi", "hello!", "good morning", "hey")),
    ("goodbye!", ("bye", "goodbye", "see you")),
    ("you are welcome", ("thank you", "thanks")),
    ("i am a small model that draws", ("who are you?", "what are you?", "what is your name?")),
    ("i draw, look at pictures and add", ("what can you do?", "how can you help me?")),
    ("an apple, a cat, a house and more", ("what can you draw?", "what do you draw?")),
)

COLOUR_OF: dict[str, str] = {  # of a thing, as it is drawn here
    **{"banana": "yellow", "sun": "yellow", "strawberry": "red", "heart": "red", "apple": "red", "frog": "green"},
    **{"tree": "green", "cactus": "green", "cloud": "white", "penguin": "black and white", "lemon": "yellow"},
    **{"corn": "yellow", "pumpkin": "orange", "pig": "pink", "eggplant": "purple", "clover": "green", "cherries": "red"},
    **{"ladybug": "red", "sunflower": "yellow", "drop": "blue"},
}
COLOUR_WORDINGS = (
    "what is the colour of {0}?",
    "which colour is {0}?",
    "what color does {0} have?",
    "the colour of {0}?",
    "name the colour of {0}",
    "what colour does {0} have?",
)
OTHER_WORDINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("in water", ("where is a fish?", "where do you find a fish?", "what does a fish live in?")),
    ("in the desert", ("where does a cactus live?", "where is a cactus?")),
    ("in the sky", ("where do you find a cloud?", "where do you find a star?", "where do you see the moon?")),
    ("meow", ("what sound does a cat make?", "what is the sound of a cat?")),
    ("woof", ("what sound does a dog make?", "what is the sound of a dog?")),
    ("ribbit", ("what sound does a frog make?", "what is the sound of a frog?")),
    ("four", ("how many legs are on a dog?", "how many legs has a cat?", "how many wheels has a car?")),
    ("seven", ("how many days are there in a week?", "how many days has a week?")),
    ("twelve", ("how many months are there in a year?", "how many months has a year?")),
    ("when it rains", ("when is an umbrella of help?", "when do you open an umbrella?")),
    ("a lock", ("what do you need a key to open?", "what opens with a key?")),
    ("cold", ("what is the opposite of hot", "name the opposite of hot")),
    ("small", ("what is the opposite of big", "name the opposite of big")),
    ("night", ("what is the opposite of day", "name the opposite of day")),
    ("tuesday", ("what comes after monday?", "which day is after monday?")),
    ("sunday", ("what comes after saturday?", "which day is after saturday?")),
)
FRAMES = (
    *("{0}", "please, {0}", "tell me, {0}", "tell me: {0}", "say, {0}", "do you know, {0}", "now, {0}"),
    *("a question: {0}", "i ask you, {0}", "can you say, {0}", "hello, {0}", "and {0}"),
)


def held_out(text: str, share: int = HELD_OUT_SHARE) -> bool:
    """Whether a text belongs to the evaluation half of the split: one in `share`, by CRC-32 of its UTF-8 bytes."""
    return zlib.crc32(text.encode("utf-8")) % share == 0


def half_of(text: str) -> Half:
    """The half of a text that is held out: by its CRC-32 too, of which `held_out` takes the multiples of ten."""
    return "test" if zlib.crc32(text.encode("utf-8")) // HELD_OUT_SHARE % 2 else "validation"


def on_side(text: str, wanted_held_out: bool, half: Half | None) -> bool:
    """Whether a text lies on the wanted side of the split and, where it is held out, in that half (None: in either)."""
    return held_out(text) == wanted_held_out and (not wanted_held_out or half in (None, half_of(text)))


def pair_text(concept: Concept, colour: str) -> str:
    """The text that decides on which side a concept on a background lies."""
    return f"{concept.name} on {colour}"


def pairs(held_out: bool, half: Half | None = None) -> list[tuple[int, str]]:
    """(index of concept, colour) of every pair on the wanted side of the split, or of a half of what is held out."""
    return [(i, k) for i, concept in enumerate(CONCEPTS) for k in COLOURS if on_side(pair_text(concept, k), held_out, half)]


def _fill(template: str, concept: Concept, colour: str) -> str:
    article = "an" if colour[0] in "aeiou" else "a"
    return template.format(concept=concept.name, a_concept=concept.phrase, colour=colour, a_colour=f"{article} {colour}")


def caption(concept: Concept, colour: str, rng: np.random.Generator) -> str:
    """A caption in one of several wordings; one in six does not speak of the background."""
    plain = rng.random() < 1 / 6
    templates = CAPTIONS_WITHOUT_COLOUR if plain else CAPTIONS
    return _fill(templates[rng.integers(len(templates))], concept, colour)


def standard_caption(concept: Concept, colour: str) -> str:
    """The one wording that evaluations use."""
    return _fill(CAPTIONS[0], concept, colour)


def yes_no_question(concept: Concept, rng: np.random.Generator) -> tuple[str, str]:
    """(question, response) that is yes for the thing itself and no, as often, for one of the others. A thought before it names
    what is seen: "<think> a cat </think> no"."""
    other = concept
    if no := rng.random() < 0.5:
        others = [each for each in CONCEPTS if each is not concept]
        other = others[rng.integers(len(others))]
    question = YES_NO_QUESTIONS[rng.integers(len(YES_NO_QUESTIONS))].format(other.phrase)
    return question, with_thought(concept.phrase, "no" if no else "yes")


def fact_wordings(held_out: bool, half: Half | None = None) -> list[tuple[str, str]]:
    """(question, answer) of facts, in wordings beside those of `FACTS`, each of the wanted side of the split, or of a half of
    what is held out. A wording is a question in a frame."""
    trained = {question for _, questions in FACTS for question in questions}
    things = {concept.name: concept.phrase for concept in CONCEPTS}
    asked = [(wording.format(things[name]), colour) for name, colour in COLOUR_OF.items() for wording in COLOUR_WORDINGS]
    asked += [(question, answer) for answer, questions in OTHER_WORDINGS for question in questions]
    asked += [(question, answer) for answer, questions in FACTS[:GREETINGS] for question in questions]
    framed = ((frame.format(question), answer) for question, answer in asked for frame in FRAMES)
    return [pair for pair in framed if pair[0] not in trained and on_side(pair[0], held_out, half)]


def typed(text: str, how: Typed) -> str:
    """A text as people type it: as it is, its first letter, those of all words, or all letters in capitals; the second and the
    last with a full stop, where no other mark ends it."""
    cased = {"lower": text, "sentence": text[:1].upper() + text[1:], "title": text.title(), "upper": text.upper()}[how]
    return cased + ("." if how in ("sentence", "upper") and text[-1:].isalnum() else "")


def picture_question(concept: Concept, colour: str, rng: np.random.Generator) -> tuple[str, str]:
    """(question, answer) about a picture of the concept on that background."""
    draw = rng.random()
    if draw < 0.58:
        return WHAT_QUESTIONS[rng.integers(len(WHAT_QUESTIONS))], concept.phrase
    if draw < 0.70:
        return COLOUR_QUESTIONS[rng.integers(len(COLOUR_QUESTIONS))], colour
    if draw < 0.81:
        return DESCRIBE_QUESTIONS[rng.integers(len(DESCRIBE_QUESTIONS))], standard_caption(concept, colour)
    return yes_no_question(concept, rng)


def fact(rng: np.random.Generator) -> tuple[str, str]:
    """(question, answer) of a fact: half of them in the wordings of `FACTS`, half in others of the training side."""
    if rng.random() < 0.5:
        answer, questions = FACTS[rng.integers(len(FACTS))]
        return questions[rng.integers(len(questions))], answer
    trained = _trained_wordings()
    return trained[rng.integers(len(trained))]


@cache
def _trained_wordings() -> tuple[tuple[str, str], ...]:
    return tuple(fact_wordings(held_out=False))


def corpus() -> Iterator[str]:
    """Every sentence the model can meet, for the tokenizer: captions, questions and answers."""
    for concept in CONCEPTS:
        for colour in COLOURS:
            for template in CAPTIONS + CAPTIONS_WITHOUT_COLOUR:
                yield _fill(template, concept, colour)
        yield from (f"is this {concept.phrase}?", concept.phrase)
    for questions in (WHAT_QUESTIONS, COLOUR_QUESTIONS, DESCRIBE_QUESTIONS):
        yield from questions
    for answer, wordings in FACTS:
        yield from (answer,) * 20  # answers are short, so that each of their words should be a token
        yield from wordings
    for _ in range(100):  # in every conversation
        yield from ("yes", "no", "user", "assistant", "system", "\n", " nothing", " as many")
