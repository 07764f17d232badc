"""Laws of wrong calls: whatever is handed to a public callable, nothing but mmada_lite.Error comes out, in one line and at
once; and what users hand over in good faith works."""

import inspect
import io
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mmada_lite
from mmada_lite import Error, ImageAcceleration, ImageSettings, Model, TextAcceleration, TextSettings
from mmada_lite.decoding.settings import PRESETS
from mmada_lite.ort.cores import usable_cores
from mmada_lite.streams import Answer, Drawing

LONGEST = 5.0  # seconds, of one call
SIDE = 16  # pixels
TEXT = TextSettings(answer_length=4, steps=2, block_length=4)
DRAWN = ImageSettings(steps=2, guidance=0.0)


class Hostile:
    """An object of which nothing can be asked."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("asked")

    __repr__ = __str__ = __bool__ = __len__ = __iter__ = __index__ = __int__ = __float__ = __array__ = _refuse  # type: ignore[assignment]
    __fspath__ = __eq__ = __lt__ = __getitem__ = __hash__ = read = _refuse  # type: ignore[assignment]


class Texts:
    """A file that was opened as text."""

    def read(self, count: int = -1) -> str:
        return "P3 1 1 255"


def recursive() -> list[Any]:
    itself: list[Any] = []
    itself.append(itself)
    return itself


WRONG: dict[str, Callable[[], Any]] = {
    **{
        repr(value)[:40]: (lambda value=value: value)
        for value in [
            *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, -(2**70), 0.0, 0.5, -0.5, 1e38, 1e308, math.nan,
                math.inf, -math.inf),
            *("", " ", "x", "\0", "a\nb", "\ud800", "ok \udfff", "crop", "none", "nan", "é", "🙂", "../..", "/",
                "/dev/zero"),
            *(b"", b"hi", b"\xff" * 9, bytearray(b"x"), 1j, Decimal("1.5"), Fraction(1, 2), ..., NotImplemented,
                Ellipsis),
            *([], (), {}, set(), frozenset({1}), [None], [1], [-1], [2**70], [0.5], [math.nan], ["x"], [[1, 2],
                [3]], [[]], [b"x"]),
            *([[0.5] * 4] * 4, [["x"] * 4] * 4, [[None] * 4] * 4, [[-1] * 4] * 4, [[10**9] * 4] * 4, [[[0]]],
                ("user", "x")),
            *({"role": "user"}, {"content": "x"}, {"role": 5, "content": "x"}, {"role": "user", "content": 5},
                {"": ""}, {1: 2}),
            *({"role": [], "content": "x"}, [{"role": "user", "content": []}], [{"role": "user",
                "content": [5]}], [{}], ["a", "b"]),
            {"role": "user", "content": [{"type": "image"}]},
            {"role": "user", "content": [{"type": "image", "image": None}]},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]},
            {"role": "user", "content": [{"type": "text", "text": b"x"}]},
            {"role": "user", "content": "\ud83d"},
            *(TextSettings, ImageSettings, TextAcceleration(), ImageAcceleration(), int, len, range(3), range(10**9)),
            {"role": "user", "content": [{"type": np.zeros(2), "text": "x"}]},
            *(Path(), Path("no"), Path("\0"), Path("a" * 300), os, np, slice(None), memoryview(b"x"), print),
        ]
    },
    "text settings": lambda: TEXT,
    "image settings": lambda: DRAWN,
    "a number of 5,000 digits": lambda: 10**5000,
    "minus such a number": lambda: -(10**5000),
    "a row of such": lambda: [10**5000],
    "300 characters": lambda: "n" * 300,
    "a million characters": lambda: "a b " * 250_000,
    "a hostile object": Hostile,
    "a row of hostile objects": lambda: [Hostile()],
    "a list in itself": recursive,
    "a thousand brackets": lambda: eval("[" * 90 + "]" * 90),
    "a generator": lambda: (x for x in "abc"),
    "an empty iterator": lambda: iter(()),
    "a text file": lambda: io.StringIO("x"),
    "an empty file": io.BytesIO,
    "a file of texts": Texts,
    "a closed picture": lambda: closed(),
    "a picture of nothing": lambda: Image.new("RGB", (0, 4)),
    "a long picture": lambda: Image.new("1", (200_000, 1)),
    **{
        f"an array {array.shape} of {array.dtype}": (lambda array=array: array)
        for array in [
            *(np.zeros(shape, kind) for shape in [(), (0,), (3,), (0, 0), (4, 4), (1, 1, 1), (4, 4, 3), (0, 4,
                3)] for kind in "?bBhHiIqQefdgFDSUOmM"),
            *(np.full((4, 4), value) for value in (-1, 2**40, 0.5, math.nan, 2**63, "x", None)),
            *(np.zeros((1000, 1000), np.int64), np.zeros((1, 100_000), np.int64), np.zeros((2,) * 20),
                np.zeros(3, [("a", "i4")])),
            *(np.broadcast_to(np.uint8(0), (10**5, 10**5, 3)), np.ma.masked_array([1, 2], [True, False]),
                np.asarray(-1), np.asarray([["a"]])),
            *(np.int8(-1), np.uint64(2**64 - 1), np.float16("nan"), np.longdouble("1e4000"), np.str_("\ud800"),
                np.bytes_(b"x"), np.bool_(True)),
            *(np.datetime64("now"), np.timedelta64(3), np.complex64(1j)),
        ]
    },
}  # fmt: skip


def closed() -> Image.Image:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    image = Image.open(buffer)
    buffer.close()
    return image


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    opened = mmada_lite.load(tiny_bundle, device="cpu", threads=1)
    opened.text_defaults, opened.image_defaults = TEXT, DRAWN
    return opened


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


def methods(cls: type[Any]) -> Iterator[str]:
    """The public methods of a class, those that it inherits from ours too."""
    for name, member in inspect.getmembers(cls, inspect.isfunction):
        if not name.startswith("_") and member.__module__.startswith("mmada_lite"):
            yield name


def calls(model: Model, bundle: Path, picture: Image.Image) -> dict[str, tuple[Callable[..., Any], Mapping[str, Any]]]:
    """Every public callable by its name, with arguments that are right for all that needs one."""
    ids, codes, flags = model.encode("a cat"), [[0] * 4] * 4, [[True] * 4] * 4
    right: dict[str, Mapping[str, Any]] = {
        "load": {"path": bundle, "device": "cpu", "threads": 1},
        "Model": {},
        "Error": {},
        "Model.chat": {"messages": "hi"},
        "Model.ask": {"picture": picture, "question": "what?"},
        "Model.paint": {"prompt": "a cat"},
        "Model.inpaint": {"picture": picture, "mask": Image.new("L", (SIDE, SIDE), 255), "prompt": "a cat"},
        "Model.extend": {"picture": picture, "prompt": "a cat"},
        "Model.complete": {"prompt": ids},
        "Model.draw": {"words": ids, "codes": codes, "unknown": flags},
        "Model.encode": {"text": "a cat"},
        "Model.decode": {"ids": ids},
        "Model.codes_of": {"picture": picture},
        "Model.picture_of": {"codes": codes},
        "TextSettings.blocks": {"start": 3},
        "ImageSettings.guided": {"k": 1},
    }
    made: dict[type[Any], Any] = {
        Model: model,
        TextSettings: TEXT,
        ImageSettings: DRAWN,
        TextAcceleration: TextAcceleration(),
        ImageAcceleration: ImageAcceleration(),
        Answer: model.chat("hi"),
        Drawing: model.paint("a cat"),
    }
    found: dict[str, Callable[..., Any]] = {
        name: getattr(mmada_lite, name) for name in mmada_lite.__all__ if callable(getattr(mmada_lite, name))
    }
    for cls, one in made.items():
        found |= {f"{cls.__name__}.{name}": getattr(one, name) for name in methods(cls)}
    return {name: (call, right.get(name, {})) for name, call in found.items()}


def parameters(call: Callable[..., Any]) -> list[str]:
    """The names of what it takes: of `replace` the settings of both layers."""
    named = inspect.signature(call).parameters
    if [each.kind for each in named.values()] == [inspect.Parameter.VAR_KEYWORD]:
        one = call.__self__  # type: ignore[attr-defined]
        return [*one.flat(), "acceleration"]
    return list(named)


def fault_of(call: Callable[..., Any], *given: Any, **named: Any) -> str | None:
    """What is wrong with a call, in words; None where it ends in a result or in an Error of one line, in time."""
    begun = time.perf_counter()
    try:
        made = call(*given, **named)
        if isinstance(made, (Answer, Drawing)):
            made.result()
    except Error as error:
        said = str(error)
        if "\n" in said or not said or len(said) > 1000:
            return f"says {said[:300]!r}"
    except BaseException as error:
        return f"raises {error!r:.300}"
    spent = time.perf_counter() - begun
    return f"takes {spent:.1f} s" if spent > LONGEST else None


def test_nothing_but_error_comes_out_of_a_wrong_call(
    model: Model,
    tiny_bundle: Path,
    picture: Image.Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pytestconfig: pytest.Config,
) -> None:
    """Each parameter of each callable with each wrong value: a fifth of them, of load a tenth, but for --fuzz."""
    monkeypatch.chdir(tmp_path)
    draw, faults, tried = random.Random(0), [], 0
    for name, (call, right) in calls(model, tiny_bundle, picture).items():
        for parameter in () if name == "Error" else parameters(call):
            for described, value in WRONG.items():
                if draw.random() < (0.9 if name == "load" else 0.8) and not pytestconfig.getoption("--fuzz"):
                    continue
                tried += 1
                if fault := fault_of(call, **{**right, parameter: value()}):
                    faults.append(f"{name}({parameter}={described}) {fault}")
    assert not faults, "\n".join(faults[:40])
    assert tried > 3000


def test_too_many_too_few_and_other_arguments(model: Model, tiny_bundle: Path, picture: Image.Image) -> None:
    for name, (call, right) in calls(model, tiny_bundle, picture).items():
        if name == "Error":
            continue
        for given, named in [((1,) * 20, {}), ((), {**right, "nonsense": 1}), ((1,), right), ((None, {}, b""), {})]:
            assert fault_of(call, *given, **named) is None, (name, given, named)
        for left_out in right:
            assert fault_of(call, **{key: right[key] for key in right if key != left_out}) is None, (name, left_out)


REFUSED: list[tuple[str, Mapping[str, Any], str]] = [
    ("chat", {"messages": "hi", "seed": None}, "seed"),
    ("chat", {"messages": "hi", "seed": -1}, "seed is -1; use a whole number from 0 to 18446744073709551615"),
    ("chat", {"messages": "hi", "seed": True}, "seed"),
    ("chat", {"messages": "hi", "seed": 2**64}, "seed"),
    ("chat", {"messages": "hi", "seed": 1.0}, "seed"),
    ("chat", {"messages": "hi", "settings": {}}, "model.text_defaults.replace(steps=...)"),
    ("chat", {"messages": "hi", "settings": DRAWN}, "model.text_defaults.replace(steps=...)"),
    ("paint", {"prompt": "hi", "settings": {}}, "model.image_defaults.replace(steps=...)"),
    ("paint", {"prompt": "hi", "settings": TEXT}, "model.image_defaults.replace(steps=...)"),
    ("paint", {"prompt": "hi", "think": None}, "think is None; use True or False or a text"),
    ("paint", {"prompt": "a \ud800"}, r"prompt holds '\ud800' at 2, half of a character"),
    ("chat", {"messages": ["hi"]}, "message 1 is 'hi'"),
    ("chat", {"messages": {"role": "user", "content": [{"type": "image_url"}]}}, "image_url"),
    ("codes_of", {"picture": Image.new("RGB", (4, 4)), "fit": "pad"}, "fit is 'pad'; use one of crop, squash"),
    ("chat", {"messages": "hi", "temperature": 1}, "temperature"),
    ("decode", {"ids": [-1]}, "-1"),
    ("draw", {"words": [1], "codes": [[0]], "unknown": [["yes"]]}, "unknown"),
    ("picture_of", {"codes": np.zeros((1000, 1000), int)}, "1000 x 1000"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "named", "said"), REFUSED, ids=[f"{each[0]}-{i}" for i, each in enumerate(REFUSED)])
def test_the_line_says_what_is_wrong_before_any_step(model: Model, method: str, named: Mapping[str, Any], said: str) -> None:
    with pytest.raises(Error) as caught:
        getattr(model, method)(**named)
    assert said in str(caught.value)


@pytest.mark.parametrize("threads", [0, -1, 2**40, 1.0, True, "2"])
def test_threads_that_are_none(tiny_bundle: Path, threads: Any) -> None:
    with pytest.raises(Error, match="threads"):
        mmada_lite.load(tiny_bundle, device="cpu", threads=threads)


def test_more_threads_than_cores_are_as_many_as_cores(tiny_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = mmada_lite.load(tiny_bundle, device="cpu", threads=np.int16(256))
    assert f"the {usable_cores()} cores" in caplog.text
    assert model.chat("hi", TEXT).result().steps > 0


def test_numbers_of_numpy_are_numbers(model: Model, picture: Image.Image) -> None:
    wanted = TextSettings(answer_length=4, steps=4, block_length=4, temperature=0.5)
    given = TextSettings(answer_length=np.int64(4), steps=np.uint8(4), block_length=np.asarray(4), temperature=np.float32(0.5))
    assert given == wanted
    assert {type(value) for value in (given.answer_length, given.steps, given.block_length)} == {int}
    assert type(given.temperature) is float
    assert wanted.replace(thought_first=np.bool_(True)).acceleration.thought_first is True
    assert ImageSettings(steps=np.int16(3), schedule=np.str_("linear")) == ImageSettings(steps=3, schedule="linear")
    assert model.chat("hi", given, seed=np.int32(3)).text == model.chat("hi", wanted, seed=3).text
    assert model.chat("hi", given, seed=np.uint64(2**64 - 1)).result().ids.shape == (4,)
    drawn = [
        model.extend(picture, "a cat", amount=one, seed=two).result().codes
        for one, two in ((0.5, 3), (np.float16(0.5), np.int8(3)))
    ]
    assert np.array_equal(*drawn)
    assert model.decode(iter(np.asarray(model.encode("a cat"), dtype=np.uint16))) == "a cat"


def test_each_part_of_a_long_picture_has_a_seed(model: Model, picture: Image.Image) -> None:
    assert model.extend(picture, "a cat", amount=2.0, seed=2**64 - 4).result().codes.shape == (4, 12)
    with pytest.raises(Error, match="each of the 4 parts takes the next one"):
        model.extend(picture, "a cat", amount=2.0, seed=2**64 - 3)


def test_a_message_is_a_text_a_mapping_or_a_list_of_either_kind_of_content(model: Model, picture: Image.Image) -> None:
    said = {"role": "user", "content": "what is this?"}
    text, image = {"type": "text", "text": "what is this?"}, {"type": "image", "image": picture}
    for same in (said, [said], (said,), {"role": "user", "content": [text]}):
        assert model.chat(same).text == model.chat("what is this?").text
    asked = model.ask(picture, "what is this?").text
    for parts in ([image, text], (text, image)):
        assert model.chat([{"role": "user", "content": parts}]).text == asked
    assert model.ask(picture, said).text == model.ask(np.asarray(picture), [said]).text == asked
    with pytest.raises(Error, match="2 pictures"):
        model.ask(picture, {"role": "user", "content": [image, text]})
    two = [{"type": "text", "text": part} for part in ("one", "two")]
    assert model.chat({"role": "user", "content": two}).text == model.chat("one\ntwo").text


def test_pictures_come_from_paths_bytes_and_open_files(model: Model, picture: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    picture.save(path)
    content = path.read_bytes()
    with path.open("rb") as file:
        sources = [
            path,
            str(path),
            content,
            bytearray(content),
            memoryview(content),
            io.BytesIO(content),
            file,
            Image.open(path),
        ]
        for source in sources:
            assert np.array_equal(model.codes_of(source), model.codes_of(picture))
    with path.open(errors="replace") as file, pytest.raises(Error, match='"rb"'):
        model.codes_of(file)


def test_a_model_of_a_relative_path_outlives_a_change_of_folder(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_bundle.parent)
    for path in (tiny_bundle.name, Path(tiny_bundle.name)):
        monkeypatch.chdir(tiny_bundle.parent)
        model = mmada_lite.load(path, device="cpu", threads=1)
        monkeypatch.chdir(tmp_path)
        assert model.paint("a cat", DRAWN).picture.size == (SIDE, SIDE)
        assert model.chat("hi", TEXT).result().steps > 0


def test_one_setting_of_the_defaults_changes_and_the_others_stay(model: Model) -> None:
    """The way that the error of `settings={}` names, for every setting that a speed changes too."""
    for name, value in PRESETS["fast"][0].items():
        if name not in ("refresh", "entropy_bound"):
            assert TEXT.replace(cache="dual").replace(**{name: value}).flat() == TEXT.flat() | {"cache": "dual", name: value}
