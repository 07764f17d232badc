"""The page in examples/web, in a real browser: it draws the pixels that Python draws, step by step, from the same numbers.

A browser multiplies matrices in another order, so a draw whose uniform number falls on the border between two codes, within
rounding, may land on the other side. Every other difference is a fault.
"""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Page, serve
from numpy.typing import NDArray
from odd_texts import odd_texts
from PIL import Image
from web_agreement import agree, drawing_of, painted

import mmada_lite
from mmada_lite.decoding.image import decode_image
from mmada_lite.decoding.rows import chat_ids
from mmada_lite.decoding.sampling import Stream, gumbel, uniform
from mmada_lite.decoding.schedules import masked_after, noise_temperatures, transfers
from mmada_lite.decoding.settings import ImageSettings, plain
from mmada_lite.export.bundle import export_checkpoint

ROOT = Path(__file__).parents[2]
BUNDLE = "../../mmada_lite/models/emoji"  # from the page
CAPTIONS = ["an apple on a blue background", "a cat on a yellow background"]
ODD_TEXTS = ["a cat", "  two  spaces", "x<|eot_id|>y", "12 + 345?", "don't", "Ünïcödé ☂ 漢字", "tab\tand\nline", "", "🍎🍏"]


def test_random_numbers_are_bit_for_bit_pythons(page: Page) -> None:
    positions = [0, 1, 2, 3, 4, 63, 1023, 4096, 2**31 + 5]
    for seed, stream, step, row in [(0, 0, 0, 0), (7, 1, 3, 0), (2**32, 2, 15, 1), (2**64 - 1, 3, 1000, 4)]:
        script = f"const m = await import('./philox.js'); const u = m.uniform({seed}n, {stream}, {step}, {row}, {positions});"
        ours = uniform(seed, stream, step, row, positions)  # type: ignore[arg-type]
        assert page.run(script + "return [...u]") == ours.tolist()
        assert page.run(script + "return [...u].map(m.gumbel)") == pytest.approx(gumbel(ours).tolist(), rel=1e-6, abs=1e-6)


def test_the_numbers_that_the_document_gives_are_right() -> None:
    document = (ROOT / "docs" / "bundle.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (2\^64 - 1|\d+) \| (\d) \| (\d+) \| (\d+) \| [^|]+ \| ([\d, ]+) \|$", document, re.MULTILINE)
    assert len(rows) == 3
    for seed, stream, step, row, numbers in rows:
        key = 2**64 - 1 if "^" in seed else int(seed)
        drawn = uniform(key, Stream(int(stream)), int(step), int(row), [0, 1, 2, 3, 4, 63])
        assert [int(u * 2**23 - 0.5) for u in drawn.tolist()] == [int(number) for number in numbers.split(",")]
    said = re.search(r"For n = 64 and T = 16 the ([^.]+)\.", document)
    assert said
    series = re.findall(r"(\w+)(?:\s+gives)? ((?:-?\d+,?\s*){16})", said[1])
    assert [name for name, _ in series] == ["cosine", "pow2", "sigmoid"]
    for name, counts in series:
        assert masked_after(name, 64, 16).tolist() == [int(number) for number in re.findall(r"-?\d+", counts)]


def test_schedules_are_pythons(page: Page) -> None:
    names, counts = ["cosine", "linear", "sigmoid", "pow2", "pow0.5"], [1, 3, 16, 64, 256, 1000]
    for name in names:
        script = (
            f"const schedules = await import('./schedules.js'); return {counts}.map((n) => "
            f"Array.from({{length: Math.min(n, 40)}}, (_, t) => schedules.maskedAfter('{name}', n, t + 1)))"
        )
        ours = [[masked_after(name, n, steps).tolist() for steps in range(1, min(n, 40) + 1)] for n in counts]
        assert page.run(script) == ours
    script = "const s = await import('./schedules.js'); return [s.noiseTemperatures(1.7, 15), s.transfers(23, 5)]"
    assert page.run(script) == [noise_temperatures(1.7, 15).tolist(), transfers(23, 5).tolist()]


