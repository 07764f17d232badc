"""Mutated bundles and checkpoints: each is refused in one line, or works as the one that it was made from. A tenth of them by
default, all with --fuzz; mutation N is the same every time."""

import copy
import faulthandler
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mmada_lite import Error, ImageSettings, TextSettings, load
from mmada_lite.bundle import MANIFEST
from mmada_lite.export.bundle import export_checkpoint

COUNT, LONGEST, MOST_MEMORY = 1_000, 20, 1_500_000_000  # mutations; seconds each; bytes
ROOT = Path(__file__).parents[2]
TEXT, IMAGE = TextSettings(answer_length=4, steps=2, block_length=4), ImageSettings(steps=2)
WORDS: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        -1,
        1,
        2,
        3,
        7,
        63,
        2**31,
        2**63,
        10**12,
        10**4000,
        0.5,
        -0.0,
        1e38,
        1e308,
        "",
        "x",
        "gpu",
        "int4",
        "fp32",
    ),
    *("\x1b[2J", "\ud800", "../x", "tokenizer.json", "weights.bin", "text_head", [], {}, [0], {"x": 0}, "a" * 5000),
)
# What a model may say otherwise without a contradiction: then it works, and need not answer as before.
FREE = (("rows",), ("image", "resolution"), ("defaults",))


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", ["bundle", "checkpoint"])
def test_a_mutation_is_refused_in_one_line_or_works(
    kind: str, tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    share = {"bundle": COUNT * 4 // 5, "checkpoint": COUNT // 5}[kind]
    count = share if pytestconfig.getoption("fuzz") else share // 10
    source = tiny_bundle if kind == "bundle" else tiny_checkpoint
    done = subprocess.run(
        [sys.executable, __file__, kind, str(source), str(tmp_path), "0", str(count)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "ORT_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    found = json.loads(done.stdout)
    assert found["faults"] == []
    assert sum(found[what] for what in ("refused", "works")) == count
    assert min(found["refused"], found["works"]) > count // 20  # the mutations neither spoil all nor miss all
    assert found["peak"] < MOST_MEMORY
    assert "panicked" not in done.stderr


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where there is something in a file of JSON; of long lists and tables the beginning."""
    parts = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(place for key, part in list(parts)[:40] for place in places(part, (*path, key)))]


def mutated(content: Any, chance: random.Random) -> tuple[str, tuple[Any, ...]]:
    """The text of a file of JSON in which something is other, and where."""
    changed = copy.deepcopy(content)
    path = chance.choice(places(changed)[1:])
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    key, value, text = path[-1], holder[path[-1]], ""
    match chance.randrange(8):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[chance.choice((f"{key}s", f"{key}\x1b", "x"))] = holder.pop(key)
        case 2 if len(holder) > 1:  # two values exchanged
            other = chance.choice([*(holder if isinstance(holder, dict) else range(len(holder)))])
            holder[key], holder[other] = holder[other], value
        case 3 if type(value) in (int, float):
            holder[key] = chance.choice((value + 1, value - 1, value * 2, value // 2, -value, float(value), str(value)))
        case 4:
            text = chance.choice(("[" * 200_000, "9" * 5_000, "NaN", "1e999", '{"x": 1, "x": 2}', "\x00", "{"))
            holder[key] = "@"
        case _:
            holder[key] = chance.choice(WORDS)
    spelled = json.dumps(changed)
    return (spelled.replace('"@"', text, 1) if text else spelled), path


def with_hash(folder: Path, name: str) -> None:
    """bundle.json made to fit what a file is now."""
    manifest, content = json.loads((folder / MANIFEST).read_text(encoding="utf-8")), (folder / name).read_bytes()
    manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def mutate(folder: Path, names: list[str], chance: random.Random) -> bool:
    """Change a file of a folder. Returns whether what works afterwards must answer as before."""
    name = chance.choice(names)
    path, bundled = folder / name, name != MANIFEST and (folder / MANIFEST).is_file()
    if path.suffix == ".json" and chance.random() < 0.9:
        text, place = mutated(json.loads(path.read_text(encoding="utf-8")), chance)
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        same = name == MANIFEST and not any(place[: len(free)] == free for free in FREE)
    else:
        content = bytearray(path.read_bytes())
        at = chance.randrange(len(content))
        match chance.randrange(3):
            case 0:
                del content[at:]
            case 1:
                content[at : at + 8] = chance.randbytes(8)
            case _:
                content[at:at] = chance.randbytes(16)
        path.write_bytes(content)
        same = False
    if bundled and chance.random() < 0.9:
        with_hash(folder, name)
    return same


def answers(folder: Path) -> list[Any]:
    """What a bundle says, draws and sees."""
    model = load(folder, device="cpu", threads=1)
    drawn = model.paint("a b", IMAGE).result()
    return [model.chat("a b", TEXT).text, drawn.codes.tolist(), model.ask(drawn.picture, "a?", TEXT).text]


def run(kind: str, source: Path, work: Path, first: int, count: int) -> dict[str, Any]:
    if kind == "bundle":
        names = [MANIFEST, MANIFEST, MANIFEST, "tokenizer.json", "weights.bin", "backbone.onnx", "image_encoder.onnx"]
        right = answers(source)
    else:
        names = ["config.json", "config.json", "vq/config.json", "tokenizer.json", "model.safetensors"]
        right = []
    counted, faults = Counter(refused=0, works=0), []
    for number in range(first, first + count):
        folder, made = work / f"m{number}", work / f"b{number}"
        shutil.copytree(source, folder)
        same = mutate(folder, names, random.Random(number))
        faulthandler.dump_traceback_later(LONGEST, exit=True)
        try:
            bundle = folder if kind == "bundle" else export_checkpoint(folder, made, precision="fp32")
            found = answers(bundle)
            counted["works"] += 1
            if same and found != right:
                faults.append(f"{number} contradicts itself and answers {found}")
        except Error as error:
            counted["refused"] += 1
            if "\n" in str(error):
                faults.append(f"{number} is refused in several lines: {error}")
        except BaseException:
            faults.append(f"{number}: {traceback.format_exc()[-1500:]}")
        faulthandler.cancel_dump_traceback_later()
        for done in (folder, made):
            shutil.rmtree(done, ignore_errors=True)
    return {**counted, "faults": faults, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))))
