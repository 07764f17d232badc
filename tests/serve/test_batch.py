"""The verb batch: the library's ids for each line, in the order of the lines, whatever kills it meanwhile."""

import base64
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import ROOT

from mmada_lite import Model, load
from mmada_lite.cli.main import main

CHAT, FILL = "/v1/chat/completions", "/v1/completions"
PAINT, EDIT = "/v1/images/generations", "/v1/images/edits"
HELLO = [{"role": "user", "content": "hello"}]
SMALL = {"steps": 4, "guidance": 0.0}


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return load(tiny_bundle, device="cpu", threads=1)


def line(name: Any, url: str = CHAT, method: str = "POST", **body: Any) -> dict[str, Any]:
    return {"custom_id": name, "method": method, "url": url, "body": body}


def chat(name: str, seed: int, steps: int = 12) -> dict[str, Any]:
    return line(name, messages=HELLO, max_tokens=24, steps=steps, temperature=0.9, seed=seed)


def written(path: Path, *lines: Any) -> Path:
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in lines))
    return path


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(each) for each in path.read_text().splitlines()]


def command(bundle: Path, requests: Path, *more: str | Path) -> list[str]:
    words = ["batch", requests, "-o", requests.with_name("out.jsonl"), "-m", bundle, "--device", "cpu", "--threads", "1", *more]
    return [sys.executable, "-m", "mmada_lite", *map(str, words)]


def start(bundle: Path, requests: Path, *more: str | Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ORT_DISABLE_TELEMETRY": "1"}
    words = command(bundle, requests, *more)
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=120)
    return process.returncode, out, error


def url_of(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def test_every_line_is_the_librarys(tiny_bundle: Path, model: Model, tmp_path: Path) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    half = Image.fromarray(np.repeat([[0, 255]], 16, axis=0).repeat(8, axis=1).astype(np.uint8))
    seen = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": url_of(photo)}}]
    requests = written(
        tmp_path / "in.jsonl",
        chat("chat", 11),
        line("see", messages=[{"role": "user", "content": seen}], max_tokens=16, steps=8, seed=2),
        "",
        line("paint", PAINT, prompt="a cat", n=2, seed=7, **SMALL),
        line("mask", EDIT, prompt="a cat", image=url_of(photo), mask=url_of(half), seed=5, **SMALL),
        line("grow", EDIT, prompt="a cat", image=url_of(photo), side="left", amount=0.5, seed=5, **SMALL),
        line("fill", FILL, prompt="a [mask:3] b", steps=12, seed=4),
    )
    code, out, error = ended(start(tiny_bundle, requests, "--pictures", tmp_path / "drawn"))
    assert (code, out, error) == (0, f"{tmp_path / 'out.jsonl'}\n", "")
    assert sorted(os.listdir(tmp_path)) == ["drawn", "in.jsonl", "out.jsonl"]
    found = results(tmp_path / "out.jsonl")
    assert [each["custom_id"] for each in found] == ["chat", "see", "paint", "mask", "grow", "fill"]
    assert all(each["error"] is None and each["response"]["status_code"] == 200 for each in found)
    bodies = {each["custom_id"]: each["response"]["body"] for each in found}
    settings = model.text_defaults.replace(answer_length=24, steps=12, temperature=0.9)
    assert bodies["chat"]["choices"][0]["message"]["content"] == model.chat(HELLO, settings, seed=11).result().answer
    settings = model.text_defaults.replace(answer_length=16, steps=8)
    assert bodies["see"]["choices"][0]["message"]["content"] == model.ask(photo, "what?", settings, seed=2).result().answer
    filled = model.fill("a [mask:3] b", model.text_defaults.replace(steps=12), seed=4).result()
    assert bodies["fill"]["choices"][0]["text"] == filled.text
    small = model.image_defaults.replace(**SMALL)
    wanted = [
        model.paint("a cat", small, seed=7),
        model.paint("a cat", small, seed=8),
        model.inpaint(photo, half, "a cat", small, seed=5),
        model.extend(photo, "a cat", small, side="left", amount=0.5, seed=5),
    ]
    items = [item for name in ("paint", "mask", "grow") for item in bodies[name]["data"]]
    for item, drawing in zip(items, wanted, strict=True):
        assert item["codes"] == drawing.result().codes.tolist()
        assert np.array_equal(np.asarray(Image.open(item["file"])), np.asarray(drawing.picture))
        assert "b64_json" not in item
    names = ["000004-paint-1.png", "000004-paint-2.png", "000005-mask.png", "000006-grow.png"]
    assert sorted(os.listdir(tmp_path / "drawn")) == names


def test_a_bad_line_is_a_line_of_the_output(tiny_bundle: Path, tmp_path: Path) -> None:
    lines = [
        *("{", "[1]", line(None), line(7), line(""), line("get", method="GET"), line("url", "/v1/files"), '{"custom_id": "a"}'),
        *(line("none"), line("stream", messages=HELLO, stream=True), line("other", messages=HELLO, model="gpt-9")),
        *(line("field", messages=HELLO, temprature=1), line("edit", EDIT, prompt="x"), chat("right", 1), chat("right", 2)),
        *(line("url file", EDIT, prompt="x", image="file:///etc/hostname"), '{"custom_id": "twice", "custom_id": "twice"}'),
    ]
    code, _, error = ended(start(tiny_bundle, written(tmp_path / "in.jsonl", *lines)))
    assert (code, error) == (1, f"mmada-lite: 16 of 17 lines failed; {tmp_path / 'out.jsonl'} says why\n")
    found = results(tmp_path / "out.jsonl")
    assert [set(each) for each in found] == [{"id", "custom_id", "response", "error"}] * 17
    assert len({each["id"] for each in found}) == 17
    fates = [each["error"]["code"] if each["error"] else each["response"]["status_code"] for each in found]
    bad = "invalid_line"
    assert fates == [bad] * 8 + [400, 400, 404, 400, 400, 200, bad, 400, bad]
    for each in found:
        said = each["error"] or each["response"]["body"].get("error")
        assert said is None or ("\n" not in said["message"] and 10 < len(said["message"]) < 700)
    assert "of line 14" in found[14]["error"]["message"]
    assert "no URL is fetched" in found[15]["response"]["body"]["error"]["message"]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tiny_bundle: Path) -> Any:
    def call(requests: Path, *more: str | Path) -> str:
        code = main(command(tiny_bundle, requests, *more)[3:])
        out, error = capsys.readouterr()
        assert (code, out) == (2, ""), error
        assert error.startswith("mmada-lite: ")
        assert error.count("\n") == 1
        return error

    return call


