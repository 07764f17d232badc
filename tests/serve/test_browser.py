"""The page in a headless Chromium: by pixels, by what a keyboard reaches, and by what a screen reader is told."""

import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Page, browse, find_chromium
from serving import Server

from mmada_lite import load

ANSWERED = "!document.getElementById('go').disabled && document.getElementById('status').textContent !== 'Working'"
PICTURE = """
const canvas = Object.assign(document.createElement('canvas'), {width: 40, height: 40});
canvas.getContext('2d').fillStyle = 'rgb(200, 30, 40)';
canvas.getContext('2d').fillRect(0, 0, 40, 40);
const data = new DataTransfer();
data.items.add(new File([await new Promise(done => canvas.toBlob(done))], 'red.png', {type: 'image/png'}));
"""


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("there is no Chromium; apt-get install chromium")
    with browse(chromium) as page:
        yield page


@pytest.fixture(params=[360, 1280])
def page(request: pytest.FixtureRequest, tab: Page, server: Server) -> Page:
    tab.resize(request.param, 900)
    tab.open("about:blank")
    tab.open(f"{server.url}/")
    tab.wait("document.getElementById('model').textContent")
    return tab


def ask(page: Page, verb: str, words: str) -> str:
    """Choose a verb, type words, send them. Returns what the page's status says then."""
    choose(page, verb)
    page.run(f"document.getElementById('words').value = '{words}'; document.getElementById('seed').value = '3'")
    page.run("document.getElementById('go').click()")
    page.wait(ANSWERED)
    return str(page.run("return document.getElementById('status').textContent"))


def choose(page: Page, verb: str) -> None:
    page.run(f"document.querySelector('input[value={verb}]').click()")


def test_a_text_appears_as_masks_that_resolve(page: Page) -> None:
    page.run(
        "window.seen = []; new MutationObserver(() => seen.push(document.getElementById('forming').textContent))"
        ".observe(document.getElementById('forming'), {childList: true})"
    )
    status = ask(page, "chat", "hello")
    seen = page.run("return seen.filter(text => text)")
    assert seen[0].count("░") > seen[-1].count("░")
    said = page.run("return [...document.querySelectorAll('#talk li')].map(item => [item.className, item.textContent])")
    assert said[0] == ["user", "hello"]
    assert said[-1][0] == "assistant"
    assert status in (said[-1][1], "The answer is empty")


def test_the_holes_of_a_text_resolve(page: Page, tiny_bundle: Path) -> None:
    page.run(
        "window.seen = []; new MutationObserver(() => seen.push(document.getElementById('forming').textContent))"
        ".observe(document.getElementById('forming'), {childList: true})"
    )
    choose(page, "fill")
    assert page.run("return !document.getElementById('hint').hidden")
    status = ask(page, "fill", "the [mask:4] and [mask:2].")
    expected = load(tiny_bundle, device="cpu", threads=1).fill("the [mask:4] and [mask:2].", seed=3).text
    assert page.run("return document.querySelector('#talk .assistant').textContent") == expected == status
    seen = page.run("return seen.filter(text => text)")
    assert [text.count("░") for text in seen] == sorted((text.count("░") for text in seen), reverse=True)
    assert seen[0].count("░") > seen[-1].count("░")
    assert all(text.startswith("the ") for text in seen)
    assert page.run("return document.getElementById('words').value").startswith("the "), "it can be filled again"
    page.run("document.getElementById('talk').scrollIntoView()")
    box = page.run(
        "const b = document.querySelector('#talk .assistant').getBoundingClientRect(); return [b.x, b.y, b.right, b.bottom]"
    )
    assert np.asarray(page.photograph().crop([round(each) for each in box])).std() > 5, "the text is on the screen"
    assert "has no hole" in ask(page, "fill", "nothing open")


def test_a_picture_appears_as_it_is_drawn(page: Page) -> None:
    page.run(
        "window.frames_ = []; new MutationObserver(() => frames_.push(document.getElementById('drawn').src))"
        ".observe(document.getElementById('drawn'), {attributes: true, attributeFilter: ['src']})"
    )
    assert "done" in ask(page, "paint", "a cat")
    assert page.run("return new Set(frames_).size") > 1
    assert page.run("return document.getElementById('drawn').alt") == "Drawing: a cat"
    page.run("document.getElementById('drawn').scrollIntoView()")
    page.wait("document.getElementById('drawn').complete")
    box = page.run("const b = document.getElementById('drawn').getBoundingClientRect(); return [b.x, b.y, b.width, b.height]")
    x, y, width, height = (round(each) for each in box)
    assert 100 < width <= 360
    shown = np.asarray(page.photograph().crop((x + 4, y + 4, x + width - 4, y + height - 4)))
    assert shown.std() > 5, "the drawing is on the screen"


