"""Bad input gets one line that says what and how to mend it, exit code 2, nothing half-written, and the old output intact."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import mmada_lite
from mmada_lite import Error, ImageSettings, TextSettings, load
from mmada_lite.cli.main import main

ROOT = Path(__file__).parents[2]
FULL = Path("/dev/full")
Refused = Callable[..., str]


@pytest.fixture
def refused(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a verb that must be refused; returns the one line that it printed. The folder must stay as it was."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path, stdin: bytes = b"") -> str:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        words = [str(argument) for argument in arguments]
        if words[0] in ("chat", "ask", "paint", "inpaint", "extend") and "-m" not in words:
            words += ["-m", str(tiny_bundle)]
        before = contents(tmp_path)
        code = main(words)
        out, error = capsys.readouterr()
        assert (code, out) == (2, ""), error
        assert error.startswith("mmada-lite: ")
        assert error.endswith("\n")
        assert error.count("\n") == 1
        assert len(error) < 600
        assert "Traceback" not in error
        assert contents(tmp_path) == before
        return error

    return call


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "given.png"
    Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)).save(path)
    return path


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("paitn x", "did you mean paint?"),
        ("paint x --sed 3", "did you mean --seed?"),
        ("paint x --seed=3 --step=3", "did you mean --steps?"),
        ("paint red apple", "quotes"),
        ("paint", "required: PROMPT"),
        ("export somewhere", "required: -o/--output"),
        ("paint x --steps ten", "'ten' is not a whole number"),
        ("paint x --guidance much", "'much' is not a number"),
        ("ask a b --fit stretch", "crop"),
        ("export a -o b --precision fp6", "fp16"),
    ],
)
def test_an_unknown_word_names_the_nearest(refused: Refused, words: str, said: str) -> None:
    assert said in refused(*words.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["paint", "x", "--steps", "17"], "17 steps for 16 codes"),
        (["paint", "x", "--steps", "0"], "at least 1"),
        (["paint", "x", "--schedule", "cubic"], "cosine"),
        (["paint", "x", "--guidance", "-1"], "at least 0"),
        (["paint", "x", "--temperature", "nan"], "at least 0"),
        (["paint", "x", "--seed", "-1"], "seed is -1; use a whole number from 0 to"),
        (["paint", "x", "--threads", "0"], "use 1 or more"),
        (["paint", "x", "--device", "tpu"], "use one of auto, cpu"),
        (["chat", "x", "--answer-length", "8", "--steps", "9"], "at most 8 steps"),
        (["chat", "x", "--answer-length", "0"], "at least 1"),
        (["chat", "x", "--block-length", "0"], "at least 1"),
        (["chat", "x", "--steps", "2"], "cannot fill 4 blocks"),
        (["chat", "x", "--threshold", "2"], "at most 1"),
        (["chat", "x", "--cache", "duel"], "dual"),
        (["extend", "given.png", "x", "--amount", "9"], "to 4"),
        (["extend", "given.png", "x", "--amount", "nan"], "to 4"),
    ],
)
def test_a_setting_out_of_range(refused: Refused, picture: Path, words: list[str], said: str) -> None:
    assert said in refused(*words)


def test_an_empty_prompt(refused: Refused, picture: Path) -> None:
    for words in (
        ["paint", " "],
        ["chat", ""],
        ["ask", picture, "\n"],
        ["extend", picture, ""],
        ["inpaint", picture, picture, ""],
    ):
        assert "is empty" in refused(*words)
    assert "is empty" in refused("chat", stdin=b"\n")
    assert "is empty" in refused("paint", "-", stdin=b"")


def test_a_prompt_that_is_too_long(refused: Refused, picture: Path) -> None:
    long = "word " * 300
    for words in (["paint", long], ["chat", long], ["ask", picture, long], ["extend", picture, long]):
        assert "shorten it by" in refused(*words)
    assert "shorten it by" in refused("chat", "x", "--answer-length", "1000")


def test_text_that_is_not_utf8(refused: Refused) -> None:
    assert "not UTF-8" in refused("paint", "-", stdin=b"\xff\xfe")
    assert "not UTF-8" in refused("paint", "red\udcff", "-o", "x.png")


def test_a_picture_that_is_none(refused: Refused, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.png").write_text("dear model")
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:-40])
    for name in ("letter.png", "cut.png"):
        for words in (
            ["ask", name, "what?"],
            ["extend", name, "x"],
            ["inpaint", name, picture, "x"],
            ["inpaint", picture, name, "x"],
        ):
            assert f"{name} is not a picture" in refused(*words)
    assert "no picture at absent.png" in refused("ask", "absent.png", "what?")
    assert "not a picture" in refused("ask", tmp_path, "what?")
    assert "not a picture" in refused("ask", "-", "what?", stdin=b"dear model")
    assert "no picture on standard input" in refused("ask", "-", "what?")
    assert "one standard input" in refused("ask", "-", "-")


def test_a_mask_that_does_not_fit(refused: Refused, picture: Path, tmp_path: Path) -> None:
    Image.new("L", (8, 16), 255).save(tmp_path / "small.png")
    Image.new("L", (16, 16), 0).save(tmp_path / "black.png")
    assert "8 x 16 pixels and the picture 16 x 16" in refused("inpaint", picture, "small.png", "x")
    assert "covers nothing" in refused("inpaint", picture, "black.png", "x")
    Image.new("L", (16, 16), 255).save(tmp_path / "all.png")
    assert "17 steps for 16 codes" in refused("inpaint", picture, "all.png", "x", "--steps", "17")


def test_a_place_that_cannot_be_written(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "x.png").write_text("old")
    (tmp_path / "folder.png").mkdir()
    assert "--force" in refused("paint", "x")
    assert "no folder absent" in refused("paint", "x", "-o", "absent/x.png")
    assert "no folder absent" in refused("paint", "x", "-o", "absent/")
    assert "is a folder" in refused("paint", "x", "-o", "")
    assert "too long" in refused("paint", "x", "-o", "x" * 300 + ".png")
    assert "is a folder" in refused("paint", "x", "-o", "folder.png")
    assert "end the name in" in refused("paint", "x", "-o", "x.docx")
    assert "is a file" in refused("paint", "x", "-o", "y.png", "--save-steps", "file")
    assert "no folder" in refused("paint", "x", "-o", "y.png", "--save-steps", "absent/steps")
    assert "both the picture and JSON" in refused("paint", "x", "-o", "-", "--json")


def test_a_missing_bundle(refused: Refused, tmp_path: Path, checkpoint: Path) -> None:
    for verb in (["chat", "x"], ["paint", "x"]):
        assert "no such bundle folder" in refused(*verb, "-m", "nowhere")
    assert "no such bundle folder" in refused("info", "nowhere")
    assert "is a checkpoint and not a bundle" in refused("info", checkpoint)
    (tmp_path / "empty").mkdir()
    assert "holds no bundle.json" in refused("info", "empty")


@pytest.mark.parametrize("verb", [["chat", "x"], ["paint", "x"], ["info"]])
def test_a_damaged_bundle(refused: Refused, bundle: Path, verb: list[str]) -> None:
    words = [*verb, bundle] if verb == ["info"] else [*verb, "-m", bundle]
    weights = bundle / "weights.bin"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert "weights.bin is truncated" in refused(*words)
    weights.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    assert "sha256" in refused(*words)
    weights.unlink()
    assert "missing" in refused(*words)
    weights.write_bytes(whole)
    manifest = bundle / "bundle.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "format_version": 3}))
    assert "newer mmada-lite" in refused(*words)
    manifest.write_text(json.dumps({**content, "achitecture": {}}))
    assert "did you mean 'architecture'" in refused(*words)
    manifest.write_text(json.dumps(content)[:100])
    assert "is damaged" in refused(*words)


@pytest.mark.parametrize("part", ["", "vq"])
@pytest.mark.parametrize("fault", ["missing", "extra", "misshapen", "truncated", "absent"])
def test_a_checkpoint_with_wrong_tensors(refused: Refused, checkpoint: Path, fault: str, part: str) -> None:
    file = checkpoint / part / "model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    if fault == "missing":
        tensors.pop(name)
    if fault == "extra":
        tensors["surplus.weight"] = tensors[name].copy()
    if fault == "misshapen":
        tensors[name] = np.zeros((3, 5), dtype=np.float32)
    save_file(tensors, file)
    if fault == "truncated":
        file.write_bytes(file.read_bytes()[:-10])
    if fault == "absent":
        file.unlink()
    said = refused("export", checkpoint, "-o", "out")
    assert {"missing": name, "extra": "surplus.weight", "misshapen": name}.get(fault, "model.safetensors") in said
    assert not Path("out").exists()


def test_a_checkpoint_that_we_do_not_build(refused: Refused, checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "alibi": True}))
    assert "alibi" in refused("export", checkpoint, "-o", "out")
    assert "no such checkpoint" in refused("export", "nowhere", "-o", "out")
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "tokenizer.json").write_text("{}")
    assert "tokenizer.json" in refused("export", checkpoint, "-o", "out")


def test_an_export_does_not_overwrite(refused: Refused, checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    assert "--force" in refused("export", checkpoint, "-o", bundle)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "letter").write_text("dear")
    assert "not replaced even with --force" in refused("export", checkpoint, "-o", "letters", "--force")


def test_a_folder_without_cases(refused: Refused, tmp_path: Path) -> None:
    assert "nowhere" in refused("check", "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds none of" in refused("check", "empty")


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_up_while_painting(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.png").write_text("old")
    monkeypatch.setattr("mmada_lite.cli.output.os.fsync", no_space)
    assert "disk is full" in refused("paint", "x", "--force")
    assert "disk is full" in refused("paint", "x", "-o", "new.png")


def test_a_disk_that_fills_up_while_exporting(
    refused: Refused, checkpoint: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmada_lite.files.os.fsync", no_space)
    assert "disk is full" in refused("export", checkpoint, "-o", "new")
    assert "disk is full" in refused("export", checkpoint, "-o", bundle, "--force")


def test_a_disk_that_is_too_small(refused: Refused, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(checkpoint)
    monkeypatch.setattr("mmada_lite.files.shutil.disk_usage", lambda _: usage._replace(free=1000))
    assert "1.0 KB free" in refused("export", checkpoint, "-o", "new")


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
def test_a_full_device(refused: Refused, tiny_bundle: Path, tmp_path: Path) -> None:
    assert "disk is full" in refused("paint", "x", "-o", FULL)
    assert not FULL.is_file()
    for verb in (["chat", "x"], ["paint", "x", "-o", "-"], ["info", str(tiny_bundle)]):
        words = verb if verb[0] == "info" else [*verb, "-m", str(tiny_bundle)]
        with FULL.open("wb") as full:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(
                [sys.executable, "-m", "mmada_lite", *words], stdout=full, stderr=subprocess.PIPE, env=environment, cwd=tmp_path
            )
        error = done.stderr.decode()
        assert done.returncode == 2
        assert "disk is full" in error.splitlines()[-1]
        assert "Traceback" not in error
        assert "Exception ignored" not in error


def test_a_folder_that_is_not_ours(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "theirs")

    with monkeypatch.context() as found_late:
        found_late.setattr("mmada_lite.cli.output.os.fsync", forbidden)
        assert "not allowed" in refused("paint", "x")
    monkeypatch.setattr("mmada_lite.cli.output.os.access", lambda *_: False)
    assert "not allowed to write" in refused("paint", "x")


@pytest.mark.parametrize(
    ("package", "words", "extra"),
    [
        ("onnx", ["export", "checkpoint", "-o", "out"], "export"),
        ("onnxruntime", ["chat", "x"], "cpu"),
        ("torch", ["check", "golden"], "train"),
        ("torch", ["train", "vq"], "train"),
    ],
)
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    refused: Refused,
    checkpoint: Path,
    golden: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    words: list[str],
    extra: str,
) -> None:
    shutil.copytree(golden / "image", tmp_path / "golden" / "image")
    for name in [name for name in sys.modules if name.startswith(("mmada_lite.train", "mmada_lite.export"))]:
        monkeypatch.delitem(sys.modules, name)  # as in a fresh process
    for workshop in ("train", "export"):
        monkeypatch.delattr(mmada_lite, workshop, raising=False)  # else the package keeps the second copy after the test
    monkeypatch.setitem(sys.modules, package, None)
    assert f'pip install "mmada-lite[{extra}]"' in refused(*words)


def test_the_library_raises_the_same(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(Error, match="no such bundle"):
        load(tmp_path / "nowhere")
    with pytest.raises(Error, match="at most 8 steps"):
        TextSettings(answer_length=8, steps=9)
    with pytest.raises(ValueError, match="cosine"):
        ImageSettings(schedule="cubic")
    with pytest.raises(Error, match="unknown setting 'tempratur'; did you mean 'temperature'"):
        ImageSettings(tempratur=1)  # type: ignore[call-arg]
    model = load(tiny_bundle)
    with pytest.raises(Error, match="is empty"):
        model.paint(" ")
    with pytest.raises(Error, match="17 steps for 16 codes"):
        model.paint("x", ImageSettings(steps=17))
    with pytest.raises(Error, match="role 'robot'"):
        model.chat([{"role": "robot", "content": "hello"}])


def test_a_terminal_that_cannot_show_the_answer(tiny_bundle: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    words = [sys.executable, "-m", "mmada_lite", "chat", "x", "-m", str(tiny_bundle), "--answer-length", "8"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode in (0, 2)  # the random model may happen to answer in ASCII
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or "is ascii and cannot show the answer" in done.stderr
    assert subprocess.run([*words, "--json"], capture_output=True, env=environment, cwd=tmp_path).returncode == 0
