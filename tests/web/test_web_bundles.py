"""What the page in examples/web makes of bundle.json: rows from its templates, settings by their names, format 1 as format 2,
and one line for what it does not have. A refused bundle is bundle.json alone: nothing else may be asked for."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from browser import Page, browse, find_chromium, serve
from bundles import in_format_1, with_file
from web_agreement import agree, painted

import mmada_lite
from mmada_lite.decoding.rows import chat_ids, paint_prompt, picture_end, picture_prompt, unconditional_prompt
from mmada_lite.decoding.settings import ImageSettings, TextSettings, plain
from mmada_lite.model import embedded_bundle

Content = dict[str, Any]
QUESTION = [{"role": "user", "content": "a b"}]
OTHER_ROWS: Content = {
    "message": ["bos", {"text": "<{role}: {content}>"}, "eot"],
    "chat": ["bos", "{messages}", {"text": "so "}, "start_header", "{masks}"],
    "ask": ["soi", "{codes}", "mmu", "eoi", "bos", "{chat}"],
    "paint": ["bos", "t2i", {"text": "draw "}, "{prompt}", "soi", "{codes}", "eoi", "eos"],
    "unconditional": ["soi", "{codes}", "eoi", "eos"],
}


def altered(bundle: Path, target: Path, change: Callable[[Content], object]) -> Path:
    """A copy of a bundle whose bundle.json says something else."""
    shutil.copytree(bundle, target)
    content = json.loads((target / "bundle.json").read_text(encoding="utf-8"))
    change(content)
    (target / "bundle.json").write_text(json.dumps(content), encoding="utf-8")
    return target


def opened(page: Page, name: str, bundle: Path) -> None:
    """Put the model of a bundle into a variable of the page."""
    with serve(bundle) as base:
        page.run(f"window.{name} = await (await import('./model.js')).Model.open('{base}')")


def complaint(page: Page, script: str) -> str:
    """What a script throws."""
    return str(page.run(f"try {{ {script} }} catch (fault) {{ return fault.message }} return 'nothing'"))


def answered(page: Page, model: str, rest: str = "") -> list[int]:
    return list(page.run(f"let last; for await (last of {model}.ask('what is this?'{rest})); return last.ids"))


def test_format_1_draws_and_answers_as_format_2(page: Page, tmp_path: Path) -> None:
    """Also with settings that its defaults set. In one browser both must be the same in every code."""

    def change(content: Content) -> None:
        content["defaults"]["text"] |= {"answer_length": 16, "steps": 8, "acceleration": {"cache": "dual", "threshold": 0.9}}
        content["defaults"]["image"] |= {"steps": 5, "schedule": "linear"}

    newer = altered(embedded_bundle(), tmp_path / "2", change)
    opened(page, "newer", newer)
    opened(page, "older", in_format_1(newer, tmp_path / "1"))
    assert page.run("return older.manifest.format_version") == 1
    shown = (
        "const steps = []; for await (const {{predictedCodes, masked}} of {0}.paint('a cat', undefined, 3n)) "
        "steps.push({{predictedCodes, masked}}); return [steps, {0}.defaults]"
    )
    assert page.run(shown.format("older")) == page.run(shown.format("newer"))
    page.run("for await (const {picture} of newer.paint('a cat', {steps: 3})) window.cat = picture")
    for about in ("", ", cat"):
        assert answered(page, "older", about) == answered(page, "newer", about)


def test_rows_are_laid_out_as_the_bundle_says(page: Page, tiny_bundle: Path, tmp_path: Path) -> None:
    """Another order, texts within, bos twice where it says so, nothing before the picture that guidance compares with."""
    folder = altered(tiny_bundle, tmp_path / "rows", lambda content: content.update(rows=OTHER_ROWS))
    opened(page, "tiny", folder)
    model = mmada_lite.load(folder, device="cpu")
    encode, vocabulary = model.tokenizer.encode, model.vocabulary
    painting = {"before": paint_prompt(encode("a b"), vocabulary), "after": picture_end(vocabulary)}
    assert page.run("return tiny.vocabulary.paintRow('a b')") == painting
    assert page.run("return tiny.vocabulary.unconditionalRow().before") == unconditional_prompt(vocabulary)
    chat = chat_ids(model.tokenizer, vocabulary, QUESTION)
    assert chat.count(vocabulary.special.bos) == 2
    assert page.run("return tiny.vocabulary.questionPrompt('a b')") == chat
    about = picture_prompt([3, 1, 2, 0], vocabulary) + chat
    assert page.run("return tiny.vocabulary.questionPrompt('a b', [3, 1, 2, 0])") == about
    settings = ImageSettings(steps=4, guidance=1.5)
    agree(painted(page, "tiny", "a b", settings, 2), model, "a b", 2, settings)


def test_what_is_typed_is_no_template(page: Page, model: mmada_lite.Model) -> None:
    typed = "{role} {content} $& {masks}"
    ours = chat_ids(model.tokenizer, model.vocabulary, [{"role": "user", "content": typed}])
    assert page.run(f"return model.vocabulary.questionPrompt({json.dumps(typed)})") == ours


def test_a_row_that_the_model_lacks_is_named(page: Page, tiny_bundle: Path, tmp_path: Path) -> None:
    few = {name: OTHER_ROWS[name] for name in ("message", "chat")}
    opened(page, "tiny", altered(tiny_bundle, tmp_path / "rows", lambda content: content.update(rows=few)))
    no_row = 'this model has no row "{}", so it cannot do this; it has message, chat'
    assert complaint(page, "await tiny.paint('a b').next()") == no_row.format("paint")
    picture = "{data: new Uint8ClampedArray(16 * 16 * 4), width: 16, height: 16}"
    assert complaint(page, f"await tiny.ask('a b', {picture}).next()") == no_row.format("ask")
    assert answered(page, "tiny", ", null, {answer_length: 4, steps: 2, block_length: 4}")


def test_what_defaults_leave_out_is_at_its_default(page: Page, tiny_bundle: Path, tmp_path: Path) -> None:
    said = {"text": {"acceleration": {"cache": "prefix"}}, "image": {"steps": 99}}
    opened(page, "tiny", altered(tiny_bundle, tmp_path / "few", lambda content: content.update(defaults=said)))
    text = plain(TextSettings()) | {"acceleration": {"cache": "prefix", "threshold": None}}
    assert page.run("return tiny.defaults") == {
        "text": text,
        "image": asdict(ImageSettings()) | {"steps": 16, "acceleration": {}},
    }


NO_PICTURES = "this bundle has no image tokenizer and cannot see or draw; export it with its vq folder"


@pytest.fixture(scope="module")
def blind_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint without its image tokenizer, as a bundle."""
    from mmada_lite.export.bundle import export_checkpoint

    folder = tmp_path_factory.mktemp("blind")
    copy = shutil.copytree(tiny_checkpoint, folder / "checkpoint", ignore=shutil.ignore_patterns("vq"))
    return export_checkpoint(copy, folder / "bundle", precision="fp32")


