"""Random patterns, schemas and choices over random models, at random settings: no answer outside its form, no given token
changed. A tenth of them by default, all with --fuzz; case N is the same every time."""

import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from small_attention import SmallAttention

from mmada_lite import Error
from mmada_lite.decoding.generate import TextTokens, complete
from mmada_lite.decoding.score import choose
from mmada_lite.decoding.settings import TextSettings
from mmada_lite.forms import letters
from mmada_lite.forms.form import Form
from mmada_lite.forms.letters import pattern_automaton, schema_automaton
from mmada_lite.forms.schema import ready
from mmada_lite.forms.tokens import ByteAutomaton, token_automaton

COUNT = 10_000
LETTERS = ["a", "b", "c", "1", "2", " ", "é", "☃", '"', "{", "}", ":", ",", "[", "]", ".", "-", "t", "r", "u", "e", "n", "l"]


@pytest.mark.fuzz
def test_nothing_is_written_outside_its_form(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letters, "_run", in_this_process())
    count = COUNT if pytestconfig.getoption("fuzz") else COUNT // 10
    found = run(0, count)
    assert sum(found.values()) == count
    assert not found["lines"]
    assert found["pattern"] > count // 4
    assert found["schema"] > count // 20
    assert found["choices"] > count // 4
    assert found["refused"] < count // 4


def in_this_process() -> Callable[[dict[str, Any], str], tuple[dict[str, Any], bytes]]:
    """What a process of its own would do: a tenth of a second saved for each pattern."""
    names: dict[str, Any] = {}
    exec(letters._MAKER, names)
    return lambda asked, named: names["made"](asked)


