"""Everything that hangs on the packaged model's weights, made anew: `python tests/new_weights.py CHECKPOINT`.

The checkpoint becomes train/shipped/emoji and is exported into the package; then come the recorded ids, the sheets of
drawings, the notebook and what `made` writes. Last it prints the records of bench/results that are of the weights, each with
its minutes and command (--records NAME runs it and files its rows), and the sentences that a person must read again. With the
checkpoint that is in the package it changes nothing but rounding of another processor.
"""

import argparse
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from import_graph import ROOT

from mmada_lite.arguments import exit_code
from mmada_lite.bench import record
from mmada_lite.errors import Error

SHIPPED = ROOT / "train" / "shipped" / "emoji"
BUNDLE = ROOT / "mmada_lite" / "models" / "emoji"
RESULTS = ROOT / "bench" / "results"
PARTS = ("config.json", "mmada_lite.json", "model.safetensors", "tokenizer.json", "vq/config.json", "vq/model.safetensors")
BESIDE = {"NOTICE": ROOT / "NOTICE", "model_card.md": ROOT / "docs" / "model_card.md"}  # what the bundle carries
THEN = (
    ("recorded ids", ("tests/runtime/shipped_ids.py",)),
    ("sheets of drawings", ("-m", "mmada_lite.train", "gallery", "-o", "docs")),
    ("the notebook", ("tests/notebook.py",)),
    ("tables of the pages, and the card", ("tests/made.py",)),
)


class Record(NamedTuple):
    """A run of a benchmark that looks at the weights: the record and which of its runs, about how many minutes of a core, the
    commands, of which the last is the benchmark."""

    file: str
    run: int
    minutes: int
    commands: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.file}-{self.run}"


RECORDS = (  # the most telling first; those that time nothing may run two at once, a core each
    *(
        Record("quality", run, minutes, (f"bench quality train/shipped/emoji --against before --split test {asked}",))
        for run, minutes, asked in (
            (0, 25, "--only tokenizer what yes_no drawing editing growing --count 960"),
            (1, 30, "--only scenes thinking arithmetic two_things --count 480"),
            (2, 15, "--only turns capitals --count 240"),
            (3, 15, "--only filling choosing --count 400"),
        )
    ),
    Record(
        *("against", 0, 45),
        (
            "export train/shipped/emoji -o fp32 --precision fp32 --force",
            "quantize train/shipped/emoji -o int8 --format int8 --method rotate+gptq --prompt-count 48 --force",
            "quantize train/shipped/emoji -o int4 --format int4-b32-asym --method rotate+gptaq --prompt-count 128 --force",
            "bench quality int8 int4 --against fp32 --count 320 --only what scenes drawing thinking arithmetic editing",
        ),
    ),
    Record(
        *("frontier", 0, 30),
        (
            "bench quality mmada_lite/models/emoji --frontier --count 240 "
            "--policies early_stop=1.0 steps=0 unconditional_every guidance_to --plot docs/lab/frontier.png",
        ),
    ),
    Record(
        *("presets", 0, 25),
        ("bench quality mmada_lite/models/emoji --presets --checkpoint train/shipped/emoji --count 480",),
    ),
    Record("serve", 0, 3, ("bench serve --tasks ready first load --batch 8",)),
    Record("serve", 1, 2, ("bench serve --tasks batching",)),
    Record(
        *("quantization", 0, 25),
        (
            "bench quantization train/shipped/emoji --formats int8 int4-b32 int4-b32-asym "
            "--methods rtn gptq rotate+gptq rotate+gptaq --prompts 30 --calibrate-on 16 --peers",
        ),
    ),
)
SENTENCES = (  # page and a few words of what was written by hand of these weights
    ("README.md", "times as fast as the"),
    ("README.md", "faces are sketches"),
    ("README.md", "minds the question before"),
    ("docs/quickstart.md", "and minus 3?"),
    ("docs/model_card.md", "million parameters"),
    ("docs/model_card.md", "capitals are read as small"),
    ("docs/model_card.md", "`is this a dog?`"),
    ("docs/model_card.md", "a mean of several runs"),
    ("docs/model_card.md", "`train/shipped/judge`"),
    ("docs/model_card.md", "What it cannot do"),
    ("docs/speed.md", "differ by less than noise"),
    ("docs/speed.md", "This is on two cores"),
    ("docs/quantization.md", "Over all"),
    ("docs/quantization.md", "At eight bits"),
    ("docs/browser.md", "The small model is"),
    ("docs/serve.md", "mixed requests"),
    ("docs/serve.md", "one at a time, and texts"),
)
ALSO = (
    "CHANGELOG.md and docs/lab/training.md: what is new, beside the old sheet (git show HEAD:docs/drawings.png)",
    "mmada_lite/decoding/settings.py: PRESETS, chosen anew from the frontier, before the records",
    "train/shipped/judge/judge.json: figures after the image tokenizer (--judged), if its decoder is new",
    "docs/curves.png: mmada-lite train curves --folder FOLDER of the training",
)


def swap(checkpoint: Path) -> None:
    """Make `checkpoint` train/shipped/emoji, and its export the bundle in the package, once that has gone well. A bundle that
    differs in the hour of its making alone stays as it is. Raises Error where a part of the checkpoint is missing
    or damaged."""
    from mmada_lite.export.bundle import export_checkpoint

    if missing := [name for name in PARTS if not (checkpoint / name).is_file()]:
        raise Error(f"{checkpoint}: lacks {', '.join(missing)}; give what `mmada-lite train export` wrote")
    with tempfile.TemporaryDirectory() as scratch:
        staged, bundle = Path(scratch) / SHIPPED.name, Path(scratch) / "bundle"
        for name in PARTS:
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint / name, staged / name)
        for name, file in BESIDE.items():
            shutil.copyfile(file, staged / name)
        try:
            export_checkpoint(staged, bundle, precision="fp16")
        except Error as fault:
            raise Error(str(fault).replace(str(staged), str(checkpoint))) from fault
        for name in BESIDE:
            (staged / name).unlink()
        for made, kept in ((staged, SHIPPED), (bundle, BUNDLE)):
            if made is staged or _content(made) != _content(kept):
                shutil.rmtree(kept)
                shutil.copytree(made, kept)