def test_a_dropped_picture_is_asked_about_and_drawn_anew_under_the_brush(page: Page) -> None:
    page.run(f"{PICTURE} document.dispatchEvent(new DragEvent('drop', {{dataTransfer: data, cancelable: true}}))")
    page.wait("document.getElementById('status').textContent.includes('red.png')")
    assert page.run("return document.querySelector('input[value=ask]').checked")
    red = page.run("return [...document.getElementById('picture').getContext('2d').getImageData(9, 9, 1, 1).data]")
    assert red == [200, 30, 40, 255]
    assert ask(page, "ask", "what is this?") != "Choose a picture first"
    assert "covers nothing" in ask(page, "inpaint", "a cat")  # before the brush has touched it
    page.run(
        "const mask = document.getElementById('mask'); mask.focus();"
        "for (const key of ['ArrowLeft', ' ', 'ArrowLeft', ' '])"
        " mask.dispatchEvent(new KeyboardEvent('keydown', {key, cancelable: true}))"
    )
    assert "Painted at 112, 128" in page.run("return document.getElementById('status').textContent")
    assert "done" in ask(page, "inpaint", "a cat")
    drawn = page.run("return document.getElementById('drawn').src")
    assert base64.b64decode(drawn.partition("base64,")[2]).startswith(b"\x89PNG")
    page.run("document.getElementById('clear').click()")
    assert "covers nothing" in ask(page, "inpaint", "a cat")


def test_it_fits(page: Page) -> None:
    for verb in ("chat", "fill", "ask", "paint", "inpaint"):
        choose(page, verb)
        assert page.run("return document.documentElement.scrollWidth <= innerWidth")


def test_a_keyboard_reaches_everything(page: Page) -> None:
    choose(page, "inpaint")
    page.run("document.querySelector('input[value=inpaint]').focus()")
    reached = set()
    for _ in range(12):
        page.press("Tab")
        reached.add(page.run("return document.activeElement.id"))
    assert {"file", "mask", "brush", "clear", "words", "seed", "key", "go", "anew"} <= reached
    page.run("document.getElementById('mask').focus()")
    for key in ("ArrowUp", "ArrowLeft", " "):
        page.press(key)
    painted = page.run("return [...document.getElementById('mask').getContext('2d').getImageData(120, 120, 1, 1).data]")
    assert painted == [255, 255, 255, 255]
    choose(page, "chat")
    page.run("document.getElementById('words').focus()")
    for key in ("h", "i", "Enter"):
        page.press(key)
    page.wait("document.querySelector('#talk .assistant')")
    assert page.run("return document.querySelector('#talk .user').textContent") == "hi"
    page.run("document.getElementById('anew').click()")
    assert page.run("return document.getElementById('talk').children.length") == 0
    page.wait("!document.getElementById('go').disabled")
    page.run("document.querySelector('input[value=chat]').focus()")
    page.press("ArrowDown")  # the next radio button: fill
    assert page.run("return document.querySelector('input[name=verb]:checked').value") == "fill"
    page.run("document.getElementById('words').focus()")
    for key in (*"a [mask:2]", "Enter"):
        page.press(key)
    page.wait("document.querySelector('#talk .assistant')")
    assert page.run("return document.querySelector('#talk .user').textContent") == "a [mask:2]"
    assert page.run("return document.querySelector('#talk .assistant').textContent").startswith("a ")


def test_a_screen_reader_is_told_what_everything_is(page: Page) -> None:
    choose(page, "inpaint")
    told = page.heard()
    controls = {"radio", "textbox", "button", "slider", "image", "application"}
    assert [role for role, name in told if role in controls and not name.strip()] == []
    for role, name in (("button", "Send"), ("textbox", "What to draw there"), ("slider", "Brush"), ("radio", "Inpaint")):
        assert (role, name) in told
    assert ("heading", "mmada-lite checkpoint") in told
    choose(page, "fill")
    assert {("radio", "Fill holes"), ("textbox", "Text with holes")} <= set(page.heard())
    choose(page, "ask")
    assert not any(name.startswith("Mask.") for _, name in page.heard())
    assert ask(page, "ask", "what is this?") == "Choose a picture first"
    assert any(role == "status" for role, _ in page.heard())
    assert any(name == "Choose a picture first" for _, name in page.heard())
