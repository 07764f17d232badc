"""The rows of bundle.json in the C++ host: whatever templates a bundle says, its ids are Python's. A row that it lacks is
refused by name. A bundle of format 1, which says none, gives the ids of its copy in format 2.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import in_format_1
from cpp_host import Host, both_name, build, picture_json
from PIL import Image

import mmada_lite
from mmada_lite import Error
from mmada_lite.families import FAMILIES
from mmada_lite.model import embedded_bundle

CHAT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "{content} is {role}, {other}"},
        {"role": "user", "content": " hello {"},
    ]
}
OTHERS: dict[str, Any] = {  # as unlike MMaDA's as the format allows
    "message": [{"text": "<{role}>{content}{"}, "bos", {"text": "} {"}, "eos"],
    "chat": ["ipad", "bos", "{messages}", {"text": "assistant says:"}, "{masks}"],
    "ask": ["eoi", "{codes}", "soi", "soi", "{chat}"],
    "paint": ["mmu", "{prompt}", "bos", "soi", "t2i", "{codes}", "eot", "eoi"],
    "unconditional": ["eos", "{codes}", "eot", "eoi"],
}
TWICE: dict[str, Any] = {  # bos stands before what begins with it
    "message": ["bos", {"text": "{role}"}, "eot", {"text": "{content}"}],
    "chat": ["bos", "{messages}", "bos", "{masks}"],
    "ask": ["mmu", "{codes}", "bos", "{chat}"],
    "paint": ["bos", "{prompt}", "bos", "{codes}", "eoi"],
    "unconditional": ["bos", "{codes}", "eoi"],
}


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    running = Host(build(Path(__file__).parent / "host.cpp"))
    yield running
    assert running.close() == 0


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    shades = np.random.default_rng(4).integers(0, 256, (20, 17, 3), dtype=np.uint8)
    return Image.fromarray(shades)


def with_rows(bundle: Path, target: Path, rows: dict[str, Any]) -> Path:
    shutil.copytree(bundle, target)
    content = json.loads((target / "bundle.json").read_text(encoding="utf-8"))
    (target / "bundle.json").write_text(json.dumps(content | {"rows": rows}), encoding="utf-8")
    return target


def without(*rows: str) -> dict[str, Any]:
    return {row: elements for row, elements in FAMILIES["mmada"].to_json().items() if row not in rows}


def answers(host: Host, folder: Path, picture: Image.Image) -> list[Any]:
    """What the host writes and draws with a bundle's own settings."""
    assert "error" not in host.call("load", folder=str(folder), threads=1)
    asked = host.call("ask", picture=picture_json(picture), question="what is this?", seed="5")
    return [host.call("chat", **CHAT)["ids"], asked["ids"], host.call("paint", prompt="a cat", seed="6")["codes"]]


@pytest.mark.parametrize("which", ["embedded", "tiny"])
def test_format_1_gives_the_ids_of_format_2(
    host: Host, tiny_bundle: Path, tmp_path: Path, picture: Image.Image, which: str
) -> None:
    bundle = embedded_bundle() if which == "embedded" else tiny_bundle
    old = in_format_1(bundle, tmp_path / "old")
    assert answers(host, old, picture) == answers(host, bundle, picture)


def test_other_rows_give_the_ids_of_python(host: Host, tmp_path: Path, picture: Image.Image) -> None:
    """And other ids than MMaDA's rows do, or the templates would not have been read."""
    folder = with_rows(embedded_bundle(), tmp_path / "others", OTHERS)
    found = answers(host, folder, picture)
    model = mmada_lite.load(folder, device="cpu", threads=1)
    assert found == [
        model.chat(CHAT["messages"]).result().ids.tolist(),
        model.ask(picture, "what is this?", seed=5).result().ids.tolist(),
        model.paint("a cat", seed=6).result().codes.reshape(-1).tolist(),
    ]
    assert all(one != other for one, other in zip(found, answers(host, embedded_bundle(), picture), strict=True))


