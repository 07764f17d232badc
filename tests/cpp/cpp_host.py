"""The C++ side as a test sees it: built once and kept, spoken to in lines of JSON, in the place of Python's loops in a replay.

It knows compilers and the protocol of tests/cpp/host.cpp; what is right is said by test_cpp.
"""

import copy
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from line_host import Host
from PIL import Image

from mmada_lite import Error
from mmada_lite.bench.parity.replay import RecordedSampler, WatchedDenoiser
from mmada_lite.cli.compile_cpp import SOURCES, find_library
from mmada_lite.decoding.canvas import Canvas
from mmada_lite.decoding.denoiser import Denoiser
from mmada_lite.decoding.forward import Step
from mmada_lite.decoding.image import decode_image
from mmada_lite.decoding.settings import ImageSettings, TextSettings, plain
from mmada_lite.decoding.text import decode_text

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache"
HEADERS = CACHE / "onnxruntime-headers"
STATES = ("states", "unconditional", "predicted_codes")  # what a replay says after each step


def needed() -> tuple[Path, Path]:
    """The folder of onnxruntime's headers, and its library. Skips, with the reason, where one is not to be had."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ here; apt-get install g++")
    done = subprocess.run(["bash", SOURCES / "fetch-headers", HEADERS], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"onnxruntime's headers cannot be fetched: {done.stderr.strip()[-300:]}")
    return HEADERS, find_library()


def library_folder(library: Path) -> Path:
    """A folder in which the library has the name that programs look for."""
    folder = CACHE / "cpp" / "lib"
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "libonnxruntime.so.1"
    if not link.exists() or link.resolve() != library.resolve():
        fresh = folder / f".link-{os.getpid()}"
        fresh.symlink_to(library)
        fresh.replace(link)
    return folder


def build(program: Path, *more: str) -> Path:
    """Compile one program of the tests with the sources, two at a time, and link it with the wheel's library.

    Every object is kept under a name that says what it was made from, so that nothing is compiled twice.
    """
    headers, library = needed()
    folder = library_folder(library)
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-isystem", str(headers)]
    flags += ["-I", str(SOURCES), "-I", str(SOURCES / "src"), *more]
    declared = [*sorted(SOURCES.rglob("*.hpp")), *sorted(program.parent.glob("*.hpp"))]
    seen = b"".join(path.read_bytes() for path in declared) + " ".join(flags).encode()
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda source: _compiled(source, seen, flags), [program, *sorted(SOURCES.rglob("*.cpp"))]))
    made = _kept(program.stem, " ".join([*more, *map(str, objects), library.name]).encode())
    _make(made, *more, *map(str, objects), str(folder / "libonnxruntime.so.1"), f"-Wl,-rpath,{folder}", "-pthread")
    return made


def _compiled(source: Path, seen: bytes, flags: Sequence[str]) -> Path:
    made = _kept(source.stem, source.read_bytes() + seen).with_suffix(".o")
    _make(made, *flags, "-c", str(source))
    return made


def _kept(name: str, content: bytes) -> Path:
    return CACHE / "cpp" / f"{name}-{hashlib.sha256(content).hexdigest()[:16]}"


def _make(made: Path, *arguments: str) -> None:
    if made.exists():
        return
    partial = made.with_name(f"{made.name}.{os.getpid()}")
    done = subprocess.run(["nice", "-n", "19", "g++", *arguments, "-o", str(partial)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    partial.replace(made)


def settings_json(settings: TextSettings | ImageSettings | None) -> dict[str, Any] | None:
    return None if settings is None else plain(settings)


def picture_json(image: Image.Image) -> dict[str, Any]:
    return {"width": image.width, "height": image.height, "bytes": np.asarray(image).reshape(-1).tolist()}


class Replayed:
    """decode_text and decode_image of the C++ host, in the place of those that mmada_lite.decoding.generate calls.

    They decode under the default law, which is the only one of the host, whatever a recording asks for, and the rows of a
    batch one by one, since the host has no batches. With a denoiser `beside`, Python's loops do the same beside them, and
    every state in between must be equal.
    """

    def __init__(self, host: Host, folder: Path, beside: Denoiser | None = None) -> None:
        self._host, self._folder, self._beside = host, folder, beside
        self.jobs = 0

    def decode_text(
        self,
        denoiser: Any,
        canvas: Canvas,
        settings: TextSettings,
        sampler: Any,
        stop: Iterable[int],
        closing: Sequence[int],
        constraints: Any,
    ) -> Iterator[Step]:
        assert not closing, "recordings have no thoughts"
        assert not constraints, "recordings have no constraints"
        yield from self._decode("text", denoiser, canvas, settings.replace(mode="default"), sampler, sorted(stop))

    def decode_image(self, denoiser: Any, canvas: Canvas, settings: ImageSettings, sampler: Any) -> Iterator[Step]:
        yield from self._decode("image", denoiser, canvas, settings.replace(mode="default"), sampler, ())

    def _decode(
        self, what: str, denoiser: Any, canvas: Canvas, settings: Any, sampler: RecordedSampler, stop: Sequence[int]
    ) -> Iterator[Step]:
        self.jobs += 1
        watched = denoiser if isinstance(denoiser, WatchedDenoiser) else None
        rows = []
        for row, single in enumerate(_rows_of(canvas)):
            choices = replace(sampler, row=sampler.row + row)
            rows.append(self._replay(what, single, settings, choices, stop, len(watched._keep) if watched else 0))
            if self._beside is not None:
                if what == "text":
                    loop = decode_text(self._beside, single, settings, choices, stop)
                else:
                    loop = decode_image(self._beside, single, settings, choices)
                assert rows[-1]["states"] == [single.tokens[0].tolist() for _ in loop]
        if watched:
            watched.spans = [tuple(span) for span in rows[0]["spans"]]
            for call, logits in enumerate(rows[0]["logits"]):
                start, end = watched.spans[call]
                watched.all_logits[call] = np.array(logits, dtype=np.float32).reshape(1, end - start, -1)
        for number in range(max(len(row["states"]) for row in rows)):
            now = [{key: row[key][: number + 1][-1] for key in STATES} for row in rows]  # a row that is done stands
            canvas.tokens[:] = [state["states"] for state in now]
            if canvas.unconditional is not None:
                canvas.unconditional[:] = [state["unconditional"] for state in now]
            codes = np.array([state["predicted_codes"] for state in now])
            nothing = np.zeros(0)
            yield Step(number, None, nothing, nothing, nothing, nothing, 0, number + 1, 0.0, codes)

    def _replay(
        self, what: str, canvas: Canvas, settings: Any, sampler: RecordedSampler, stop: Sequence[int], logits: int
    ) -> dict[str, Any]:
        answer = self._host.call(
            "replay",
            what=what,
            folder=str(self._folder),
            canvas=_canvas_json(canvas),
            settings=settings_json(settings),
            sampler=_sampler_json(sampler),
            ends=list(stop),
            logits=logits,
            threads=1,
        )
        assert "states" in answer, answer
        return answer


def _rows_of(canvas: Canvas) -> list[Canvas]:
    """Every row as a canvas of its own."""
    rows = []
    for row in range(canvas.batch):
        single = copy.deepcopy(canvas)
        single.tokens, single.editable = canvas.tokens[row : row + 1].copy(), canvas.editable[row : row + 1].copy()
        if canvas.unconditional is not None:
            single.unconditional = canvas.unconditional[row : row + 1].copy()
        rows.append(single)
    return rows


def _canvas_json(canvas: Canvas) -> dict[str, Any]:
    return {
        "tokens": canvas.tokens.reshape(-1).tolist(),
        "editable": canvas.editable.astype(int).reshape(-1).tolist(),
        "start": canvas.start,
        "stop": canvas.stop,
        "mask": int(canvas.mask),
        "code_offset": int(canvas.code_offset),
        "unconditional": [] if canvas.unconditional is None else canvas.unconditional.reshape(-1).tolist(),
        "shared": [] if canvas.shared is None else canvas.shared.tolist(),
        "shift": canvas.shift,
    }


def _sampler_json(sampler: RecordedSampler) -> dict[str, Any]:
    def array(values: np.ndarray | None) -> dict[str, Any] | None:
        return None if values is None else {"shape": list(values.shape), "data": values.reshape(-1).tolist()}

    return {
        "row": sampler.row,
        "dropped": sampler.dropped,
        "start": sampler.start,
        "temperature": sampler.temperature,
        "gumbel": array(sampler.gumbel),
        "codes": array(sampler.codes),
        "text_order": array(sampler.text_order),
        "image_order": array(sampler.image_order),
    }


def run_python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command of mmada-lite in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "mmada_lite", *map(str, arguments)], env=environment, capture_output=True, text=True
    )


def both_name(refusal: dict[str, Any], fault: pytest.ExceptionInfo[Error], *names: str) -> None:
    """C++ refuses what Python refuses; the line of either names the same things."""
    for line in (refusal["error"], str(fault.value)):
        assert "\n" not in line
        for name in names:
            assert name in line