def test_a_bundle_without_pictures_reads_and_writes_texts(page: Page, blind_bundle: Path) -> None:
    opened(page, "blind", blind_bundle)
    model = mmada_lite.load(blind_bundle, device="cpu")
    settings = TextSettings(answer_length=8, steps=4, block_length=8, temperature=1.0)
    theirs = answered(page, "blind", f", null, {json.dumps(plain(settings))}, 3n")
    assert theirs == model.chat("what is this?", settings, seed=3).result().ids.tolist()
    picture = "{data: new Uint8ClampedArray(16 * 16 * 4), width: 16, height: 16}"
    for script in ("paint('a b').next()", f"ask('a b', {picture}).next()", f"codesOf({picture})"):
        assert complaint(page, f"await blind.{script}") == NO_PICTURES
    with pytest.raises(mmada_lite.Error) as fault:
        model.paint("a b")
    assert str(fault.value).removeprefix(str(blind_bundle)) == NO_PICTURES.removeprefix("this bundle")


def test_the_page_of_a_bundle_without_pictures_answers(page: Page, address: str, blind_bundle: Path) -> None:
    """A question takes no picture then, and the button for drawings rests."""
    chromium = find_chromium()
    assert chromium is not None
    with serve(blind_bundle) as base, browse(chromium) as tab:
        tab.open(f"{address}?bundle={base}")
        tab.wait("document.body.dataset.ready")
        assert tab.run("return document.getElementById('status').textContent").endswith("is ready: texts, no pictures.")
        assert tab.run("return ['draw', 'ask', 'complete'].map((id) => document.getElementById(id).disabled)") == [
            *(True, False, False),
        ]
        tab.run(
            "await new Promise((go) => { document.addEventListener('answered', go); document.getElementById('ask').click() })"
        )
        assert tab.run("return document.querySelector('#status.wrong')") is None
        answer = mmada_lite.load(blind_bundle, device="cpu").chat("what is this?").text
        assert tab.run("return document.getElementById('answer').textContent") == answer


