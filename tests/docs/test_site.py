"""The site of the manual: it builds strictly, holds every page, and reads well in a browser at the width of a phone and of a
screen; its search answers from a disk, and the small model draws in the tab."""

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from browser import Page, browse, find_chromium, serve
from pages import ROOT, manual

pytestmark = pytest.mark.manual
SITE = ROOT / "build" / "site"
SEARCH = "[...document.querySelectorAll('*')].find(e => e.shadowRoot?.querySelector('[role=combobox]'))?.shadowRoot"
MEASURE = """
  const pictures = [...document.images];
  pictures.forEach(each => each.loading = 'eager');
  await Promise.all(pictures.map(each => each.decode().catch(() => null)));
  const page = document.scrollingElement;
  const inside = document.querySelector('article, main') ?? document.body;
  return {
    wide: Math.max(page.scrollWidth, document.body.scrollWidth) - page.clientWidth,
    broken: pictures.filter(each => !each.naturalWidth).map(each => each.src),
    unnamed: [...inside.querySelectorAll('img')].filter(each => !each.alt.trim()).map(each => each.src),
  };
"""


def builder() -> ModuleType:
    """docs/build_site.py as a module."""
    found = spec_from_file_location("build_site", ROOT / "docs" / "build_site.py")
    assert found is not None
    assert found.loader is not None
    module = module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site() -> Path:
    """The site, built anew."""
    pytest.importorskip("zensical", reason='the site needs pip install "mmada-lite[docs]"')
    done = subprocess.run([sys.executable, str(ROOT / "docs" / "build_site.py")], capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.fail(done.stderr, pytrace=False)
    return SITE


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with browse(chromium) as opened:
        yield opened


def pages_of(site: Path) -> list[Path]:
    return sorted(path for path in site.rglob("*.html") if "node_modules" not in path.parts)


def none(faults: list[str]) -> None:
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)


def broken(site: Path) -> list[str]:
    """Links, pictures, scripts and anchors of the built pages that lead nowhere, or to another machine for a part of a page."""
    texts = {page: page.read_text(encoding="utf-8") for page in pages_of(site)}
    ids = {page: set(re.findall(r'\b(?:id|name)="([^"]+)"', text)) for page, text in texts.items()}
    faults = []
    for page, text in texts.items():
        for tag, target in re.findall(r'<(\w+)\b[^>]*?\b(?:href|src)="([^"]*)"', text):
            where = f"{page.relative_to(site)}: {target}"
            if re.match(r"[a-z]+:|//", target):
                if not (tag == "a" or target.startswith("data:")):
                    faults.append(f"{where} is fetched from another machine")
                continue
            file, _, anchor = target.partition("#")
            base = site if page.name == "404.html" else page.parent
            path = (base / file.split("?")[0].lstrip("/")).resolve() if file else page
            path = path / "index.html" if path.is_dir() else path
            if not path.exists():
                faults.append(f"{where} is not there")
            elif anchor and path in ids and anchor not in ids[path]:
                faults.append(f"{where}: {path.name} has no #{anchor}")
    return faults


def test_every_page_of_the_manual_is_on_the_site(site: Path) -> None:
    for page in manual():
        built = Path(page.name).with_suffix(".html")
        built = built.with_name("index.html") if built.stem == "README" else built
        assert (site / built).is_file(), f"{page.name} is not in the nav of mkdocs.yml"
    assert 'id="mmada_lite.Model.paint"' in (site / "docs" / "python.html").read_text(encoding="utf-8")


def test_no_link_or_picture_is_broken(site: Path) -> None:
    none(broken(site))


def test_without_its_extra_the_builder_names_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = builder()
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert module.main() == 2
    error = capsys.readouterr().err
    assert (error.count("\n"), 'pip install "mmada-lite[docs]"' in error) == (1, True)


