"""Mutated bundles and checkpoints: each is refused in one line, or works as the one that it was made from. A tenth of them by
default, all with --fuzz; mutation N is the same every time."""

import faulthandler
import json
import os
import random
import shutil
import subprocess
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mutations import BUNDLE_FILES, CHECKPOINT_FILES, answers, mutate
from peak_memory import peak_memory

from mmada_lite import Error
from mmada_lite.export.bundle import export_checkpoint

COUNT, LONGEST, MOST_MEMORY = 1_000, 20, 1_500_000_000  # mutations; seconds each; bytes
ROOT = Path(__file__).parents[2]


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
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
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


def run(kind: str, source: Path, work: Path, first: int, count: int) -> dict[str, Any]:
    names, right = (BUNDLE_FILES, answers(source)) if kind == "bundle" else (CHECKPOINT_FILES, [])
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
    return {**counted, "faults": faults, "peak": peak_memory()}


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))))
