"""Choices, patterns and schemas as a user gives them, on the small model that comes with the package: what holds, and the one
line that everything else gets."""

import json
import re
import time
from typing import Any

import jsonschema
import numpy as np
import pytest

import mmada_lite
from mmada_lite import Error, Model
from mmada_lite.forms import letters
from mmada_lite.forms.schema import ready

SUM = "the sum of 4 and 8 is [mask:*]"
PERSON = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer"}},
    "required": ["colour", "count"],
}


@pytest.fixture(scope="module")
def model() -> Model:
    return mmada_lite.load()


def test_a_choice_is_the_likeliest_and_its_score_is_that_of_the_text(model: Model) -> None:
    """In a hole of unknown length each choice has a hole of its own, in rows of one length: one batch."""
    result = model.fill(SUM, choices=["12", "13", "7"]).result()
    best = max(result.choices, key=lambda each: each.log_likelihood)
    assert result.text == f"the sum of 4 and 8 is {best.text}"
    assert [choice.text for choice in result.choices] == ["12", "13", "7"]
    assert sum(choice.probability for choice in result.choices) == pytest.approx(1)
    assert result.model_calls == max(len(choice.ids) for choice in result.choices)
    assert result.steps == 1
    assert result.complete
    assert result.spans[0].text == best.text
    scored = model.score("the sum of 4 and 8 is 13", (22, 24))
    assert scored.ids == result.choices[1].ids
    assert scored.log_likelihood == pytest.approx(result.choices[1].log_likelihood, abs=1e-4)


def test_without_a_hole_a_choice_is_the_whole_answer_with_its_end(model: Model) -> None:
    result = model.chat("is this a question?", choices=["yes", "no", "yes it is"]).result()
    assert result.text in ("yes", "no", "yes it is")
    assert result.complete
    chosen = next(choice for choice in result.choices if choice.text == result.text)
    assert chosen.probability == max(choice.probability for choice in result.choices)
    begun = model.chat("is this a question?", answer="I say", choices=[" yes", " no"]).result()
    assert begun.text in ("I say yes", "I say no")


@pytest.mark.parametrize("speed", ["exact", "balanced", "fast"])
def test_what_is_written_matches_at_every_speed(speed: str) -> None:
    model = mmada_lite.load(speed=speed)
    for pattern in (r"[0-9]{1,3}", r"(red|blue) (apple|car)s?", r" *yes|no\?"):
        for answer in (model.chat("how many apples?", pattern=pattern), model.fill("I see [mask:9].", pattern=pattern)):
            result = answer.result()
            assert re.fullmatch(pattern, result.spans[0].text), (pattern, result.text)
    whole = model.chat("what is it?", schema=PERSON).result()
    jsonschema.validate(json.loads(whole.text), PERSON)


def test_every_hole_of_a_text_matches(model: Model) -> None:
    result = model.fill("first [mask:*4] and then [mask:3], [mask:2]x", pattern="[0-9]+").result()
    assert len(result.spans) == 3
    assert all(re.fullmatch("[0-9]+", span.text) for span in result.spans)
    assert re.fullmatch(r"first \d+ and then \d+, \d+x", result.text)


def test_a_drawn_answer_matches_too(model: Model) -> None:
    hot = model.text_defaults.replace(temperature=2.0)
    texts = {model.chat("say a number", hot, pattern="[1-9][0-9]{2}", seed=seed).result().text for seed in range(5)}
    assert len(texts) > 2
    assert all(re.fullmatch("[1-9][0-9]{2}", text) for text in texts)