def test_links_on_the_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link to a page or a small file stays, of one to a folder or a large file its words are left; blocks are not read."""
    module = builder()
    monkeypatch.setattr(module, "ROOT", tmp_path)
    for name in ("README.md", "docs/a.md", "docs/lab/README.md", "tests/README.md", "examples/web/index.html", "small.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "large.bin").write_bytes(bytes(module.LARGEST + 1))
    text = (
        "[a](a.md#x) [lab](lab) [tests](../tests) [page](../examples/web/index.html) [s](../small.json) [l](../large.bin)\n"
        "[far](https://example.org) [here](#x) ![p](gone.png) [`c`](../tests/README.md)\n```\n[lab](lab)\n```\n"
    )
    (tmp_path / "docs" / "a.md").write_text(text)
    laid, files = module.relinked(Path("docs/a.md"), ["README.md", "docs/a.md", "docs/lab/README.md"])
    assert laid == (
        "[a](a.md#x) [lab](lab/README.md) tests [page](../examples/web/draw.html) [s](../small.json) l\n"
        "[far](https://example.org) [here](#x) ![p](gone.png) `c`\n```\n[lab](lab)\n```\n"
    )
    assert files == {Path("small.json")}


def test_a_planted_fault_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.html").write_text('<h1 id="here">')
    (tmp_path / "page.html").write_text(
        '<a href="other.html#here"><a href="#gone"><a href="https://example.org"><a href="other.html?x#gone">'
        '<img alt="x" src="gone.png"><script src="https://example.org/x.js"></script><link rel="icon" href="gone.ico">'
    )
    assert [fault.split(": ", 1)[1] for fault in broken(tmp_path)] == [
        "#gone: page.html has no #gone",
        "other.html?x#gone: other.html has no #gone",
        "gone.png is not there",
        "https://example.org/x.js is fetched from another machine",
        "gone.ico is not there",
    ]


@pytest.mark.parametrize("width", [360, 1280])
def test_no_page_scrolls_sideways_and_every_picture_is_seen(site: Path, tab: Page, width: int) -> None:
    tab.resize(width, 800)
    faults = []
    with serve(site) as base:
        for page in pages_of(site):
            name = page.relative_to(site).as_posix()
            tab.open(f"{base}/{name}")
            seen = tab.run(MEASURE)
            faults += [f"{name}: {seen['wide']} pixels wider than {width}"] if seen["wide"] > 0 else []
            faults += [f"{name}: {picture} is broken" for picture in seen["broken"]]
            faults += [f"{name}: {picture} has no words for those who do not see it" for picture in seen["unnamed"]]
    none(faults)


def test_a_planted_page_is_found_wanting(tab: Page, tmp_path: Path) -> None:
    tab.resize(360, 800)
    (tmp_path / "page.html").write_text('<main><div style="width: 500px">x</div><img src="gone.png"></main>')
    with serve(tmp_path) as base:
        tab.open(f"{base}/page.html")
        seen = tab.run(MEASURE)
    assert seen["wide"] > 100
    assert (len(seen["broken"]), len(seen["unnamed"])) == (1, 1)


def _searched(tab: Page, address: str) -> list[str]:
    tab.resize(1280, 800)
    tab.open(address)
    tab.run("document.querySelector('.md-search__button').click()")
    tab.wait(SEARCH)
    tab.run(
        f"const box = {SEARCH}.querySelector('input'); box.focus(); box.value = 'codebook_size';"
        "box.dispatchEvent(new InputEvent('input', {bubbles: true, composed: true, data: 'e'}))"
    )
    tab.wait(f"{SEARCH}.querySelector('ol a')")
    found: list[str] = tab.run(f"return [...{SEARCH}.querySelectorAll('ol a')].map(each => each.href)")
    return found


def test_search_answers_without_a_network(site: Path, tab: Page) -> None:
    """From a server on this machine, and from a disk where npm has brought what that needs."""
    with serve(site) as base:
        assert any("docs/bundle.html" in each for each in _searched(tab, f"{base}/index.html"))
    if (site / "assets" / "javascripts" / "iframe-worker.js").is_file():
        assert any("docs/bundle.html" in each for each in _searched(tab, (site / "docs" / "cli.html").as_uri()))


def test_the_small_model_draws_on_the_site(site: Path, tab: Page) -> None:
    if not (site / "examples" / "web" / "node_modules").is_dir():
        pytest.skip("needs the packages of the page: npm ci --prefix examples/web")
    tab.resize(360, 800)
    with serve(site) as base:
        tab.open(f"{base}/index.html")
        address = tab.run("return [...document.links].map(each => each.href).find(each => each.endsWith('/draw.html'))")
        assert address == f"{base}/examples/web/draw.html"
        tab.open(address)
        tab.wait("document.body.dataset.ready")
        tab.run("document.getElementById('steps').value = 4; document.getElementById('draw').click()")
        tab.wait("!document.getElementById('ask').disabled")
        colors = tab.run(
            "const canvas = document.getElementById('picture');"
            "const bytes = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;"
            "return new Set(new Uint32Array(bytes.buffer)).size"
        )
    assert colors > 100
