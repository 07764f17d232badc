"""Wrong command lines over every verb: each is refused in one line with exit code 2, at once, and nothing is written. A tenth
of them by default, all with --fuzz; line N is the same every time.

Each line holds one fault for sure, among options that are right, repeated, or wrong too: so no line can begin long work.
"""

import argparse
import contextlib
import faulthandler
import io
import json
import os
import random
import shutil
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from peak_memory import peak_memory
from PIL import Image

from mmada_lite.cli.main import VERBS, build_parser, main

COUNT, LONGEST, MOST_MEMORY = 2_000, 20, 1_500_000_000  # lines; seconds each; bytes
ALONE = 40  # one line in so many is run as a process of its own
ROOT = Path(__file__).parents[2]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
NO_NUMBERS = ("ten", "", " ", "1e", "--", "0x10", "½", "1,5", "\x1b[2J", "a" * 3000, "None", "1 2", "\udcff")  # fmt: skip
NO_WORDS = ("zzz", "", "\n", "CROP ", "🙂", "\x1b]0;x\x07", "a" * 3000, "../..", "exact,fast", "\udc80")
OUT_OF_RANGE = {  # an option -> values that are read and cannot be
    "--seed": ("-1", str(2**64), "-" + "9" * 30),
    "--threads": ("0", "-1", "-9999999999"),
    "--steps": ("0", "-1", "9" * 30),
    "--answer-length": ("0", "-5", str(10**12)),
    "--block-length": ("0", "-1"),
    "--guidance": ("-1", "nan", "inf", "-inf", "1e999"),
    "--temperature": ("-0.1", "nan", "inf"),
    "--amount": ("nan", "inf", "-inf", "-1", "0", "9", "1e308"),
    "--threshold": ("2", "-1", "nan"),
    "--device": ("tpu", "CPU", "", "cuda:0", "\x1b[2J"),
    "--speed": ("warp", "", "Exact", "🙂"),
    "--cache": ("all", "", "None"),
    "--schedule": ("cubic", "", "cos"),
    "--memory": ("lots", "-1GB", "0", "8", "", "1e3GB", "9" * 400, "8 GB extra"),
}
TEXT_VERBS, DRAWING_VERBS = ("chat", "ask"), ("paint", "inpaint", "extend")
BENCHES = {  # a benchmark -> what it needs, and a number that it takes
    "latency": ([], "--rounds"),
    "peers": ([], "--rounds"),
    "ceiling": ([], "--slice"),
    "quality": (["gone"], "--count"),
    "quantization": (["gone"], "--prompts"),
    "check": (["gone"], ""),
    "serve": ([], "--requests"),
}
TRAINING = ("fetch", "render", "vq", "sharpen", "judge", "pool", "one", "two", "three", "export")

Line = list[str]