def test_texts_become_the_same_ids(page: Page, model: mmada_lite.Model) -> None:
    given = [*ODD_TEXTS, *odd_texts(3)]
    theirs = page.run(f"return {json.dumps(given)}.map((text) => model.vocabulary.encode(text))")
    assert len(given) > 500
    assert theirs == [model.tokenizer.encode(text) for text in given]
    prompt = chat_ids(model.tokenizer, model.vocabulary, [{"role": "user", "content": "what is this?"}])
    assert page.run("return model.vocabulary.questionPrompt('what is this?')") == prompt
    back = [text for text in ODD_TEXTS if text]
    assert page.run(f"return {json.dumps(back)}.map((text) => model.vocabulary.decode(model.vocabulary.encode(text)))") == back


def test_what_training_cuts_pads_and_puts_around_is_undone(page: Page, model: mmada_lite.Model) -> None:
    assert model.bundle.tokenizer_path is not None
    content = json.loads(model.bundle.tokenizer_path.read_text(encoding="utf-8"))
    content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {"strategy": {"Fixed": 64}, "direction": "Left", "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
    twice = [{"Sequence": {"id": "A", "type_id": 0}}] * 2
    content["post_processor"] = {"type": "TemplateProcessing", "single": twice, "pair": twice, "special_tokens": {}}
    content["model"]["dropout"] = 0.9
    script = (
        f"const {{ Vocabulary }} = await import('./vocabulary.js'); const file = {json.dumps(content)}; "
        "const numbers = { special: model.vocabulary.special, image_code_offset: model.vocabulary.codeOffset }; "
        "const bytes = new TextEncoder().encode(JSON.stringify(file)); "
        "return new Vocabulary(numbers, model.vocabulary.rows, bytes).encode('a longer text')"
    )
    assert page.run(script) == model.encode("a longer text")


def test_the_page_draws_what_python_draws(page: Page, model: mmada_lite.Model) -> None:
    """A caption and a seed are typed, the button is pressed, and the canvas is looked at: each step, and the end."""
    steps = _draw_on_the_page(page, CAPTIONS[0], seed=11)
    frames = [_pixels(frame) for frame in page.run("return frames")[1:]]  # the first stood there before
    predicted = [step["predictedCodes"] for step in steps]
    new = [codes for codes, before in zip(predicted, [None, *predicted], strict=False) if codes != before]
    assert len(steps) == model.image_defaults.steps
    assert len(frames) == len(new) > 1  # each was painted that differs from the one before
    for codes, pixels in zip(new, frames, strict=True):
        ours = model.codec.decode(np.array(codes).reshape(model.codec.grid, -1))
        assert np.abs(pixels - np.asarray(ours)).max() <= 1
    assert frames[-1].std() > 10  # a picture, not a plain colour
    if agree(steps, model, CAPTIONS[0], 11, model.image_defaults):
        assert np.abs(frames[-1] - np.asarray(model.paint(CAPTIONS[0], seed=11).picture)).max() <= 1


def test_the_picture_is_enlarged_and_sharp_on_the_screen(page: Page) -> None:
    """In a photograph of the page every pixel of the canvas is a square of its own colour, also on a telephone."""
    _draw_on_the_page(page, CAPTIONS[1], seed=5, steps=4)
    canvas = _pixels(page.run("return document.getElementById('picture').toDataURL()"))
    side = canvas.shape[0]
    inner = np.arange(side // 8, side - side // 8)  # the frame's corners are round
    for width in (1000, 390):
        page.resize(width, 1200)
        assert page.run("return document.documentElement.scrollWidth <= innerWidth")
        left, top, size = page.run(
            "const box = document.getElementById('picture').getBoundingClientRect(); return [box.left, box.top, box.width]"
        )
        assert size > 5 * side
        middles = (inner + 0.5) * size / side
        photograph = np.asarray(page.photograph()).astype(int)
        shown = photograph[(top + middles).astype(int)][:, (left + middles).astype(int)]
        assert np.abs(shown - canvas[inner][:, inner]).max() <= 2


def test_most_drawings_are_the_same_in_every_code(page: Page, model: mmada_lite.Model) -> None:
    short = model.image_defaults.replace(steps=6)
    greedy = short.replace(sampling_temperature=0.0)
    same = 0
    for seed, settings in [(1, greedy), (2**63 + 1, greedy), (3, short), (4, short), (5, short), (6, short)]:
        caption = CAPTIONS[seed % 2]
        steps = painted(page, "model", caption, settings, seed)
        identical = agree(steps, model, caption, seed, settings)
        assert identical or settings is short
        same += identical
    assert same >= 3


def test_answers_are_pythons(page: Page, model: mmada_lite.Model) -> None:
    """Greedy and drawn, with and without guidance, thresholds, an order by chance and both caches."""
    changes: list[dict[str, Any]] = [{}, {"temperature": 0.7}, {"guidance": 1.0}, {"threshold": 0.9}, {"order": "random"}]
    changes += [{"cache": "dual", "block_length": 4}, {"cache": "prefix", "block_length": 8, "guidance": 0.5}]
    for seed, change in enumerate(changes):
        settings = model.text_defaults.replace(answer_length=16, **{"block_length": 16, "steps": 8, **change})
        script = f"model.ask('what is 3 + 4?', null, {json.dumps(plain(settings))}, {seed}n)"
        theirs = page.run(f"let last; for await (last of {script}); return [last.ids, last.text]")
        ours = model.chat("what is 3 + 4?", settings, seed=seed)
        assert theirs == [ours.result().ids.tolist(), ours.text], change


def test_a_bundle_of_another_shape_from_another_server(page: Page, tiny_bundle: Path) -> None:
    """Random weights: candidates are about equally probable, the mask among them. Page and bundle have a server each."""
    tiny = mmada_lite.load(tiny_bundle, device="cpu")
    images = ImageSettings(steps=5, guidance=1.5, schedule="pow2")
    texts = mmada_lite.TextSettings(answer_length=12, steps=7, block_length=5, temperature=1.0).replace(cache="dual")
    with serve(tiny_bundle) as base:
        page.run(f"window.tiny = await (await import('./model.js')).Model.open('{base}')")
    steps = painted(page, "tiny", "a b", images, 9)
    assert steps[-1]["masked"] == []
    agree(steps, tiny, "a b", 9, images)
    script = f"tiny.ask('a b', null, {json.dumps(plain(texts))}, 4n)"
    theirs = page.run(f"let last; for await (last of {script}); return last.ids")
    assert theirs == tiny.chat("a b", texts, seed=4).result().ids.tolist()


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantized_bundles_draw_too(page: Page, tiny_checkpoint: Path, tmp_path: Path, precision: str) -> None:
    bundle = export_checkpoint(tiny_checkpoint, tmp_path / precision, precision=precision)
    with serve(bundle) as base:
        page.run(f"window.tiny = await (await import('./model.js')).Model.open('{base}')")
    steps = painted(page, "tiny", "a b", ImageSettings(steps=3), 0)
    first, *_ = decode_image(*drawing_of(mmada_lite.load(bundle, device="cpu"), "a b", 0, ImageSettings(steps=3)))
    assert first.predicted_codes is not None
    assert (
        np.mean(first.predicted_codes[0] == steps[0]["predictedCodes"]) > 0.5
    )  # activations are rounded: a little of noise goes a long way
    assert steps[-1]["masked"] == []


def test_the_reference_mode_is_refused(page: Page, model: mmada_lite.Model) -> None:
    with pytest.raises(RuntimeError, match='not "reference"'):
        painted(page, "model", CAPTIONS[0], model.image_defaults.replace(mode="reference"), 0)


@pytest.mark.parametrize(
    ("changes", "name"), [({"refresh": 4, "candidate_ratio": 2.0}, "refresh"), ({"guidance_to": 0.5}, "guidance_to")]
)
def test_settings_that_the_page_does_not_know_are_refused(page: Page, model: mmada_lite.Model, changes: Any, name: str) -> None:
    with pytest.raises(RuntimeError, match=f'does not decode with "{name}"'):
        painted(page, "model", CAPTIONS[0], model.image_defaults.replace(**changes), 0)


def test_a_question_about_the_drawing_is_answered_as_in_python(page: Page, model: mmada_lite.Model) -> None:
    _draw_on_the_page(page, CAPTIONS[0], seed=2, steps=4)
    page.run(
        "document.addEventListener('answered', () => (window.said = true), {once: true});document.getElementById('ask').click()"
    )
    page.wait("window.said")
    picture = Image.fromarray(_pixels(page.run("return document.getElementById('picture').toDataURL()")).astype(np.uint8))
    assert page.run("return document.getElementById('answer').textContent") == model.ask(picture, "what is this?").text


def test_holes_are_filled_as_in_python(page: Page, model: mmada_lite.Model) -> None:
    """Of the text that stands on the page."""
    page.run(
        "document.addEventListener('filled', () => (window.done = true), {once: true});"
        "document.getElementById('complete').click()"
    )
    page.wait("window.done === true")
    text = page.run("return document.getElementById('holes').value")
    assert page.run("return document.getElementById('filled').textContent") == model.fill(text).text


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("caption", "cat " * 600, "shorten"),
        ("seed", "-1", "seed"),
        ("seed", str(2**64), "seed"),
        ("steps", "1000000", "steps"),
        ("caption", " ", "caption is empty"),
    ],
)
def test_bad_input_is_said_and_changes_no_pixel(page: Page, field: str, value: str, says: str) -> None:
    _draw_on_the_page(page, CAPTIONS[0], seed=0, steps=2)
    before = page.run("return document.getElementById('picture').toDataURL()")
    _press_draw(page, {field: value})
    assert says in page.run("return document.querySelector('#status.wrong').textContent")
    assert page.run("return document.getElementById('picture').toDataURL()") == before
    assert page.run("return !document.getElementById('ask').disabled")


