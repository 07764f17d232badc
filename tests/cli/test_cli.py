"""The command line on a bundle of random weights: what goes where, in which form, and with which exit code."""

import io
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmada_lite.cli.main import VERBS, build_parser, main
from mmada_lite.cli.model_options import text_settings
from mmada_lite.cli.output import named_after
from mmada_lite.decoding.settings import TextSettings

ROOT = Path(__file__).parents[2]
Run = Callable[..., tuple[int, str, str]]
STEP_KEYS = {"step", "total_steps", "positions", "tokens", "log_probabilities", "remaining", "seconds", "model_calls"}


@pytest.fixture
def run(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a verb in an empty folder on the tiny bundle; returns the exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        words = [str(argument) for argument in arguments]
        if words[0] in ("chat", "ask", "paint", "inpaint", "extend") and not {"-m", "--model"} & set(words):
            words += ["-m", str(tiny_bundle)]
        code = main(words)
        out, error = capsys.readouterr()
        return code, out, error

    return call


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "given.png"
    Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)).save(path)
    return path


def command(*arguments: str | Path, **options: object) -> "subprocess.CompletedProcess[bytes]":
    """The same in a process of its own, for what only a process shows."""
    words = [sys.executable, "-m", "mmada_lite", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, env=environment, capture_output=True, timeout=60, **options)  # type: ignore[call-overload,no-any-return]


HEAVY = {"numpy", "PIL", "tokenizers", "onnxruntime", "torch", "shtab"}
VERB_MODULES = {f"mmada_lite.cli.{verb}" for verb in VERBS}


def imported_by(*words: str) -> tuple[str, set[str]]:
    """Standard output of a command that ends with --help, in a process of its own, and what it imported."""
    code = (
        "import sys\nfrom mmada_lite.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as end: assert end.code == 0\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, set(done.stderr.split())


def test_help_names_every_verb_and_imports_nothing_heavy() -> None:
    shown, modules = imported_by()
    assert all(re.search(rf"^    {verb}\b", shown, re.MULTILINE) for verb in VERBS)
    assert not modules & (HEAVY | VERB_MODULES)


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"train"}))
def test_the_help_of_a_verb_imports_no_other_and_nothing_heavy(verb: str) -> None:
    shown, modules = imported_by(verb)
    assert f"usage: mmada-lite {verb}" in shown
    assert not modules & HEAVY
    assert modules & VERB_MODULES == {f"mmada_lite.cli.{verb}"}


def test_a_flag_means_one_thing_in_every_verb() -> None:
    meanings: dict[str, set[str]] = {}
    for parser in build_parser()[1].values():
        for action in parser._actions:
            for spelling in action.option_strings:
                meanings.setdefault(spelling, set()).add(action.dest)
    assert all(len(dests) == 1 for dests in meanings.values()), meanings
    assert {s for s in meanings if not s.startswith("--")} == {"-h", "-m", "-o"}


def test_paint_writes_a_picture_named_after_its_prompt(run: Run) -> None:
    code, out, error = run("paint", "A red apple!")
    assert (code, out, error) == (0, "a-red-apple.png\n", "")
    assert Image.open("a-red-apple.png").size == (16, 16)
    assert os.listdir() == ["a-red-apple.png"]


def test_same_seed_same_picture(run: Run) -> None:
    for name, seed in (("a", "7"), ("b", "7"), ("c", "8")):
        assert run("paint", "x", "-o", f"{name}.png", "--seed", seed)[0] == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes() != Path("c.png").read_bytes()


def test_prompt_from_stdin_and_picture_to_stdout(tiny_bundle: Path, tmp_path: Path) -> None:
    done = command("paint", "-", "-o", "-", "-m", tiny_bundle, input=b"a tree\n", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Image.open(io.BytesIO(done.stdout)).format == "PNG"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("name", "kind"), [("a.png", "PNG"), ("a.JPG", "JPEG"), ("a.webp", "WEBP"), ("plain", "PNG")])
def test_the_ending_chooses_the_format(run: Run, name: str, kind: str) -> None:
    assert run("paint", "x", "-o", name)[0] == 0
    assert Image.open(name).format == kind


def test_force_replaces_and_its_absence_does_not(run: Run) -> None:
    Path("x.png").write_bytes(b"old")
    code, _, error = run("paint", "x")
    assert code == 2
    assert "--force" in error
    assert Path("x.png").read_bytes() == b"old"
    assert run("paint", "x", "--force")[0] == 0
    assert Image.open("x.png").format == "PNG"


def test_a_link_stays_a_link(run: Run) -> None:
    Path("real.png").write_bytes(b"old")
    Path("link.png").symlink_to("real.png")
    assert run("paint", "x", "-o", "link.png", "--force")[0] == 0
    assert Path("link.png").is_symlink()
    assert Image.open("real.png").format == "PNG"


