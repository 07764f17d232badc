"""The C++ host says what Python says: the same numbers, tokens, steps and ids, and the same line for the same fault."""

import itertools
import json
import random
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from bundles import golden_bundle, with_file
from cpp_host import Host, Replayed, build, picture_json, settings_json
from odd_texts import WORDS, odd_texts
from PIL import Image
from tokenizers import Regex, pre_tokenizers

import mmada_lite
from mmada_lite import ImageSettings, TextSettings
from mmada_lite.bench.parity import replay
from mmada_lite.bundle import Bundle
from mmada_lite.decoding import generate
from mmada_lite.decoding.sampling import Stream, gumbel, uniform
from mmada_lite.decoding.schedules import masked_after, noise_temperatures
from mmada_lite.model import SIDES, Model, embedded_bundle
from mmada_lite.vocabulary import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
REPLAYS = {"text": replay.replay_text, "mmu": replay.replay_text, "cache": replay.replay_cache, "t2i": replay.replay_image}
RECORDED = [f"{section}/{case.name}" for section in REPLAYS for case in sorted((GOLDEN / section).iterdir()) if case.is_dir()]
# Where the reference's quirks show before a decoding ends, or the rows of a batch wait for each other: Python's loops alone
# know that (tests/decoding/test_decoding.py).
QUIRKS = {
    "text/mha_mask_in_prompt",
    "mmu/gqa_fast_b2_one_row_eot_no_stop",
    "cache/gqa_dual_threshold02_wasted_call",
    "t2i/gqa_inpaint_cfg_stochastic",
    "t2i/mha_inpaint",
}


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """The test program with the small model loaded."""
    running = Host(build(Path(__file__).parent / "host.cpp"))
    loaded = running.call("load", folder=str(embedded_bundle()), threads=1)
    assert "error" not in loaded
    yield running
    assert running.close() == 0


@pytest.fixture(scope="session")
def model() -> Model:
    return mmada_lite.load(device="cpu", threads=1)


@pytest.fixture
def small(host: Host) -> Host:
    """The host with the small model, whatever a test before this one has loaded."""
    host.call("load", folder=str(embedded_bundle()), threads=1)
    return host


def test_random_numbers(host: Host) -> None:
    rng = np.random.default_rng(5)
    for seed in (0, 1, 2**32, 2**64 - 1, 12345678901234567890):
        stream, step = Stream(int(rng.integers(4))), int(rng.integers(2**20))
        rows, positions = rng.integers(0, 2**32, 500), rng.integers(0, 2**32, 500)
        found = host.call(
            "numbers", seed=str(seed), stream=int(stream), step=step, rows=rows.tolist(), positions=positions.tolist()
        )
        expected = uniform(seed, stream, step, rows, positions)
        assert np.array_equal(np.array(found["uniform"], dtype=np.float32), expected)
        assert np.array_equal(np.array(found["gumbel"], dtype=np.float32), gumbel(expected))


@pytest.mark.parametrize("name", ["cosine", "linear", "sigmoid", "pow2", "pow0.5", "pow1e1"])
def test_schedules(host: Host, name: str) -> None:
    steps, tokens = [*range(1, 66), 128], [1, 2, 16, 63, 64, 100, 255, 256, 1000, 1024]
    found = host.call("schedules", name=name, steps=steps, tokens=tokens)
    assert found["masked_after"] == [masked_after(name, n, k).tolist() for k in steps for n in tokens]
    assert found["temperatures"] == [noise_temperatures(1.0, k).tolist() for k in steps]


def test_letters_and_numbers_are_those_of_the_tokenizers_library(host: Host) -> None:
    """Over every character that the Unicode of this Python knows; later ones may differ from library to library."""
    points = [c for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]
    text = "".join(map(chr, points))
    expected = dict.fromkeys(points, 0)
    for kind, pattern in ((1, r"\s"), (2, r"\p{L}"), (3, r"\p{N}")):
        split = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
        expected.update((ord(letter), kind) for piece, _ in split.pre_tokenize_str(text) for letter in piece)
    starts, kinds = zip(*host.call("classes")["runs"], strict=True)
    found = np.array(kinds)[np.searchsorted(starts, points, side="right") - 1]
    assert found.tolist() == list(expected.values())