def test_what_is_no_batch(refused: Any, tmp_path: Path) -> None:
    requests = written(tmp_path / "in.jsonl", chat("a", 1))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "picture").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    before = sorted(tmp_path.iterdir())
    assert "is a pipe" in refused(tmp_path / "pipe")
    assert "is a folder" in refused(tmp_path / "folder")
    assert f"no file of requests at {tmp_path / 'gone'}; check the path" in refused(tmp_path / "gone")
    assert "holds no line of JSON" in refused(tmp_path / "picture")
    assert "holds no line of JSON" in refused(written(tmp_path / "in.jsonl", "", " "))
    written(tmp_path / "in.jsonl", chat("a", 1))
    assert "is a folder; name a file" in refused(requests, "-o", tmp_path / "folder")
    assert "is a folder; name a file" in refused(requests, "-o", ".")
    assert "is a folder; name a file" in refused(requests, "-o", "/")
    assert "there is no folder" in refused(requests, "-o", tmp_path / "gone" / "x.jsonl")
    assert "no plain file" in refused(requests, "-o", tmp_path / "pipe")
    assert "exists; add --force" in refused(requests, "-o", tmp_path / "picture")
    assert "holds the requests" in refused(requests, "-o", requests, "--force")
    assert "is a file; name a folder" in refused(requests, "--pictures", requests)
    assert "is not empty" in refused(requests, "--pictures", tmp_path)
    assert "no speed is called" in refused(requests, "--speed", "warp")
    assert "is not a bundle" in refused(requests, "-m", tmp_path)
    assert sorted(tmp_path.iterdir()) == before