def test_saved_steps_end_in_the_picture(run: Run) -> None:
    assert run("paint", "x", "--steps", "4", "--save-steps", "steps")[0] == 0
    assert sorted(os.listdir("steps")) == [f"step-00{n}.png" for n in (1, 2, 3, 4)]
    assert Path("steps/step-004.png").read_bytes() == Path("x.png").read_bytes()
    code, _, error = run("paint", "y", "--steps", "2", "--save-steps", "steps")
    assert code == 2
    assert "--force" in error
    assert run("paint", "y", "--steps", "2", "--save-steps", "steps", "--force")[0] == 0
    assert sorted(os.listdir("steps")) == ["step-001.png", "step-002.png"]


def test_json_is_alone_on_stdout_and_says_everything(run: Run) -> None:
    code, out, error = run("paint", "x", "--json", "--steps", "5", "--seed", "3")
    *steps, last = [json.loads(line) for line in out.splitlines()]
    assert (code, error) == (0, "")
    assert [(s["step"], s["total_steps"]) for s in steps] == [(n, 5) for n in range(1, 6)]
    assert all(set(s) == STEP_KEYS for s in steps)
    assert steps[-1]["remaining"] == 0
    written = [p for s in steps for p in s["positions"]]
    assert len(written) == len(set(written)) == 16
    assert (last["result"], last["seed"], last["model_calls"], last["steps"]) == ("x.png", 3, 5, 5)
    assert last["settings"]["steps"] == 5


def test_chat_answers_a_pipe(run: Run) -> None:
    plain = run("chat", "hello", "--answer-length", "8")
    assert plain[0] == 0
    for words in ((), ("-",)):
        assert run("chat", *words, "--answer-length", "8", stdin=b"hello\n") == plain
    code, out, _ = run("chat", "hello", "--answer-length", "8", "--json")
    *steps, last = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert last["result"] == plain[1].rstrip("\n").strip()
    assert sum(len(s["positions"]) for s in steps) == 8
    assert last["settings"]["answer_length"] == 8


@pytest.mark.parametrize("options", [("--cache", "dual"), ("--threshold", "0.9"), ("--guidance", "1"), ("--temperature", "1")])
def test_every_way_of_writing_ends_without_a_mask(run: Run, options: tuple[str, ...]) -> None:
    code, out, _ = run("chat", "hello", "--answer-length", "8", "--json", "--block-length", "4", *options)
    *steps, last = [json.loads(line) for line in out.splitlines()]
    written = [p for s in steps for p in s["positions"]]
    assert code == 0
    assert len(written) == len(set(written)) == 8 - steps[-1]["remaining"]
    assert last["complete"] or len(written) == 8


def test_ask_takes_the_picture_from_stdin_too(run: Run, picture: Path) -> None:
    from_file = run("ask", picture, "what?", "--answer-length", "8")
    assert from_file[0] == 0
    assert run("ask", "-", "what?", "--answer-length", "8", stdin=picture.read_bytes()) == from_file
    assert run("ask", picture, "-", "--answer-length", "8", stdin=b"what?\n") == from_file


def test_inpaint_keeps_what_the_mask_leaves(run: Run, picture: Path) -> None:
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[:8, :8] = 255
    Image.fromarray(mask).save("mask.png")
    assert run("inpaint", picture, "mask.png", "a cat", "--guidance", "1") == (0, "given-inpainted.png\n", "")
    kept = np.asarray(Image.open("given-inpainted.png"))[mask == 0]
    assert (kept == np.asarray(Image.open(picture))[mask == 0]).all()


def test_a_drawing_that_is_smaller_than_its_picture_says_both_sizes(run: Run, picture: Path) -> None:
    Image.new("L", (45, 30), 255).save("mask.png")
    Image.open(picture).resize((45, 30)).save("photo.png")
    said = "mmada-lite: the drawing is {} pixels and the picture 45 x 30: this model draws no larger\n"
    words = ("photo.png", "a cat", "--guidance", "1")
    assert run("inpaint", "photo.png", "mask.png", *words[1:])[2] == said.format("16 x 16")
    for side, size in (("left", "24 x 16"), ("bottom", "16 x 24")):
        assert run("extend", *words, "--side", side, "-o", f"{side}.png")[2] == said.format(size)
    assert run("extend", picture, "a cat", "--guidance", "1")[2] == ""
    assert run("extend", *words, "--steps", "900", "-o", "x.png")[2].count("\n") == 1  # the fault alone


@pytest.mark.parametrize(("side", "size"), [("right", (32, 16)), ("top", (16, 32))])
def test_extend_grows_one_side(run: Run, picture: Path, side: str, size: tuple[int, int]) -> None:
    assert run("extend", picture, "a cat", "--side", side, "--amount", "1", "-o", "wide.png")[0] == 0
    assert Image.open("wide.png").size == size