def test_drawing_can_be_stopped(page: Page) -> None:
    page.run("document.addEventListener('step', () => document.getElementById('draw').click(), {once: true})")
    steps = _draw_on_the_page(page, CAPTIONS[0], seed=0, steps=10)
    assert len(steps) == 1
    assert page.run("return document.getElementById('draw').textContent") == "Draw"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("bytes[bytes.length >> 1] ^= 1; return new Response(bytes)", "weights.bin is damaged"),
        ("return new Response(bytes.slice(0, -1))", "weights.bin has [0-9]+ bytes of [0-9]+"),
        ("return new Response('', {status: 404})", "weights.bin answers 404"),
        ("throw new TypeError()", "no answer for .*weights.bin"),
    ],
)
def test_a_damaged_bundle_is_refused(page: Page, answer: str, says: str) -> None:
    script = f"""
        const [real, {{openBundle}}] = [window.fetch, await import("./bundle.js")];
        window.fetch = async (url) => {{
          const found = await real(url);
          if (!String(url).endsWith("weights.bin")) return found;
          const bytes = new Uint8Array(await found.arrayBuffer());
          {answer};
        }};
        try {{ await openBundle("{BUNDLE}"); }} finally {{ window.fetch = real; }}
    """
    with pytest.raises(RuntimeError, match=says):
        page.run(script)