def test_a_kill_at_any_moment_loses_and_doubles_nothing(
    tiny_bundle: Path, model: Model, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    lines = [chat(f"chat {n}", n) if n % 3 else line(f"paint {n}", PAINT, prompt="a cat", seed=n, **SMALL) for n in range(48)]
    requests, output = written(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl"
    part, chance, counts = tmp_path / "out.jsonl.part", random.Random(5), [0]
    for _ in range(request.config.getoption("--kills")):
        process = start(tiny_bundle, requests, "--pictures", tmp_path / "drawn")
        aim = counts[-1] + chance.randrange(1, 12)
        while process.poll() is None and (not part.exists() or part.read_bytes().count(b"\n") < aim):
            time.sleep(0.01)
        time.sleep(0.05 * chance.random())
        process.kill()
        ended(process)
        assert not output.exists()
        counts.append(part.read_bytes().count(b"\n"))
    assert counts == sorted(counts)
    with part.open("ab") as torn:
        torn.write(b'{"id": "batch_req_')  # as a kill in the middle of a line leaves it
    assert ended(start(tiny_bundle, requests, "--pictures", tmp_path / "drawn"))[0] == 0
    found = results(output)
    assert [each["custom_id"] for each in found] == [each["custom_id"] for each in lines]
    assert sorted(os.listdir(tmp_path)) == ["drawn", "in.jsonl", "out.jsonl"]
    assert len(os.listdir(tmp_path / "drawn")) == 16
    settings = model.text_defaults.replace(answer_length=24, steps=12, temperature=0.9)
    small = model.image_defaults.replace(**SMALL)
    for n, each in enumerate(found):
        body = each["response"]["body"]
        if n % 3:
            assert body["choices"][0]["message"]["content"] == model.chat(HELLO, settings, seed=n).result().answer
        else:
            assert body["data"][0]["codes"] == model.paint("a cat", small, seed=n).result().codes.tolist()
            assert Image.open(body["data"][0]["file"]).size == (16, 16)


def test_what_was_begun_is_finished_as_it_was_begun(refused: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    lines = [chat(f"chat {n}", n, steps=24) for n in range(60)]
    requests, part = written(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl.part"
    process = start(tiny_bundle, requests)
    while not part.exists() or part.read_bytes().count(b"\n") < 3:
        assert process.poll() is None
        time.sleep(0.01)
    assert "is being written by another process" in refused(requests)
    process.send_signal(signal.SIGTERM)
    code, out, error = ended(process)
    assert (code, out, error) == (143, "", "mmada-lite: terminated\n")
    kept = part.read_bytes()
    assert kept.count(b"\n") >= 3
    assert "was begun with another --speed" in refused(requests, "--speed", "fast")
    assert "was begun with another --pictures" in refused(requests, "--pictures", tmp_path / "drawn")
    written(requests, *lines[1:])
    assert "was begun with another file of requests" in refused(requests)
    assert part.read_bytes() == kept
    written(requests, lines[0])
    assert ended(start(tiny_bundle, requests, "--force"))[0] == 0
    assert [each["custom_id"] for each in results(tmp_path / "out.jsonl")] == ["chat 0"]
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]


def test_a_model_that_dies_takes_no_line_with_it(tiny_bundle: Path, model: Model, tmp_path: Path) -> None:
    lines = [chat(f"chat {n}", n, steps=24) for n in range(20)]
    part = tmp_path / "out.jsonl.part"
    process = start(tiny_bundle, written(tmp_path / "in.jsonl", *lines), "--json")
    while not part.exists() or part.read_bytes().count(b"\n") < 3:
        assert process.poll() is None
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.is_file():
        pytest.skip("this system does not say whose child a process is")
    os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
    code, out, error = ended(process)
    assert code == 0, error
    assert {name: json.loads(out)[name] for name in ("lines", "failed")} == {"lines": 20, "failed": 0}
    settings = model.text_defaults.replace(answer_length=24, steps=24, temperature=0.9)
    said = [each["response"]["body"]["choices"][0]["message"]["content"] for each in results(tmp_path / "out.jsonl")]
    assert said == [model.chat(HELLO, settings, seed=n).result().answer for n in range(20)]


def test_it_needs_no_extra(tiny_bundle: Path, tmp_path: Path) -> None:
    """Nothing of the extra [serve] is imported, in neither process."""
    blocked = (
        "import sys\nfor name in ('starlette', 'uvicorn', 'prometheus_client', 'python_multipart'): sys.modules[name] = None\n"
    )
    (tmp_path / "sitecustomize.py").write_text(blocked)
    words = command(tiny_bundle, written(tmp_path / "in.jsonl", chat("a", 1)))
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