@pytest.mark.parametrize("which", ["embedded", "tokenizer", "tokenizer_noheader", "tiny"])
def test_tokenizers(host: Host, tiny_bundle: Path, which: str) -> None:
    bundle = {"embedded": embedded_bundle(), "tiny": tiny_bundle}.get(which)
    same_tokens(host, bundle or GOLDEN / "prompting" / which)


def same_tokens(host: Host, folder: Path, also: tuple[str, ...] = ()) -> None:
    """C++ and Python turn the same texts into the same ids, and any ids into the same text. folder: a bundle, or with a
    tokenizer alone."""
    with_model = (folder / "bundle.json").is_file()
    assert not with_model or "error" not in host.call("load", folder=str(folder), threads=1)
    by = {} if with_model else {"tokenizer": str(folder / "tokenizer.json")}
    lower_case = with_model and Bundle.open(folder).knowledge.case == "lower"
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json", lower_case=lower_case)
    given = [*also, *odd_texts(3)]
    ids = [tokenizer.encode(text) for text in given]
    assert host.call("encode", texts=given, **by)["ids"] == ids
    chooser = random.Random(4)
    mixed = [*ids, *([chooser.randint(-2, len(tokenizer) + 9) for _ in range(25)] for _ in range(300))]
    assert host.call("decode", ids=mixed, **by)["texts"] == [tokenizer.decode(row) for row in mixed]


def test_added_tokens_that_are_not_special(host: Host, tiny_bundle: Path, tmp_path: Path) -> None:
    """They are cut out of a text wherever they stand, the longest first, unlike special ones."""
    inner = tokenizers.Tokenizer.from_file(str(tiny_bundle / "tokenizer.json"))
    inner.add_tokens(["<fr", "<frog>", "og> "])
    (tmp_path / "tokenizer.json").write_text(inner.to_str(), encoding="utf-8")
    same_tokens(host, tmp_path, ("a <frog> in <fr og> <frog>og> ", "<frog", "<frog><|eot_id|>"))


@pytest.mark.parametrize(
    ("part", "value", "word"),
    [
        ("normalizer", {"type": "NFC"}, "a normalizer"),
        ("pre_tokenizer", {"type": "Whitespace"}, "the pre-tokenizer Whitespace"),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}, "add_prefix_space"),
        ("pre_tokenizer", {"type": "Digits", "individual_digits": True}, "not of bytes"),
        ("decoder", {"type": "Metaspace"}, "another decoder"),
    ],
)
def test_an_unknown_tokenizer_is_named_and_ids_still_work(
    host: Host, tiny_bundle: Path, tmp_path: Path, part: str, value: Any, word: str
) -> None:
    content = {**json.loads((tiny_bundle / "tokenizer.json").read_text()), part: value}
    folder = with_file(tiny_bundle, tmp_path / "bundle", "tokenizer.json", json.dumps(content).encode())
    assert "error" not in host.call("load", folder=str(folder), threads=1)
    line = host.call("chat", messages=[{"role": "user", "content": "hello"}])["error"]
    assert word in line
    assert "give ids" in line
    chosen = {"answer_length": 8, "steps": 4, "block_length": 4}
    python = mmada_lite.load(tiny_bundle, device="cpu", threads=1)
    expected = python.chat("hello", TextSettings(**chosen)).result().ids.tolist()
    prompt = chat_row(python, "hello")
    assert host.call("complete", prompt=prompt, settings=chosen)["ids"] == expected
    assert python.complete(prompt, TextSettings(**chosen)).result().ids.tolist() == expected


def chat_row(model: Model, text: str) -> list[int]:
    from mmada_lite.decoding.rows import chat_ids

    return chat_ids(model.tokenizer, model.vocabulary, [{"role": "user", "content": text}])