def test_bos_stands_once(host: Host, tmp_path: Path, picture: Image.Image) -> None:
    """Before a prompt of ids that begins with it, and there alone: elsewhere the rows mean what they say."""
    folder = with_rows(embedded_bundle(), tmp_path / "twice", TWICE)
    assert "error" not in host.call("load", folder=str(folder), threads=1)
    model = mmada_lite.load(folder, device="cpu", threads=1)
    assert host.call("chat", **CHAT)["ids"] == model.chat(CHAT["messages"]).result().ids.tolist()
    side, bos = model.codec.grid, model.vocabulary.special.bos
    codes, unknown = np.zeros((side, side), dtype=np.int64), np.ones((side, side), dtype=bool)
    grid = {"rows": side, "columns": side, "codes": codes.reshape(-1).tolist(), "unknown": [1] * side**2}
    drawn = [host.call("draw", words=words, **grid)["codes"] for words in ([70, 80], [bos, 70, 80], [bos, bos, 70, 80])]
    assert drawn[0] == drawn[1] == model.draw([70, 80], codes, unknown).result().codes.reshape(-1).tolist()
    assert drawn[2] != drawn[0]
    asked = host.call("ask", picture=picture_json(picture), question="what is this?")["ids"]
    assert asked == model.ask(picture, "what is this?").result().ids.tolist()


def test_a_text_in_a_row_that_is_drawn_is_encoded(host: Host, tiny_bundle: Path, tmp_path: Path) -> None:
    """The tokenizer knows bytes alone: a text before the prompt is the longer prompt."""
    rows = without("paint_thought", "unconditional")
    rows |= {"paint": ["bos", "{prompt}", "{codes}"], "unconditional": ["bos", "{codes}"]}
    host.call("load", folder=str(with_rows(tiny_bundle, tmp_path / "plain", rows)), threads=1)
    whole = host.call("paint", prompt="draw a cat")["codes"]
    assert whole == mmada_lite.load(tmp_path / "plain", device="cpu").paint("draw a cat").result().codes.reshape(-1).tolist()
    rows["paint"] = ["bos", {"text": "draw "}, "{prompt}", "{codes}"]
    host.call("load", folder=str(with_rows(tiny_bundle, tmp_path / "text", rows)), threads=1)
    assert host.call("paint", prompt="a cat")["codes"] == whole != host.call("paint", prompt="draw a cat")["codes"]
    assert mmada_lite.load(tmp_path / "text", device="cpu").paint("a cat").result().codes.reshape(-1).tolist() == whole


@pytest.mark.parametrize("lacking", [("ask",), ("paint", "paint_thought", "unconditional"), ("paint",)])
def test_a_row_that_the_model_lacks(
    host: Host, tiny_bundle: Path, tmp_path: Path, picture: Image.Image, lacking: tuple[str, ...]
) -> None:
    """The model opens and chats; the task is refused in the words of either side, and the row named."""
    folder = with_rows(tiny_bundle, tmp_path / "less", without(*lacking))
    assert "error" not in host.call("load", folder=str(folder), threads=1)
    model = mmada_lite.load(folder, device="cpu", threads=1)
    assert host.call("chat", **CHAT)["ids"] == model.chat(CHAT["messages"]).result().ids.tolist()
    shown = {"picture": picture_json(picture)}
    with pytest.raises(Error) as fault:
        model.ask(picture, "what?") if "ask" in lacking else model.paint("a cat")
    job = host.call("ask", question="what?", **shown) if "ask" in lacking else host.call("paint", prompt="a cat")
    both_name(job, fault, "no row", lacking[0], "it has", "message")
    if "paint" in lacking:
        mask = {"width": picture.width, "height": picture.height, "bytes": [255] * (picture.width * picture.height)}
        for refused in (
            host.call("inpaint", prompt="a cat", mask=mask, **shown),
            host.call("extend", prompt="a cat", side=1, amount=0.5, **shown),
        ):
            assert refused["error"].startswith('this model has no row "paint", so it cannot do this; it has ')


def test_a_bare_slot_of_a_message_is_refused(host: Host, tiny_bundle: Path, tmp_path: Path) -> None:
    """Those of a message stand inside its texts, those of other rows outside."""
    for number, (row, elements) in enumerate(
        {
            "message": ["bos", "{role}", {"text": "{content}"}],
            "paint": ["t2i", {"text": "{prompt}"}, "{codes}", "eoi"],
            "chat": [{"text": "{messages}"}, "{masks}"],
        }.items()
    ):
        folder = with_rows(tiny_bundle, tmp_path / str(number), FAMILIES["mmada"].to_json() | {row: elements})
        line = host.call("load", folder=str(folder))["error"]
        with pytest.raises(Error, match=rf"bundle\.json: the row '{row}' must hold .*, (in|out)side its texts; it holds"):
            mmada_lite.load(folder)
        assert line.startswith(f'{folder}/bundle.json: the row "{row}" must hold {{')
        assert ("each once, inside its texts; " if row == "message" else "each once, outside its texts; ") in line
