"""What a bundle says that its model knows, and what a user is told of a word, a turn or a picture outside it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mmada_lite
from mmada_lite.bundle import Bundle
from mmada_lite.cli import chat
from mmada_lite.cli.main import main
from mmada_lite.errors import Error
from mmada_lite.knowledge import Knowledge, in_lower_case
from mmada_lite.model import embedded_bundle
from mmada_lite.train.data import arithmetic, scenes, texts
from mmada_lite.train.data.knowledge import knows

ROOT = Path(__file__).parents[2]
SHORT = ("--steps", "6")
Messages = list[dict[str, str]]


@pytest.fixture(scope="module")
def model() -> mmada_lite.Model:
    return mmada_lite.load(device="cpu")


def test_the_packaged_model_says_what_its_training_says() -> None:
    """The recipe may teach more than the package has learned; the package says nothing that the recipe does not."""
    said, taught = dict(Bundle.open(embedded_bundle()).knows), knows()
    assert said == json.loads((ROOT / "train/shipped/emoji/mmada_lite.json").read_text())["knows"]
    assert said.keys() == taught.keys()
    assert said["turns"] <= taught["turns"]
    assert set(said["words"]) <= set(taught["words"])
    assert {name: said[name] for name in said if name not in ("turns", "words")} == {
        name: taught[name] for name in taught if name not in ("turns", "words")
    }
    assert set(said["things"]) <= set(said["words"])
    assert all(re.fullmatch(r"[a-z]+", word) for word in said["words"])


def taught() -> Iterator[str]:
    """What the recipe teaches."""
    yield from texts.corpus()
    yield from scenes.corpus()
    yield from arithmetic.corpus(np.random.default_rng(0), 20)


def in_the_manual() -> Iterator[str]:
    """What the manual gives the packaged model."""
    for page in ("README.md", "docs/quickstart.md", "docs/speed.md", "docs/cli.md", "docs/quantization.md", "docs/python.md"):
        content = (ROOT / page).read_text(encoding="utf-8")
        yield from re.findall(r'mmada-lite (?:paint|chat|extend \S+|ask \S+|inpaint \S+ \S+) "([^"]+)"', content)


def test_no_word_of_training_or_of_the_manual_is_outside() -> None:
    given = {"recipe": list(taught()), "package": list(in_the_manual())}
    assert "a cat right of a car" in given["package"]
    known = {"recipe": Knowledge.from_json(knows()), "package": Bundle.open(embedded_bundle()).knowledge}
    outside = {text: known[by].words_outside(text) for by, all_of in given.items() for text in all_of}
    assert {text: words for text, words in outside.items() if words} == {}


@pytest.mark.parametrize(
    ("text", "outside"),
    [
        ("a zebra", ["zebra"]),
        ("A Zebra, a zèbre and a ZEBRA", ["Zebra", "zèbre", "ZEBRA"]),
        ("An Apple on a BLUE background!", []),
        ("what is 47 + 85?", []),
        ("日本語 3 cats", ["日本語"]),
        ("", []),
    ],
)
def test_words_outside(text: str, outside: list[str]) -> None:
    assert Bundle.open(embedded_bundle()).knowledge.words_outside(text) == outside
    assert Knowledge().words_outside(text) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("paint", "a zebra", *SHORT), '"zebra" is none of them'),
        (("paint", "a zebra and a lion", *SHORT), '"zebra" and "lion" are none of them'),
        (("paint", "gnus yaks emus lynxes lions", *SHORT), '"gnus", "yaks", "emus" and 2 more are none of them'),
        (("paint", "a cat", "--thought", "middle giraffe", *SHORT), '"giraffe" is none of them'),
        (("paint", "A Red Heart", *SHORT), None),
        (("chat", "what is a Zebra?", "--answer-length", "8"), '"Zebra" is none of them'),
        (("chat", "what is 3 + 4?", "--answer-length", "8"), None),
        (("ask", "PHOTO", "what is this?", "--answer-length", "8"), "this picture is 451 x 300"),
        (("ask", "ICON", "what is this?", "--answer-length", "8"), None),
        (("extend", "ICON", "a zebra", *SHORT), '"zebra" is none of them'),
        (("fill", "a zebra on a [mask:1] background"), '"zebra" is none of them'),
        (("fill", "a cat on a [mask:*2] background"), None),
    ],
)
def test_what_is_outside_is_one_line(words: tuple[str, ...], says: str | None, tmp_path: Path, capsys: Any) -> None:
    pictures = {"PHOTO": (451, 300), "ICON": (64, 64)}
    for name, size in pictures.items():
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
    given = [str(tmp_path / f"{word}.png") if word in pictures else word for word in words]
    draws = words[0] in ("paint", "extend")
    assert main([*given, *(["-o", str(tmp_path / "out.png")] if draws else []), "--json"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "this model knows" in line]
    assert len(lines) == (says is not None)
    if says is not None:
        assert lines[0].startswith("mmada-lite: ")
        assert says in lines[0]


def test_a_model_that_says_nothing_gets_no_line(tiny_bundle: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["paint", "A Zebra", "-m", str(tiny_bundle), "-o", str(tmp_path / "out.png"), "--steps", "2"]) == 0
    assert not capsys.readouterr().err
    model = mmada_lite.load(tiny_bundle, device="cpu", threads=1)
    assert model.encode("A Zebra") != model.encode("a zebra")


def test_capitals_are_read_in_lower_case(model: mmada_lite.Model) -> None:
    assert in_lower_case("A Red HEART, ÀÉİЖ [iPAD]") == "a red heart, ÀÉİЖ [ipad]"
    assert model.encode("A Red Heart") == model.encode("a red heart")
    settings = model.image_defaults.replace(steps=4)
    drawn = [model.paint(text, settings, seed=5).picture.tobytes() for text in ("A Red Heart", "a red heart")]
    assert drawn[0] == drawn[1]
    short = model.text_defaults.replace(answer_length=16, steps=16)
    assert model.chat("What Is 3 + 4?", short).text == model.chat("what is 3 + 4?", short).text
    assert model.tokenizer.encode("<|eot_id|>", special=True) == [model.vocabulary.special.eot]


@pytest.mark.parametrize(
    ("turns", "remembered"), [(1, [1, 1, 1]), (2, [1, 3, 3]), (None, [1, 3, 5])], ids=["single", "two", "not said"]
)
def test_a_conversation_is_as_long_as_the_model_knows(
    turns: int | None, remembered: list[int], model: mmada_lite.Model, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    lines, asked = iter(["hello", "a Zebra", "bye", "/exit"]), list[Messages]()
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    monkeypatch.setattr("mmada_lite.cli.terminal.is_terminal", lambda *streams: streams[0] == "stdin")
    knowledge = Knowledge(turns=turns, words=("hello", "a", "bye"))

    class Planted:
        class bundle:
            pass

        def chat(self, messages: Messages, *given: Any, **named: Any) -> str:
            asked.append(messages)
            return "answer"

    Planted.bundle.knowledge = knowledge  # type: ignore[attr-defined]
    monkeypatch.setattr("mmada_lite.cli.model_options.open_for_text", lambda arguments: (Planted(), None))
    monkeypatch.setattr("mmada_lite.cli.answering.print_answer", lambda answer, *given: answer)
    assert main(["chat"]) == 0
    assert [len(messages) for messages in asked] == remembered
    assert [messages[-1]["content"] for messages in asked] == ["hello", "a Zebra", "bye"]
    err = capsys.readouterr().err
    assert err.count("each line begins anew") == (turns == 1)
    assert err.count('"Zebra" is none of them') == 1
    assert chat._greeting(3) == "Say something; this model minds the last 3 lines, /new begins anew, /exit or Ctrl-D ends."


def test_info_shows_it(tiny_bundle: Path, capsys: Any) -> None:
    assert main(["info"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("knows "))
    said = dict(Bundle.open(embedded_bundle()).knows)
    turns = "single turns" if said["turns"] == 1 else f"{said['turns']} turns"
    for part in ("64 things (apple, heart, tree and 61 more)", "lower case", turns, "64 x 64 pictures", "en"):
        assert part in line
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["knows"] == said
    assert main(["info", str(tiny_bundle)]) == 0
    assert "\nknows " not in capsys.readouterr().out


def test_other_keys_are_the_makers_own() -> None:
    assert Knowledge.from_json({"sums": "to 20", "turns": 2}) == Knowledge(turns=2)
    assert Knowledge.from_json({}) == Knowledge()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"turns": 0}, "knows.turns is 0"),
        ({"turns": "1"}, "knows.turns is"),
        ({"turns": True}, "knows.turns is"),
        ({"case": "upper"}, "it can be lower"),
        ({"case": []}, "it can be lower"),
        ({"things": "apple"}, "give a list of words"),
        ({"words": [1]}, "give a list of words"),
        ({"languages": {}}, "give a list of words"),
        ({"picture_size": 1e3}, "knows.picture_size is"),
    ],
)
def test_what_cannot_be_read_is_named(content: dict[str, Any], says: str) -> None:
    with pytest.raises(Error, match=re.escape(says)):
        Knowledge.from_json(content)


def test_a_bundle_that_is_quantized_knows_what_it_knew(tmp_path: Path) -> None:
    assert main(["quantize", str(embedded_bundle()), "-o", str(tmp_path / "b"), "--format", "int8", "--method", "rtn"]) == 0
    assert Bundle.open(tmp_path / "b").knows == Bundle.open(embedded_bundle()).knows