class Lines:
    """Wrong lines, of a folder in which `prepare` has put right and wrong files."""

    def __init__(self) -> None:
        parsers = build_parser()[1]
        self.options = {verb: [each for each in parser._actions if each.option_strings] for verb, parser in parsers.items()}

    def line(self, chance: random.Random) -> Line:
        verb = chance.choice([*VERBS, "bench", "train", *DRAWING_VERBS, *TEXT_VERBS])
        if chance.random() < 0.05:
            return self.no_verb(chance)
        if verb in ("bench", "train"):
            return getattr(self, verb)(chance)  # type: ignore[no-any-return]
        faults: list[Callable[[str, random.Random], tuple[Line, str] | None]]
        faults = [self.unknown, self.no_value, self.ill_read, self.out_of_range, self.place, self.too_many, self.contradiction]
        while (made := chance.choice(faults)(verb, chance)) is None:
            pass
        line, spoken_for = made
        return [*line[:1], *self.noise(verb, chance, spoken_for), *line[1:]]

    def right(self, verb: str) -> Line:
        """The verb with what it needs, all of it there; of what writes or measures only what is refused."""
        needed: dict[str, Line] = {
            "chat": ["hi", "-m", "bundle"],
            "ask": ["right.png", "what?", "-m", "bundle"],
            "paint": ["a cat", "-o", "new.png", "-m", "bundle"],
            "inpaint": ["right.png", "right.png", "a cat", "-o", "new.png", "-m", "bundle"],
            "extend": ["right.png", "a cat", "-o", "new.png", "-m", "bundle"],
            "batch": ["right.jsonl", "-o", "new.jsonl", "-m", "bundle"],
            "export": ["checkpoint", "-o", "made"],
            "quantize": ["checkpoint", "-o", "made"],
            "check": ["cases"],
            "info": ["bundle"],
            "completion": ["bash"],
        }
        return [verb, *needed.get(verb, [])]

    def noise(self, verb: str, chance: random.Random, spoken_for: str) -> Line:
        words: Line = []
        for action in chance.sample(self.options[verb], min(len(self.options[verb]), chance.choice((0, 0, 1, 2, 4)))):
            name = action.option_strings[-1]
            if name in ("--help", "--output", "--model", "--cpp", "--think", "--thought", spoken_for):
                continue
            value = {"--seed": "3", "--threads": "1", "--json": None, "--force": None, "--speed": "fast"}.get(name, "-")
            if value != "-":
                words += [name, *([] if value is None else [value])] * chance.choice((1, 1, 2))
        return [] if spoken_for == "--json" else words

    def no_verb(self, chance: random.Random) -> Line:
        verb = chance.choice([*VERBS])
        cut = verb[: chance.randrange(1, len(verb))]
        return chance.choice(([], [verb[::-1]], [cut if cut not in VERBS else "zzz"], ["--json", verb], ["--zzz"], [""],
            ["\x1b[2J"], [verb.upper()], ["🙂", verb], [f"{verb} x"], ["-x"], ["a" * 5000], ["\udcff"]))  # fmt: skip

    def unknown(self, verb: str, chance: random.Random) -> tuple[Line, str]:
        known = {text for action in self.options[verb] for text in action.option_strings}
        name = chance.choice(sorted(text for text in known if text.startswith("--")))
        wrong = chance.choice(
            (name[:-1], name + "s", name.upper(), name[:4], "--zzz", name.replace("-", "_"), "--é", "--\x1b[2J")
        )
        wrong = "--zzz" if wrong in known or wrong.strip("-") == "" else wrong
        return [*self.right(verb), chance.choice((wrong, f"{wrong}=1"))], ""

    def no_value(self, verb: str, chance: random.Random) -> tuple[Line, str] | None:
        taking = [action for action in self.options[verb] if action.nargs is None]
        if not taking:
            return None
        return [*self.right(verb), chance.choice(chance.choice(taking).option_strings)], ""

    def ill_read(self, verb: str, chance: random.Random) -> tuple[Line, str] | None:
        """A value of the wrong type, or none of the choices; a value for a flag."""
        action: argparse.Action = chance.choice(self.options[verb])
        name = action.option_strings[-1]
        if action.nargs == 0:
            return ([*self.right(verb), f"{name}=1"], name) if name != "--help" else None
        if action.choices or (action.type is not None and name not in ("--model",)):
            wrong = chance.choice(NO_WORDS if action.choices else NO_NUMBERS)
            if "optional" in str(action.help) or (name in OUT_OF_RANGE and wrong == "None"):
                return None
            readable = action.type is not None and _reads(action.type, wrong)  # type: ignore[arg-type]
            return None if readable and not action.choices else ([*self.right(verb), f"{name}={wrong}"], name)
        return None

    def out_of_range(self, verb: str, chance: random.Random) -> tuple[Line, str] | None:
        known = {text for action in self.options[verb] for text in action.option_strings}
        names = [name for name in OUT_OF_RANGE if name in known and not (verb == "quantize" and name == "--seed")]
        if verb in ("info", "doctor", "export", "quantize", "check") or not names:
            return None
        name = chance.choice(names)
        return [*self.right(verb), f"{name}={chance.choice(OUT_OF_RANGE[name])}"], name

    def place(self, verb: str, chance: random.Random) -> tuple[Line, str] | None:
        """A file or folder that is not there, or is something else."""
        line = self.right(verb)
        gone = chance.choice(("gone", "gone/deeper", "no\x1b[2J", "n" * 300, "g\udcff", "🙂", "\n"))
        file = chance.choice(
            (gone, "letter.png", "pointer.png", "pipe", "folder", "bundle/weights.bin", "/dev/null", "/proc/self/mem")
        )
        folder = chance.choice((gone, "letter.png", "pointer.png", "pipe", "folder", "/dev/null", "right.png"))
        if verb in ("ask", "inpaint", "extend"):
            line[chance.choice((1, 2) if verb == "inpaint" else (1,))] = file
        elif verb == "batch":
            at, wrong = chance.choice(
                ((1, file), (3, chance.choice(("gone/x", "right.png", "folder", "pipe", "n" * 300))), (5, folder))
            )
            line[at] = wrong
        elif verb in ("chat", "paint", "export", "quantize", "check", "info", "plan"):
            at = {"chat": 3, "paint": 5, "plan": 2}.get(verb, 1)
            line += ["-m", ""] if verb == "plan" else []
            line[at] = chance.choice((folder, "checkpoint")) if verb in ("chat", "paint", "info") else folder
        else:
            return None
        if verb in DRAWING_VERBS and chance.random() < 0.5:
            line = self.right(verb)
            line[line.index("-o") + 1] = chance.choice(("gone/x.png", "right.png", "folder", "x.docx", "n" * 300 + ".png"))
            return line, "--force"
        return line, "--force"

    def too_many(self, verb: str, chance: random.Random) -> tuple[Line, str]:
        line = self.right(verb)
        if verb == "completion" or (len(line) > 1 and verb != "info" and chance.random() < 0.4):
            del line[1]  # too few
            if verb in ("chat", "plan"):
                line = [verb, "-m", "bundle"]  # of an empty standard input
            return line, ""
        return [
            *line,
            *("one", "more", "and more")[: chance.randrange(1, 4)],
            *(["two"] if verb in ("chat", "info") else []),
        ], ""

    def contradiction(self, verb: str, chance: random.Random) -> tuple[Line, str] | None:
        lines: dict[str, list[Line]] = {
            "paint": [["x", "-o", "-", "--json"], ["-", "--thought", "-"], ["x", "--think", "--thought", "y"], [" "],
                ["-"], [""]],
            "ask": [["-", "-"], ["right.png", ""], ["-", "what?"]],
            "inpaint": [["-", "-", "x"], ["right.png", "-", "-"], ["right.png", "right.png", " "], ["right.png", "-", "x"]],
            "extend": [["-", "-"], ["right.png", "\n"], ["-", "x"]],
            "chat": [[""], ["-"], [], ["\udcff"]],
            "export": [["checkpoint"], ["checkpoint", "-o", "m", "--profile", "block"], ["checkpoint", "-o", "bundle"],
                ["checkpoint", "-o", "folder", "--force"], ["checkpoint", "-o", "right.png", "--force"],
                ["checkpoint", "-o", "m", "--store", "x"], ["checkpoint", "-o", "m", "--store", "codec=int3"]],
            "quantize": [["checkpoint", "-o", "bundle"], ["checkpoint", "-o", "m", "--method", "x"],
                ["checkpoint", "-o", "m", "--format", "int3"], ["checkpoint", "-o", "m", "--prompts", "pipe"],
                ["checkpoint", "-o", "m", "--prompts", "right.png"], ["checkpoint", "-o", "m", "--prompt-count", "0"],
                ["checkpoint", "-o", "m", "--work", "right.png"], ["checkpoint", "-o", "m", "--work", "folder"],
                ["checkpoint", "-o", "m", "--seed", "-1"]],
            "batch": [["right.jsonl"], ["right.jsonl", "-o", "right.jsonl"], ["right.jsonl", "-o", "x", "--pictures", "pipe"],
                ["right.jsonl", "-o", "new.jsonl", "--pictures", "folder"], ["-", "-o", "new.jsonl"]],
            "info": [["bundle", "-m", "bundle"], ["bundle", "--threads", "0"], ["--cpp", "gone"]],
            "plan": [["-m", "8b", "--device", "tpu"], ["-m", "8b", "--cache", "all"], ["--speed", "warp"]],
        }  # fmt: skip
        return ([verb, *chance.choice(lines[verb])], "--force") if verb in lines else None

    def bench(self, chance: random.Random) -> Line:
        name = chance.choice(list(BENCHES))
        needed, number = BENCHES[name]
        lines = [["zzz"], [name[:-1]], [name, *needed, "--zzz"], [name, *needed, "--helpp"], [name, *needed, "--outpu", "x"]]
        lines += [[name, *needed, "--output"]] if name != "check" else [[name]]
        if number:
            wrong = [f"{number}={word}" for word in NO_NUMBERS + (() if name == "quantization" else ("0", "-1", "nan"))]
            lines += [[name, *needed, word] for word in wrong]
        if needed:
            lines += [[name, *needed], [name], [name, "\x1b[2J"], [name, "n" * 300]]
        return ["bench", *chance.choice(lines)]

    def train(self, chance: random.Random) -> Line:
        verb = chance.choice(TRAINING)
        wrong = [
            f"{name}={word}" for name in ("--steps", "--seed", "--threads", "--rows") for word in (*NO_NUMBERS, "-1", "-9")
        ]
        lines = [["zzz"], [verb[:-1]], [verb, "--zzz"], [verb, "--step", "3"], [verb, "one"], [verb, "--folder"], [],
            ["curves", "--zzz"], ["gallery", "--zzz"], ["synergy", "--zzz"],
            [verb, chance.choice(wrong)], [verb, chance.choice(wrong)],
            [verb, "--groups", "ask"], [verb, "--groups", "ask=x"]]  # fmt: skip
        return ["train", *chance.choice(lines)]