REFUSED: list[tuple[Callable[[Content], object], str]] = [
    (lambda it: it.update(format_version=3), "this bundle has format 3 and the page reads up to 2; use a newer page"),
    (lambda it: it.update(family="llada"), 'this bundle is of the family "llada", the page knows mmada; use a newer page'),
    (lambda it: it.update(needs=["wings"]), 'this bundle needs "wings", which the page does not have; use a newer page'),
    (
        lambda it: it.update(needs=["float16_caches"]),
        'this bundle needs "float16_caches", which the page does not have; export it without --cache-precision',
    ),
    (lambda it: it.pop("rows"), 'bundle.json has no "rows"; copy the bundle again'),
    (lambda it: it["rows"]["ask"].insert(0, "mum"), 'the row "ask" has an unknown element "mum"'),
    (
        lambda it: it["rows"]["paint"].remove("{prompt}"),
        'the row "paint" must hold prompt and codes, each once; it holds codes',
    ),
    (lambda it: it["rows"]["chat"].append("eot"), 'the row "chat" must end with {masks}'),
    (lambda it: it["defaults"]["text"].update(law="default"), 'defaults.text of bundle.json: "law" is called "mode" now'),
    (
        lambda it: it["defaults"]["text"].update(cache="dual"),
        'defaults.text of bundle.json: "cache" stands in "acceleration" and not beside it',
    ),
    (
        lambda it: it["defaults"]["text"].update(acceleration={"cache": "prompt"}),
        'defaults.text of bundle.json: this page decodes with cache none, prefix, dual, not "prompt"; use that, or the Python '
        "runtime",
    ),
    (
        lambda it: it["defaults"]["image"].update(acceleration={"refresh": 2}),
        'defaults.image of bundle.json: this page does not decode with "refresh"; leave it out, or use the Python runtime',
    ),
]


@pytest.mark.parametrize(("change", "says"), REFUSED, ids=[says[:60] for _, says in REFUSED])
def test_what_the_page_does_not_have_is_named(
    page: Page, tmp_path: Path, change: Callable[[Content], object], says: str
) -> None:
    content = json.loads((embedded_bundle() / "bundle.json").read_text(encoding="utf-8"))
    change(content)
    (tmp_path / "bundle.json").write_text(json.dumps(content), encoding="utf-8")
    with serve(tmp_path) as base:
        assert complaint(page, f"await (await import('./bundle.js')).openBundle('{base}')") == says


@pytest.mark.parametrize(("kind", "name"), [("text", "reach"), ("text", "mode"), ("image", "cache")])
def test_format_1_is_refused_by_the_names_that_it_uses(page: Page, tmp_path: Path, kind: str, name: str) -> None:
    folder = in_format_1(embedded_bundle(), tmp_path / "1")
    content = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    content["defaults"][kind][name] = 1
    (folder / "bundle.json").write_text(json.dumps(content), encoding="utf-8")
    with serve(folder) as base:
        said = complaint(page, f"await (await import('./bundle.js')).openBundle('{base}')")
    says = f'this page does not decode with "{name}"; leave it out, or use the Python runtime'
    assert said == f"defaults.{kind} of bundle.json: {says}"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"law": "sensible"}, '"law" is called "mode" now'),
        ({"threshold": 0.9}, '"threshold" stands in "acceleration" and not beside it'),
        ({"acceleration": {"draft": 2}}, '"draft" is called "speculative_steps" now'),
        ({"acceleration": 3}, 'acceleration is "3"; use an object'),
        ({"temperature": 1e-5}, "temperature is 0.00001; it can be 0, or 0.0001 to 1000"),
        ({"guidance": 1e38}, "guidance is 1e+38; it can be 0 to 1000"),
        ({"steps": 2.5}, "steps is 2.5; it can be a whole number, 1 to 1000000"),
        ({"acceleration": {"threshold": 0}}, "threshold is 0; it can be 0.000001 to 1"),
        ({"order": "left"}, 'this page decodes with order low_confidence, random, not "left"; use that, or the Python runtime'),
    ],
)
def test_settings_have_one_name_and_one_place(page: Page, settings: Content, says: str) -> None:
    assert complaint(page, f"await model.ask('a b', null, {json.dumps(settings)}).next()") == says


def test_damaged_weights_end_a_decode_at_the_first_step(page: Page, tmp_path: Path) -> None:
    """Half precision's infinity all over, with hashes that fit: no answer, no picture, no codes of a picture."""
    size = (embedded_bundle() / "weights.bin").stat().st_size
    opened(page, "damaged", with_file(embedded_bundle(), tmp_path / "b", "weights.bin", b"\x00\x7c" * (size // 2)))
    cause = "so its weights are damaged or a setting is too large; copy the bundle again"
    says = f"step 1: the model's numbers are not finite, {cause}"
    assert complaint(page, "await damaged.ask('what is this?').next()") == says
    assert complaint(page, "await damaged.paint('a cat').next()") == says
    square = "{data: new Uint8ClampedArray(64 * 64 * 4), width: 64, height: 64}"
    encoder = "the image encoder gives numbers that are not finite, so its weights are damaged; copy the bundle again"
    assert complaint(page, f"await damaged.graphs.encodePicture({square})") == encoder
    decoder = encoder.replace("encoder", "decoder")
    assert complaint(page, "await damaged.graphs.decodePicture(new Array(64).fill(0), [8, 8])") == decoder