@pytest.mark.parametrize("law", ["chain", "one_pass", "monte_carlo"])
def test_a_score_is_of_the_span_alone(model: Model, law: Any) -> None:
    likely = model.score("a red apple", (0, 5), law=law, draws=16)
    assert likely.log_likelihood == pytest.approx(sum(likely.by_token))
    assert model.decode(likely.ids) == "a red"
    assert likely.log_likelihood > model.score("q$x^z apple", (0, 5), law=law, draws=16).log_likelihood
    answer = model.score("red", messages="which colour has an apple?", law=law, draws=16)
    assert np.isfinite(answer.log_likelihood)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"choices": []}, "there are 0 choices"),
        ({"choices": "yes"}, "give a list of texts"),
        ({"choices": ["a", " "]}, "choice 2 is empty"),
        ({"choices": ["a", "b", "a"]}, "the choice 'a' stands twice"),
        ({"choices": ["a"] * 65}, "there are 65 choices"),
        ({"choices": ["one two three four five six seven eight"]}, "and the hole has 2"),
        ({"choices": ["a"], "pattern": "a"}, "choices and pattern both"),
        ({"pattern": "a", "schema": {}}, "pattern and schema both"),
        ({"pattern": "[a"}, "no regular expression: unterminated character set"),
        ({"pattern": "a)(b"}, "no regular expression: unbalanced"),
        ({"pattern": "(?=a)b"}, "look-around"),
        ({"pattern": r"(a)\1"}, "references back"),
        ({"pattern": "a++"}, "gives nothing back"),
        ({"pattern": "[[a]"}, "no regular expression: Possible nested set"),
        ({"pattern": r"a[^\s\S]"}, "cannot end"),
        ({"pattern": "a$b"}, "cannot end: .* leave them out"),
        ({"pattern": "[0-9]{9}"}, "takes 9 tokens or more and the hole has 2"),
        ({"pattern": r"\w{1,999}"}, "to be made an automaton|states over bytes"),
        ({"pattern": "a" * 70_000}, "has 70000 characters"),
        ({"schema": "{"}, "the schema is no JSON"),
        ({"schema": [1]}, "a schema is an object"),
        ({"schema": False}, "a schema is an object"),
        ({"schema": {"type": "integer", "minimum": 1}}, "has 'minimum', which is not built"),
        ({"schema": {"type": "whole"}}, "has the type 'whole'; use one of string"),
        ({"schema": {"enum": []}}, "without anything in it"),
        ({"schema": {"type": "string", "pattern": ".*"}}, "matches a quote"),
        ({"schema": {"type": "string", "format": "email"}}, "use one of date, time, uuid, date-time"),
        ({"schema": {"type": "string", "minLength": 3, "maxLength": 1}}, "minLength 3 above maxLength 1"),
        ({"schema": {"type": "string", "minLength": 2**64}}, "from 0 to 1,048,576"),
        ({"schema": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}}, "may never end"),
        ({"schema": {"type": "object", "properties": {"a": {}}, "required": ["b"]}}, "none of its properties"),
        ({"schema": {"type": "object", "properties": {'a"': {}}}}, "with a quote"),
        ({"schema": {"type": [None]}}, "has the type .None.; use one of"),
        ({"schema": {}}, "says nothing of what it wants"),
        ({"schema": {"": ""}}, "has '', which is not built"),
        ({"schema": {"type": "array"}}, "an array without 'items'"),
        ({"schema": {"type": "object"}}, "an object without 'properties'"),
        ({"schema": {"type": ["null", "object"]}}, "a schema of its own in 'anyOf'"),
        ({"schema": {"oneOf": [{}]}}, "has 'oneOf', which is not built"),
        ({"schema": {"$ref": "#/$defs/a"}}, "there is no '.defs'"),
        ({"schema": {"$ref": "http://a"}}, "only what stands in the same schema"),
    ],
    ids=str,
)
def test_what_is_no_form_is_refused_in_one_line(model: Model, form: dict[str, Any], said: str) -> None:
    with pytest.raises(Error, match=said) as refused:
        model.fill("a [mask:2] b", **form)
    assert "\n" not in str(refused.value)


def test_choices_are_for_one_hole(model: Model) -> None:
    with pytest.raises(Error, match="for one hole and the text has 2"):
        model.fill("[mask:1] and [mask:1]", choices=["a"])


def test_a_character_that_no_token_has_is_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    spellings = [None if word and b"z" in word else word for word in model.tokenizer.spellings()]
    monkeypatch.setattr(type(model.tokenizer), "spellings", lambda self: spellings)
    with pytest.raises(Error, match="no tokens of this model spell a text of the pattern 'z'"):
        mmada_lite.load().fill("a [mask:2] b", pattern="z")
    monkeypatch.setattr(type(model.tokenizer), "decode", lambda self, ids: "other")
    with pytest.raises(Error, match="no tokens of this model spell the choice 'z'"):
        mmada_lite.load().fill("a [mask:2] b", choices=["z"])


def test_the_bytes_of_tokens_are_what_they_decode_to(model: Model) -> None:
    for token, spelling in enumerate(model.tokenizer.spellings()):
        assert model.decode([token]) == (spelling or b"").decode(errors="replace")


def test_without_outlines_core_the_line_that_installs_it_is_said(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letters, "find_spec", lambda name: None)
    with pytest.raises(Error, match=r'pip install "mmada-lite\[forms\]"'):
        model.fill("a [mask:2] b", pattern="[x-z]")
    assert model.fill("a [mask:2] b", choices=["x"]).text == "a x b"


def test_a_score_asks_for_a_span_in_its_text(model: Model) -> None:
    for span in ((0, 0), (2, 1), (0, 9), (-1, 2)):
        with pytest.raises(Error, match="the span is"):
            model.score("a text", span)
    with pytest.raises(Error, match="law is 'best'"):
        model.score("a text", law="best")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string", "pattern": "a|b"}, '"(a|b)"'),
        ({"type": "string", "pattern": "^a|b$"}, '"(a|b)"'),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"type": "null"}}}, "null"),
        ({"type": "string", "enum": ["a", 1]}, '"a"'),
    ],
    ids=str,
)
def test_a_schema_is_made_ready(schema: dict[str, Any], text: str) -> None:
    from outlines_core.json_schema import build_regex_from_schema

    assert build_regex_from_schema(ready(json.dumps(schema))[0]).strip("()") == text.strip("()")


def test_an_automaton_that_nobody_waits_for_is_given_up() -> None:
    """Whoever waits is asked a few times a second, and its exception ends the process that makes the automaton."""
    asked = list[float]()

    def leave() -> None:
        asked.append(time.monotonic())
        raise KeyboardInterrupt

    token = letters.while_waiting.set(leave)
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            letters.pattern_automaton("[ab]{9000}")
    finally:
        letters.while_waiting.reset(token)
    assert len(asked) == 1
    assert asked[0] - started < letters.MOST_SECONDS / 2