def _reads(kind: Callable[[str], Any], word: str) -> bool:
    try:
        kind(word)
    except (ValueError, argparse.ArgumentTypeError):
        return False
    return True


def prepare(folder: Path, bundle: Path, checkpoint: Path) -> None:
    (folder / "bundle").symlink_to(bundle)
    (folder / "checkpoint").symlink_to(checkpoint)
    (folder / "folder").mkdir()
    (folder / "folder" / "letter").write_text("dear model")
    (folder / "cases").mkdir()
    Image.new("RGB", (16, 16), "white").save(folder / "right.png")
    (folder / "right.jsonl").write_text('{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n')
    (folder / "letter.png").write_text("dear model")
    (folder / "pointer.png").write_text(POINTER)
    os.mkfifo(folder / "pipe")


def seen(folder: Path) -> list[tuple[str, int, int]]:
    status = [(str(path), path.lstat()) for path in sorted(folder.rglob("*"))]
    return [(name, each.st_size, each.st_mtime_ns) for name, each in status]


def in_process(line: Line) -> tuple[object, str, str]:
    out, error = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code: object = main(line)
    except BaseException:
        code = traceback.format_exc()[-1500:]
    finally:
        sys.stdin = before
    said = [stream.buffer.getvalue().decode(errors="replace") for stream in (out, error)]  # type: ignore[attr-defined]
    return code, said[0], said[1]


