"""The page of examples/web in a browser, for every test of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page, browse, find_chromium, serve

import mmada_lite

ROOT = Path(__file__).parents[2]
WEB = ROOT / "examples" / "web"
BUNDLE = "../../mmada_lite/models/emoji"  # from the page


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serve(ROOT) as base:
        yield f"{base}/examples/web/"


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Page]:
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("needs a browser: apt-get install chromium")
    if not (WEB / "node_modules" / "onnxruntime-web").is_dir():
        pytest.skip("needs onnxruntime-web: npm ci --prefix examples/web")
    with browse(chromium) as tab:
        tab.open(address)
        tab.wait("document.body.dataset.ready")
        tab.run(f"window.model = await (await import('./model.js')).Model.open('{BUNDLE}')")
        yield tab


@pytest.fixture(scope="module")
def model() -> mmada_lite.Model:
    return mmada_lite.load(device="cpu")