def _draw_on_the_page(page: Page, caption: str, seed: int, steps: int | None = None) -> list[dict[str, Any]]:
    """Type, press, wait; what each step said. `frames` in the page: the canvas whenever it was painted differently."""
    page.run(
        """
        window.steps = []; window.frames = []; window.watching = true;
        const note = ({detail: {predictedCodes, masked}}) => window.steps.push({predictedCodes, masked});
        window.noting ??= document.addEventListener("step", note) ?? true;
        const look = () => {
          const now = document.getElementById("picture").toDataURL();
          if (now !== frames.at(-1)) frames.push(now);
          if (watching) requestAnimationFrame(look);
        };
        look();
        """
    )
    _press_draw(
        page, {"caption": caption, "seed": str(seed), "steps": str(steps or page.run("return model.defaults.image.steps"))}
    )
    page.run("watching = false")
    return list(page.run("return steps"))


def _press_draw(page: Page, typed: dict[str, str]) -> None:
    for field, value in typed.items():
        page.run(f"document.getElementById('{field}').value = {json.dumps(value)}")
    page.run("window.over = false; document.addEventListener('drawn', () => (over = true), {once: true})")
    page.run("document.getElementById('draw').click()")
    page.wait("over")


def _pixels(url: str) -> NDArray[np.int64]:
    image = Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1])))
    return np.asarray(image.convert("RGB")).astype(np.int64)
