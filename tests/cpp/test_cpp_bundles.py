"""Mutated bundles in C++ and in Python: both refuse the same, and what works says and draws the same."""

import random
import shutil
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cpp_host import Host, build, picture_json
from mutations import BUNDLE_FILES, IMAGE, PICTURE, TEXT, answers, mutate

from mmada_lite import Error
from mmada_lite.decoding.settings import plain

SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
COUNT, LONGEST = 800, 20  # mutations; seconds each


def answers_in_cpp(host: Host, folder: Path) -> list[Any]:
    """The same of the C++ host. Raises Error with its line."""
    message, text = [{"role": "user", "content": "a b"}], plain(TEXT)
    jobs: list[tuple[str, str, dict[str, Any]]] = [
        ("load", "resolution", {"folder": str(folder), "threads": 1}),
        ("paint", "codes", {"prompt": "a b", "settings": plain(IMAGE)}),
        ("chat", "text", {"messages": message, "settings": text}),
        ("ask", "text", {"picture": picture_json(PICTURE), "question": "a?", "settings": text}),
    ]
    found = []
    for op, key, job in jobs:
        result = host.call(op, **job)
        if "error" in result:
            raise Error(result["error"])
        found.append(result[key])
    return [found[2], found[1], found[3]]


@pytest.mark.fuzz
@pytest.mark.parametrize("checked", [(), SANITIZED], ids=["plain", "checked"])
def test_cpp_refuses_what_python_refuses(
    checked: tuple[str, ...], tiny_bundle: Path, tmp_path: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The C++ host, also built so that it stops at the first byte beyond an array and at the first undefined operation. It may
    refuse alone what it does not know: kinds of tokenizers, and settings of the Python runtime."""
    if checked and not pytestconfig.getoption("fuzz"):
        pytest.skip("the checked build takes minutes; --fuzz runs it")
    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0")  # onnxruntime keeps what it has to the end
    host = Host(build(Path(__file__).parent / "host.cpp", *checked))
    count, apart = COUNT if pytestconfig.getoption("fuzz") else COUNT // 10, []
    for number in range(count):
        folder = Path(shutil.copytree(tiny_bundle, tmp_path / f"m{number}"))
        mutate(folder, BUNDLE_FILES, random.Random(number))
        results: list[Any] = []
        watch = threading.Timer(LONGEST, host.kill)
        watch.start()
        for answer in (answers, partial(answers_in_cpp, host)):
            try:
                results.append(answer(folder))
            except Error as error:
                results.append(str(error))
        watch.cancel()
        ours, theirs = results
        alone = isinstance(theirs, str) and ("give ids" in theirs or "does not decode with" in theirs)
        both_work = isinstance(ours, list) and isinstance(theirs, list)
        if (ours != theirs) if both_work else not alone and isinstance(ours, str) != isinstance(theirs, str):
            apart.append((number, ours, theirs))
        shutil.rmtree(folder)
    assert apart == []
    assert host.close() == 0