def test_info_says_what_is_inside_and_whether_it_runs(run: Run, tiny_bundle: Path) -> None:
    code, out, _ = run("info", tiny_bundle, "--verify")
    assert code == 0
    assert "16 x 16 pixels as 4 x 4 codes" in out
    assert "runs here  yes" in out
    code, out, _ = run("info", tiny_bundle, "--json")
    content = json.loads(out)
    assert content["architecture"]["n_layers"] == 2
    assert content["here"]["runs"] is True
    assert content["here"]["memory_needed"] >= content["bytes"]


def test_info_says_why_it_does_not_run(run: Run, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmada_lite.memory_plan.memory_available", lambda: 1000)
    code, out, _ = run("info", tiny_bundle, "--device", "cpu")
    assert code == 1
    assert "runs here  no: it needs about" in out
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, out, _ = run("info", tiny_bundle)
    assert code == 1
    assert 'pip install "mmada-lite[cpu]"' in out


def test_export_writes_a_bundle_that_paints(run: Run, tiny_checkpoint: Path) -> None:
    code, out, error = run("export", tiny_checkpoint, "-o", "bundle")
    assert (code, error) == (0, "")
    assert Path(out.strip()).name == "bundle"
    assert run("paint", "x", "-m", "bundle")[0] == 0
    assert run("export", tiny_checkpoint, "-o", "bundle")[0] == 2
    code, out, _ = run("export", tiny_checkpoint, "-o", "bundle", "--force", "--precision", "fp32", "--json")
    assert code == 0
    assert json.loads(out)["precision"] == "fp32"
    assert sorted(os.listdir()) == ["bundle", "x.png"]


def test_check_exits_with_one_when_a_case_falls_short(run: Run, golden: Path, tmp_path: Path) -> None:
    recorded = tmp_path / "recorded"
    shutil.copytree(golden / "image", recorded / "image")
    code, out, _ = run("check", recorded)
    summary = json.loads(out.splitlines()[-1])
    assert code == 0
    assert summary["passed"] == summary["compared"] == len(out.splitlines()) - 1 > 0
    Image.new("RGB", Image.open(recorded / "image" / "p0_landscape.png").size).save(recorded / "image" / "p0_landscape.png")
    code, out, _ = run("check", recorded, "--engine", "onnx")
    assert code == 1
    assert json.loads(out.splitlines()[-1])["failed"]


def test_train_is_handed_on(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run("train", "--help")
    assert end.value.code == 0
    assert "mmada-lite train" in capsys.readouterr().out


def test_a_reader_that_leaves_is_no_fault(tiny_bundle: Path, tmp_path: Path) -> None:
    words = f"{sys.executable} -m mmada_lite chat x -m {tiny_bundle} --json --answer-length 200 --steps 100 | head -1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stderr == ""
    assert json.loads(done.stdout)["step"] == 1


def test_ctrl_c_ends_with_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmada_lite.model.load", interrupted)
    assert run("paint", "x") == (130, "", "mmada-lite: interrupted\n")
    assert os.listdir() == []


def test_a_conversation_and_its_progress_on_a_terminal(tiny_bundle: Path, tmp_path: Path) -> None:
    words = ["chat", "-m", str(tiny_bundle), "--answer-length", "8", "--threads", "1"]
    shown = on_terminal(words, [b"hello\n", b"/new\n", b"\n", b"again\n", b"/exit\n"], tmp_path)
    assert shown.count(b"step 4/4") == 2
    assert b"Traceback" not in shown


def on_terminal(words: list[str], said: list[bytes], folder: Path) -> bytes:
    """Everything that a terminal shows when a person types `said`, each when the prompt stands."""
    terminal, inner = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mmada_lite", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "200"},
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
    )
    os.close(inner)
    shown, waiting, seen = b"", list(said), 0
    until = time.monotonic() + 60
    while time.monotonic() < until:
        ready, _, _ = select.select([terminal], [], [], 1)
        if ready:
            try:
                part = os.read(terminal, 65536)
            except OSError:
                break
            if not part:
                break
            shown += part
        if waiting and shown.find(b"> ", seen) >= 0:
            seen = len(shown)
            os.write(terminal, waiting.pop(0))
    os.close(terminal)
    assert process.wait(10) == 0, shown
    return shown


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("A red apple!", "a-red-apple.png"),
        ("../../etc/passwd", "etc-passwd.png"),
        ("🍎", "picture.png"),
        ("Äpfel", "äpfel.png"),
    ],
)
def test_a_sentence_becomes_a_safe_file_name(text: str, name: str) -> None:
    assert named_after(text) == name
    assert len(named_after("long " * 100).encode()) < 100


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        ([], 64),
        (["--answer-length", "32"], 16),
        (["--block-length", "1"], 128),
        (["--answer-length", "1"], 1),
        (["--steps", "9"], 9),
    ],
)
def test_steps_follow_the_answer_unless_they_are_said(words: list[str], steps: int) -> None:
    arguments = build_parser()[0].parse_args(["chat", "x", *words])
    assert text_settings(TextSettings(), arguments).steps == steps