def alone(line: Line) -> tuple[object, str, str]:
    words = [sys.executable, "-m", "mmada_lite", *line]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    return done.returncode, done.stdout, done.stderr


def run(folder: Path, numbers: Iterator[int]) -> dict[str, Any]:
    os.chdir(folder)
    lines, counted, faults, slowest = Lines(), Counter[str](), [], 0.0
    before = seen(folder)
    for number in numbers:
        line = lines.line(random.Random(number))
        patience = LONGEST * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # others may be at work here
        faulthandler.dump_traceback_later(3 * patience, exit=True)
        started = time.monotonic()
        code, out, error = (alone if number % ALONE == ALONE - 1 else in_process)(line)
        took = time.monotonic() - started
        faulthandler.cancel_dump_traceback_later()
        slowest, now = max(slowest, took), seen(folder)
        counted[line[0] if line and line[0] in VERBS else "no verb"] += 1
        right = code == 2 and out == "" and error.startswith("mmada-lite: ") and error.count("\n") == 1 and error.endswith("\n")
        if not right or not error[:-1].isprintable() or took > patience or now != before:
            left = [each[0] for each in now if each not in before]
            faults.append(f"{number}: {line!r:.300} -> {code} {out!r:.200} {error!r:.500} {took:.1f} s {left}")
            before = now
    return {"counted": counted, "faults": faults, "slowest": slowest, "peak": peak_memory()}


@pytest.mark.fuzz
def test_a_wrong_command_line_is_one_line(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    count = COUNT if pytestconfig.getoption("fuzz") else COUNT // 10
    prepare(tmp_path, tiny_bundle, tiny_checkpoint)
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path), "0", str(count)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    found = json.loads(done.stdout)
    print(found)
    assert found["faults"] == []
    assert sum(found["counted"].values()) == count
    assert set(VERBS) <= set(found["counted"])
    assert found["peak"] < MOST_MEMORY


if __name__ == "__main__":
    if sys.argv[1] == "--prepare":
        shutil.rmtree(sys.argv[2], ignore_errors=True)
        Path(sys.argv[2]).mkdir()
        prepare(*map(Path, sys.argv[2:5]))
    else:
        print(json.dumps(run(Path(sys.argv[1]), iter(range(int(sys.argv[2]), int(sys.argv[3]))))))