def _content(bundle: Path) -> Mapping[str, Any]:
    content: dict[str, Any] = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    for key in ("created", "versions"):
        del content["provenance"][key]
    return content


def judged(icons: Path) -> None:
    """Measure the packaged judge again after the packaged image tokenizer. icons: a working folder of the training."""
    from mmada_lite.train.data import emoji
    from mmada_lite.train.judge import Judge, measure
    from mmada_lite.train.verbs import ROLES
    from mmada_lite.train.vq import MagViT
    from mmada_lite.train.workspace import Workspace

    file = SHIPPED.parent / "judge" / "judge.json"
    pictures = {role: emoji.load_concepts(Workspace(icons).concepts, role).pixels for role in ROLES}
    found = measure(Judge.load(file.parent), MagViT.load(SHIPPED / "vq"), pictures)
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content | found, indent=1) + "\n", encoding="utf-8")


def measured(each: Record, icons: Path, work: Path) -> None:
    """Run the commands of a record in `work`, in which the checkout and the icons seem to lie, and file what they found. The
    checkpoint of the last commit is `before` there."""
    (work / "runs").mkdir(parents=True, exist_ok=True)
    place = SHIPPED.relative_to(ROOT).as_posix()
    archive = subprocess.run(["git", "archive", f"HEAD:{place}"], cwd=ROOT, check=True, capture_output=True).stdout
    shutil.rmtree(work / "before", ignore_errors=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(work / "before", filter="data")
    links = {name: ROOT / name for name in ("train", "mmada_lite", "docs")} | {"runs/emoji-work": icons.resolve()}
    for name, target in links.items():
        if not (work / name).is_symlink():
            (work / name).symlink_to(target)
    new, kept = work / f"{each.name}.json", RESULTS / f"{each.file}.json"
    for command in each.commands:
        output = ("-o", new.name) if command is each.commands[-1] else ()
        done = subprocess.run(
            [sys.executable, "-m", "mmada_lite", *shlex.split(command), *output], cwd=work, env=_environment()
        )
        if done.returncode:
            raise Error(
                f"{each.name}: `mmada-lite {command}` ended with {done.returncode}; mend what it says above and go on with it"
            )
    record.save(filed(record.load(kept), each.run, record.load(new)), kept)


def filed(kept: Mapping[str, Any], number: int, new: Mapping[str, Any]) -> dict[str, Any]:
    """A record in which run `number` is `new`, and every other run as it was."""
    new = {**new, "command": re.sub(r" -o \S+$", "", new["command"])}
    if "runs" not in kept:
        return new
    own = ("command", "command_then", "versions")  # of the first run, and said of all
    common = {key: value for key, value in kept.items() if key not in (*own, "rows", "runs")}
    runs = [dict(run) for run in kept["runs"]]
    runs[number] = {key: value for key, value in new.items() if key != "rows" and common.get(key) != value}
    first = {key: value for key, value in (kept if number else runs[0]).items() if key in own}
    rows = {n: [row for row in kept["rows"] if row["run"] == n] for n in range(len(runs))}
    rows[number] = [{"run": number, **row} for row in new["rows"]]
    found = {**common, **first, "runs": runs, "rows": [row for n in sorted(rows) for row in rows[n]]}
    return {key: found[key] for key in kept if key in found}


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "ORT_DISABLE_TELEMETRY": "1"}


def sentences() -> Iterator[str]:
    """Place and text of what was written by hand of the weights; what stands there no more was written anew."""
    for page, words in SENTENCES:
        lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
        yield from (f"{page}:{number}: {line}" for number, line in enumerate(lines, 1) if words in line)


def left() -> Iterator[str]:
    """What is not done: records to be measured, and what a person must read again."""
    yield "Records, with `python tests/new_weights.py --icons FOLDER --records NAME ...`:"
    yield from (f"  {each.name} ({each.minutes} min): mmada-lite {each.commands[-1]}" for each in RECORDS)
    yield "Sentences to be read again:"
    yield from (f"  {line}" for line in (*sentences(), *ALSO))


def main() -> int:
    """What there is to do; 2 after a fault of the user."""
    return exit_code(_run)


def _run() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", help="what `mmada-lite train export` wrote")
    parser.add_argument("--records", nargs="+", default=[], choices=[each.name for each in RECORDS], metavar="NAME")
    parser.add_argument("--judged", action="store_true", help="measure the judge after the image tokenizer again")
    parser.add_argument("--icons", type=Path, default=ROOT / "runs" / "emoji-work", help="working folder of the training")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "records", help="where records are made (%(default)s)")
    options = parser.parse_args()
    if options.checkpoint is not None:
        swap(options.checkpoint)
    if options.judged:
        judged(options.icons)
    for each in (each for each in RECORDS if each.name in options.records):
        print(f"{each.name}: about {each.minutes} minutes", flush=True)
        measured(each, options.icons, options.work)
    for words, command in THEN if options.checkpoint is not None else THEN[-1:]:
        print(words, flush=True)
        subprocess.run([sys.executable, *command], cwd=ROOT, env=_environment(), check=True)
    print("\n".join(left()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