@pytest.fixture(scope="session")
def recorded_bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("recorded")
    return lambda name: golden_bundle(GOLDEN / "llm" / name, folder / name)


@pytest.mark.parametrize("name", [name for name in RECORDED if name not in QUIRKS])
def test_recorded_decodings_replay(
    host: Host, recorded_bundles: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Recorded decodings of the reference through the C++ loops: tokens after every step, calls, spans, logits.

    Of a picture the reference leaves one mask in each row, which the default law fills: that is all that may differ.
    """
    section, case = name.split("/")
    replayed = Replayed(host, recorded_bundles(case.split("_")[0]))
    monkeypatch.setattr(generate, "decode_text", replayed.decode_text)
    monkeypatch.setattr(generate, "decode_image", replayed.decode_image)
    recorded = replay.Case.load(GOLDEN / section / case, name)
    compared = list(REPLAYS[section](None, recorded))  # type: ignore[operator]
    assert replayed.jobs > 0
    failed = {c.what: c.difference for c in compared if not c.passed}
    assert failed == ({"ids after every step": len(recorded.tensors["input_ids"])} if section == "t2i" else {})


@pytest.mark.parametrize("name", sorted(QUIRKS))
def test_where_the_laws_differ_both_loops_go_on_alike(
    host: Host, recorded_bundles: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A recorded canvas with recorded choices under the default law: the tokens after every step are Python's."""
    section, case = name.split("/")
    folder = recorded_bundles(case.split("_")[0])
    replayed = Replayed(host, folder, beside=mmada_lite.load(folder, device="cpu", threads=1).denoiser)
    monkeypatch.setattr(generate, "decode_text", replayed.decode_text)
    monkeypatch.setattr(generate, "decode_image", replayed.decode_image)
    recorded = replay.Case.load(GOLDEN / section / case, name)
    recorded = replace(recorded, tensors={key: value for key, value in recorded.tensors.items() if "logits" not in key})
    compared = list(REPLAYS[section](None, recorded))  # type: ignore[operator]
    assert replayed.jobs > 0
    assert any(not c.passed for c in compared)  # else it belongs into the test above


def text_cases(count: int, seed: int) -> list[tuple[str, TextSettings, int]]:
    """Prompts with settings of every kind, and their seeds."""
    chooser = random.Random(seed)
    cases = []
    for number in range(count):
        length = chooser.randint(3, 24)
        block = chooser.randint(2, 12)
        blocks = -(-length // block)
        settings = TextSettings(
            answer_length=length,
            steps=chooser.randint(blocks, length),
            block_length=block,
            temperature=chooser.choice([0.0, 0.7, 1.0]),
            guidance=chooser.choice([0.0, 0.0, 1.5]),
            order=chooser.choice(["low_confidence", "low_confidence", "random"]),
        ).replace(cache=chooser.choice(["none", "prefix", "dual"]), threshold=chooser.choice([None, None, 0.6]))
        cases.append((" ".join(chooser.choices(WORDS, k=chooser.randint(1, 9))), settings, number * 977))
    return cases


def image_cases(count: int, seed: int) -> list[tuple[str, ImageSettings | None, int]]:
    chooser = random.Random(seed)
    cases: list[tuple[str, ImageSettings | None, int]] = [("a cat on a yellow background", None, 3)]
    for number in range(count - 1):
        settings = ImageSettings(
            steps=chooser.randint(1, 16),
            guidance=chooser.choice([0.0, 2.5, 3.5]),
            schedule=chooser.choice(["cosine", "linear", "sigmoid", "pow2"]),
            temperature=chooser.choice([0.0, 1.0, 2.0]),
            sampling_temperature=chooser.choice([0.0, 1.0]),
        )
        cases.append((" ".join(chooser.choices(WORDS, k=6)), settings, 2**63 + number))
    return cases


def same_steps(steps: list[Any], found: dict[str, Any]) -> None:
    assert [step.positions.tolist() for step in steps] == found["positions"]
    assert found["steps"] == len(steps)


@pytest.mark.parametrize(("prompt", "settings", "seed"), image_cases(40, 1))
def test_drawings_are_the_same(small: Host, model: Model, prompt: str, settings: ImageSettings | None, seed: int) -> None:
    """40 of the hundred seeded prompts: every step writes the same places, the codes are equal, pixels within rounding."""
    drawing = model.paint(prompt, settings, seed=seed)
    steps = list(drawing)
    found = small.call("paint", prompt=prompt, settings=settings_json(settings), seed=str(seed))
    assert found["codes"] == drawing.codes.reshape(-1).tolist()
    same_steps(steps, found)
    assert np.abs(np.array(found["bytes"]) - np.asarray(drawing.picture, dtype=int).reshape(-1)).max() <= 1


@pytest.mark.parametrize(("prompt", "settings", "seed"), text_cases(35, 2))
def test_answers_are_the_same(small: Host, model: Model, prompt: str, settings: TextSettings, seed: int) -> None:
    """35 of the hundred."""
    answer = model.chat(prompt, settings, seed=seed)
    steps = list(answer)
    messages = [{"role": "user", "content": prompt}]
    found = small.call("chat", messages=messages, settings=settings_json(settings), seed=str(seed))
    assert found["ids"] == answer.ids.tolist()
    assert (found["text"], found["complete"]) == (answer.text, answer.result().complete)
    same_steps(steps, found)


@pytest.mark.parametrize(("prompt", "settings", "seed"), text_cases(25, 3))
def test_answers_about_pictures_are_the_same(small: Host, model: Model, prompt: str, settings: TextSettings, seed: int) -> None:
    """The last 25, each about a picture of another size that has to be fitted."""
    chooser = np.random.default_rng(seed)
    width, height = (int(n) for n in chooser.integers(20, 180, 2))
    image = Image.fromarray(chooser.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)).resize(
        (width, height)
    )
    squash = bool(seed % 2)
    answer = model.ask(image, prompt, settings, seed=seed, fit="squash" if squash else "crop")
    steps = list(answer)
    job: dict[str, Any] = {"squash": True} if squash else {}
    found = small.call(
        "ask", picture=picture_json(image), question=prompt, settings=settings_json(settings), seed=str(seed), **job
    )
    assert found["ids"] == answer.ids.tolist()
    assert found["text"] == answer.text
    same_steps(steps, found)


def test_conversations_and_whitespace(small: Host, model: Model) -> None:
    messages = [
        {"role": "system", "content": " \u00a0be brief\n"},
        {"role": "user", "content": "\x1f what is 3 + 4?\u2003"},
        {"role": "assistant", "content": "7"},
        {"role": "user", "content": "and <|eot_id|> twice that?"},
    ]
    assert small.call("chat", messages=messages)["ids"] == model.chat(messages).result().ids.tolist()


@pytest.fixture(scope="session")
def drawn(model: Model) -> Image.Image:
    return model.paint("a star on a black background", seed=1).picture


@pytest.mark.parametrize("size", [(64, 64), (90, 70), (50, 120)])
def test_inpainting_is_the_same(small: Host, model: Model, drawn: Image.Image, size: tuple[int, int]) -> None:
    image = drawn.resize(size)
    mask = Image.new("L", size)
    mask.paste(255, (size[0] // 3, size[1] // 4, size[0] * 2 // 3, size[1] * 2 // 3))
    for settings, seed in ((None, 5), (ImageSettings(4, 1.0, "linear"), 6)):
        drawing = model.inpaint(image, mask, "a red heart", settings, seed=seed).result()
        found = small.call(
            "inpaint",
            picture=picture_json(image),
            mask=picture_json(mask),
            prompt="a red heart",
            settings=settings_json(settings),
            seed=str(seed),
        )
        assert found["codes"] == drawing.codes.reshape(-1).tolist()
        assert np.abs(np.array(found["bytes"]) - np.asarray(drawing.picture, dtype=int).reshape(-1)).max() <= 1


@pytest.mark.parametrize(("side", "amount"), [("right", 0.5), ("left", 0.3), ("top", 1.25), ("bottom", 0.125)])
def test_extending_is_the_same(small: Host, model: Model, drawn: Image.Image, side: Any, amount: float) -> None:
    drawing = model.extend(drawn, "a moon", side=side, amount=amount, seed=9)
    steps = list(drawing)
    found = small.call("extend", picture=picture_json(drawn), prompt="a moon", side=SIDES[side], amount=amount, seed="9")
    assert (found["rows"], found["columns"]) == drawing.codes.shape
    assert found["codes"] == drawing.codes.reshape(-1).tolist()
    same_steps(steps, found)
    assert (found["width"], found["height"]) == drawing.picture.size
    assert np.abs(np.array(found["bytes"]) - np.asarray(drawing.picture, dtype=int).reshape(-1)).max() <= 1


def test_codes_of_a_picture_and_the_picture_of_codes_are_the_same(small: Host, model: Model, drawn: Image.Image) -> None:
    """Of a picture that has to be fitted too."""
    wide = drawn.resize((90, 70))
    for picture in (drawn, wide):
        codes = model.codes_of(picture)
        found = small.call("codes_of", picture=picture_json(picture))
        assert found == {"shape": list(codes.shape), "codes": codes.reshape(-1).tolist()}
    found, picture = small.call("picture_of", **found), model.picture_of(codes)
    assert (found["width"], found["height"]) == picture.size
    assert np.abs(np.array(found["bytes"]) - np.asarray(picture, dtype=int).reshape(-1)).max() <= 1


def test_given_codes_stay(small: Host, model: Model) -> None:
    """And the others are drawn as Python draws them."""
    side = model.codec.grid
    codes = np.arange(side * side) % model.vocabulary.codebook_size
    unknown = np.arange(side * side) % 3 == 0
    words = model.tokenizer.encode("a dog")
    job = {"rows": side, "columns": side, "codes": codes.tolist(), "unknown": unknown.astype(int).tolist(), "words": words}
    found = np.array(small.call("draw", **job)["codes"])
    assert (found[~unknown] == codes[~unknown]).all()
    assert (found[unknown] != codes[unknown]).any()
    drawing = model.draw(words, codes.reshape(side, side), unknown.reshape(side, side))
    assert (found == drawing.result().codes.reshape(-1)).all()


@pytest.mark.parametrize("op", ["paint", "chat"])
def test_a_callback_stops_and_a_callback_throws(small: Host, op: str) -> None:
    """After either the model is as good as new; what stood when it was stopped is handed back."""
    job: dict[str, Any] = {"prompt": "a cat"} if op == "paint" else {"messages": [{"role": "user", "content": "hello"}]}
    whole = small.call(op, **job)
    stopped = small.call(op, stop_at=1, **job)
    assert stopped["stopped"]
    assert not whole["stopped"]
    assert stopped["steps"] == 2
    assert stopped["positions"] == whole["positions"][:2]
    assert small.call(op, throw_at=1, **job) == {"thrown": "thrown by the callback"}
    assert small.call(op, **job) == whole


def test_a_model_is_moved_and_the_one_it_left_says_so(small: Host) -> None:
    found = small.call("moved")
    assert "moved from" in found["line"]
    assert found["resolution"] > 0


def test_every_setting_law_holds_without_a_pad(small: Host, model: Model) -> None:
    """The bundle's own defaults are read as Python reads them: no settings means those."""
    chosen = model.text_defaults.replace(steps=model.text_defaults.answer_length)
    by_default = small.call("chat", messages=[{"role": "user", "content": "hello"}])
    assert by_default["ids"] == model.chat("hello").result().ids.tolist()
    said = small.call("chat", messages=[{"role": "user", "content": "hello"}], settings=settings_json(chosen))
    assert said["ids"] == model.chat("hello", chosen).result().ids.tolist()
    assert len(list(itertools.chain(*by_default["positions"]))) <= model.text_defaults.answer_length
