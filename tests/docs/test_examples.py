"""The examples in examples/python and the notebook run as they stand, and write what they say."""

import ast
import base64
import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "examples" / "python"
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"
pytestmark = pytest.mark.manual
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the picture that the examples begin with."""
    made = tmp_path_factory.mktemp("examples")
    assert "cat.png: 16 model calls" in run("draw.py", made)
    return made


def run(name: str, folder: Path, *arguments: str) -> str:
    command = [sys.executable, str(SCRIPTS / name), *arguments]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_draw(folder: Path) -> None:
    assert Image.open(folder / "cat.png").size == (64, 64)


def test_ask(folder: Path) -> None:
    first, second = run("ask.py", folder).splitlines()
    assert first.startswith("what is this? ")
    assert second.startswith("what color is the background? ")
    assert len(second.split("? ")[1]) > 1


def test_steps_to_gif(folder: Path) -> None:
    assert run("steps_to_gif.py", folder, "a red heart", "heart.gif") == "heart.gif: 16 frames\n"
    film = Image.open(folder / "heart.gif")
    assert (film.format, getattr(film, "n_frames", 1)) == ("GIF", 16)


def test_watch_answer(folder: Path) -> None:
    *_, thought, answer = re.split(r"[\r\n]+", run("watch_answer.py", folder).strip())
    assert thought.startswith("thought: ")
    assert re.fullmatch(r"answer: +\d+", answer)


def test_inpaint(folder: Path) -> None:
    run("inpaint.py", folder)
    before, half = (np.asarray(Image.open(folder / name).convert("RGB")) for name in ("cat.png", "half.png"))
    assert (before[:, :32] == half[:, :32]).all()
    assert (before[:, 32:] != half[:, 32:]).any()
    assert Image.open(folder / "wide-half.png").size == (96, 64)


def test_batch(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes((folder / "cat.png").read_bytes())
    (tmp_path / "b.png").write_bytes(b"no picture")
    run("batch.py", tmp_path, ".", "answers.csv")
    with open(tmp_path / "answers.csv", newline="") as table:
        head, row = csv.reader(table)
    assert head == ["picture", "what is this?"]
    assert row[0] == "a.png"
    assert row[1]


def test_web(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, str(SCRIPTS / "web.py"), "0"],
        cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split("?")[0]
        with urlopen(f"{address}?prompt={quote('a red heart')}", timeout=60) as answer:
            assert Image.open(io.BytesIO(answer.read())).size == (64, 64)
        with pytest.raises(HTTPError, match="400"):
            urlopen(f"{address}?prompt=", timeout=60)
    finally:
        process.kill()
        process.communicate()


def test_measure(folder: Path) -> None:
    head, *rows = (line.split() for line in run("measure.py", folder, "1").splitlines())
    assert head == ["speed", "seconds", "calls"]
    assert [row[0] for row in rows] == ["exact", "balanced", "fast"]
    assert all(float(seconds) > 0 and int(calls) > 0 for _, seconds, calls in rows)


def test_each_script_is_short_and_listed() -> None:
    scripts = sorted(SCRIPTS.glob("*.py"))
    readme = (SCRIPTS / "README.md").read_text(encoding="utf-8")
    assert len(scripts) == 8
    for path in scripts:
        assert f"| [{path.name}]({path.name}) | " in readme
        assert len(path.read_text().splitlines()) <= 30, path.name
        assert path.name in (ast.get_docstring(ast.parse(path.read_text())) or ""), path.name


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """Its cells are plain Python; each is run after the one before. It prints what is stored: `python tests/notebook.py`."""
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    program = "\n".join("".join(cell["source"]) for cell in cells)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    stored = "".join("".join(out["text"]) for cell in cells for out in cell["outputs"] if out["output_type"] == "stream")
    assert done.stdout == stored


def test_the_notebook_shows_what_it_gave() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell["outputs"] for cell in cells)
    shown = [out["data"]["image/png"] for cell in cells for out in cell["outputs"] if "image/png" in out.get("data", {})]
    assert len(shown) >= 4
    for each in shown:
        picture = Image.open(io.BytesIO(base64.b64decode("".join(each)))).convert("L")
        assert len(np.unique(np.asarray(picture))) > 9
    assert NOTEBOOK.stat().st_size < 300_000