def run(first: int, count: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for number in range(first, first + count):
        rng = random.Random(number)
        kind = rng.choice(["pattern", "pattern", "schema", "choices", "choices"])
        try:
            {"pattern": one_form, "schema": one_form, "choices": one_choice}[kind](rng, kind)
            found[kind] += 1
        except Error as refused:
            found["refused" if "\n" not in str(refused) else "lines"] += 1
        except Exception as fault:
            raise AssertionError(f"case {number}") from fault
    return found


def vocabulary(rng: random.Random) -> tuple[list[bytes | None], tuple[int, int], int]:
    """Tokens of bytes, of some letters and of random words; two that end a text; the mask. In a random order."""
    words = {bytes([byte]) for letter in LETTERS for byte in letter.encode()} | {b"true", b"null", b'":', b'"a"', b"ab", b"aa"}
    while len(words) < 50:
        words.add("".join(rng.choices(LETTERS, k=rng.randint(2, 3))).encode())
    spelled: list[bytes | None] = [*sorted(words), None, None, None]
    rng.shuffle(spelled)
    one, other, mask = (number for number, word in enumerate(spelled) if word is None)
    return spelled, (one, other), mask


def answer_with_holes(rng: random.Random, most: int, spelled: list[bytes | None], mask: int) -> list[int]:
    """Masks, with some given tokens between and behind them."""
    known = [number for number, word in enumerate(spelled) if word is not None]
    answer: list[int] = []
    for _ in range(rng.randint(1, 2)):
        answer += [mask] * rng.randint(1, most) + rng.choices(known, k=rng.randint(1, 3))
    return answer[: max(1, len(answer) - rng.randint(0, 4))] if mask in answer[: max(1, len(answer) - 4)] else answer


def holes_of(answer: list[int], mask: int) -> list[tuple[int, int]]:
    runs, start = list[tuple[int, int]](), None
    for place, token in enumerate([*answer, -1]):
        if token == mask and start is None:
            start = place
        elif token != mask and start is not None:
            runs.append((start, place))
            start = None
    return runs


def one_form(rng: random.Random, kind: str) -> None:
    spelled, stop, mask = vocabulary(rng)
    answer = answer_with_holes(rng, 10 if kind == "pattern" else 24, spelled, mask)
    bytes_automaton, fits = a_pattern(rng) if kind == "pattern" else a_schema(rng)
    space = rng.random() < 0.3
    automaton = token_automaton(bytes_automaton.behind_a_space() if space else bytes_automaton, spelled, stop)
    holes = holes_of(answer, mask)
    shortest = automaton.shortest()
    if shortest is None or shortest > min(stop - start for start, stop in holes):
        raise Error("the hole is too short")
    settings, model = a_setting(rng), a_model(rng, spelled, mask)
    form = Form([(start, stop, automaton) for start, stop in holes], mask)
    tokens = TextTokens(mask, frozenset(stop), (rng.randrange(len(spelled)),))
    prompt = [rng.randrange(len(spelled)) for _ in range(rng.randint(1, 4))]
    prompt = [token for token in prompt if token != mask] or [stop[0]]
    decoding = complete(model, prompt, settings, tokens, answer=answer, seed=rng.randrange(99), constraints=[form])
    for step in decoding.steps:
        assert (step.log_probabilities <= 1e-6).all()
    written = decoding.ids[0]
    assert all(own in (mask, now) for own, now in zip(answer, written, strict=True)), "a given token was changed"
    for first, last in holes:
        hole = [int(token) for token in written[first:last]]
        end = next((place for place, token in enumerate(hole) if token in stop), len(hole))
        assert all(token in stop or (token == mask and last == len(answer)) for token in hole[end:]), hole
        text = b"".join(spelled[token] or b"?" for token in hole[:end]).decode()
        assert fits(text[1:] if space and text.startswith(" ") else text), (text, settings)


def one_choice(rng: random.Random, kind: str) -> None:
    spelled, stop, mask = vocabulary(rng)
    answer = answer_with_holes(rng, 5, spelled, mask)
    start, last = holes_of(answer, mask)[0]
    known = [number for number, word in enumerate(spelled) if word is not None]
    answer = [*answer[:last], *(token for token in answer[last:] if token != mask)]
    choices = [rng.choices(known, k=rng.randint(1, 4)) for _ in range(rng.randint(1, 6))]
    own = [[*answer[:start], *[mask] * len(choice), *answer[last:]] for choice in choices]
    answers = [answer] if rng.random() < 0.5 else own
    model, guidance, rows = a_model(rng, spelled, mask), rng.choice([0.0, 0.0, 1.0]), rng.randint(1, 8)
    chosen = choose(model, [1], answers, choices, mask, frozenset(stop), guidance=guidance, rows=rows)
    ids = choices[chosen.index]
    assert list(chosen.answer[start : start + len(ids)]) == ids
    assert list(chosen.answer[:start]) == answer[:start], "a given token was changed"
    behind = answer[last:]
    assert list(chosen.answer[len(chosen.answer) - len(behind) :]) == behind, "a given token was changed"
    rest = chosen.answer[start + len(ids) : len(chosen.answer) - len(behind)]
    assert not rest.size or rest[0] in stop
    assert chosen.probability.sum() == pytest.approx(1)
    assert chosen.index == chosen.log_likelihood.argmax()
    assert (chosen.log_likelihood <= 1e-9).all()


def a_model(rng: random.Random, spelled: list[bytes | None], mask: int) -> SmallAttention:
    return SmallAttention(
        vocabulary=len(spelled), mask=mask, width=8, seed=rng.randrange(10_000), says_entropy=rng.random() < 0.5, layers=1
    )


def a_setting(rng: random.Random) -> TextSettings:
    length = rng.randint(4, 32)
    block = rng.randint(2, length)
    blocks = -(-length // block)
    settings = TextSettings(length, rng.randint(blocks, length), block)
    changes: list[dict[str, Any]] = [
        {"temperature": rng.choice([0.3, 1.0, 3.0])},
        {"order": "random"},
        {"guidance": 0.7},
        {"threshold": rng.choice([0.02, 0.1, 0.5])},
        {"entropy_bound": rng.choice([0.5, 3.0])},
        {"cache": rng.choice(["prefix", "dual", "prompt"])},
        {"cache": "dual", "refresh": 2, "suffix_window": 3},
        {"cache": "dual", "kv_commit_every": 2},
        {"select": rng.choice(["margin", "entropy"])},
        {"speculative_steps": rng.randint(2, 4)},
        {"early_stop": rng.choice([0.01, 0.5])},
        {"thought_first": True},
        {"threshold": 0.05, "lookahead": 3},
    ]
    for change in rng.sample(changes, k=rng.randint(0, 3)):
        try:
            settings = settings.replace(**change)
        except Error:
            continue  # it contradicts another one
    return settings


def a_pattern(rng: random.Random) -> tuple[ByteAutomaton, Callable[[str], bool]]:
    pattern = expression(rng, rng.randint(1, 4))
    return pattern_automaton(pattern), lambda text: re.fullmatch(pattern, text) is not None


def expression(rng: random.Random, depth: int) -> str:
    if depth == 0:
        single = rng.choice(LETTERS)
        several = "".join(re.escape(letter) for letter in rng.sample(LETTERS, k=3))
        kinds = [re.escape(single), re.escape(single), f"[{several}]", f"[^{several}]", ".", r"\d", "[a-c]", r"\S"]
        return rng.choice(kinds)
    parts = [expression(rng, depth - 1) for _ in range(rng.randint(1, 3))]
    kind = rng.choice(["row", "row", "or", "repeat", "maybe"])
    if kind == "row":
        return "".join(parts)
    if kind == "or":
        return f"(?:{'|'.join(parts)})"
    least = rng.randint(0, 2)
    counted = rng.choice(["*", "+", f"{{{least},{least + rng.randint(0, 3)}}}"])
    return f"({parts[0]})" + ("?" if kind == "maybe" else counted)


def a_schema(rng: random.Random) -> tuple[ByteAutomaton, Callable[[str], bool]]:
    schema = json.dumps(schema_of(rng, 2))
    made, patterns = ready(schema)
    if any((pattern_automaton(each).next[:, [34, 92]] >= 0).any() for each in patterns):
        raise Error("a pattern matches a quote")

    def fits(text: str) -> bool:
        jsonschema.validate(json.loads(text), json.loads(schema))
        return True

    return schema_automaton(made), fits


def schema_of(rng: random.Random, depth: int) -> Any:
    kinds = ["integer", "boolean", "null", "number", "string", "enum", "const", "types", "pattern"]
    kind = rng.choice(kinds + (["array", "object", "object", "anyOf", "$ref"] if depth else []))
    if kind == "string":
        least = rng.randint(0, 1)
        return {"type": "string", **rng.choice([{}, {"minLength": least}, {"minLength": least, "maxLength": least + 2}])}
    if kind == "pattern":
        return {"type": "string", "pattern": rng.choice(["a|b", "^[abc]{1,2}$", "a*", "^1|2$", "(ab)+", "a.b"])}
    if kind == "enum":
        return {"enum": rng.sample([1, "a", None, True, [1], {"a": 2}, "é", -2.5], k=rng.randint(1, 3))}
    if kind == "const":
        return {"const": rng.choice([1, "a.b", None, False, [], "[a]"])}
    if kind == "types":
        return {"type": rng.sample(["integer", "null", "boolean"], k=2), "title": "either"}
    if kind == "array":
        counts = rng.choice([{}, {"minItems": 1}, {"maxItems": 2}, {"minItems": 1, "maxItems": 2}])
        return {"type": "array", "items": schema_of(rng, depth - 1), **counts}
    if kind == "object":
        names = rng.sample(["a", "b", "é", "a.b"], k=rng.randint(1, 2))
        properties = {name: schema_of(rng, depth - 1) for name in names}
        return {"type": "object", "properties": properties, "required": names[: rng.randint(0, len(names))]}
    if kind == "anyOf":
        return {"anyOf": [schema_of(rng, depth - 1) for _ in range(2)]}
    if kind == "$ref":
        return {"type": "object", "properties": {"a": schema_of(rng, 0)}, "required": ["a"]}
    return {"type": kind}


if __name__ == "__main__":
    letters._run = in_this_process()  # type: ignore[assignment]
    started = time.perf_counter()
    for part in range(int(sys.argv[1]), int(sys.argv[2]), 500):
        print(part, dict(run(part, min(500, int(sys.argv[2]) - part))), f"{time.perf_counter() - started:.0f} s", flush=True)
