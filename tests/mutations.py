"""Bundles and checkpoints in which something is other: mutation N of a folder is the same every time."""

import copy
import hashlib
import json
import random
from pathlib import Path
from typing import Any

from PIL import Image

from mmada_lite import ImageSettings, TextSettings, load
from mmada_lite.bundle import MANIFEST

BUNDLE_FILES = [MANIFEST, MANIFEST, MANIFEST, "tokenizer.json", "weights.bin", "backbone.onnx", "image_encoder.onnx"]
CHECKPOINT_FILES = ["config.json", "config.json", "vq/config.json", "tokenizer.json", "model.safetensors"]
PICTURE = Image.new("RGB", (16, 16), "red")
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
    return [model.chat("a b", TEXT).text, drawn.codes.reshape(-1).tolist(), model.ask(PICTURE, "a?", TEXT).text]
