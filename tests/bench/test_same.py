"""Two bundles' answers, compared: what is alike is counted, what is not is shown."""

import json
from pathlib import Path

import numpy as np
import pytest

from mmada_lite.bench.quality import same


def test_a_bundle_answers_as_itself_and_not_as_another(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(set(same.questions(400))) == 400
    assert same.main([str(tiny_bundle), str(tiny_bundle), "--count", "3"]) == 0
    assert json.loads(capsys.readouterr().out) == {"asked": 3, "equal": 3, "other": []}
    written = iter((["4", "5", "6"], ["4", "7", "6"]))
    monkeypatch.setattr(same, "answers", lambda *_: next(written))
    assert same.main([str(tiny_bundle), str(tiny_bundle), "--count", "3"]) == 0
    assert json.loads(capsys.readouterr().out) == {"asked": 3, "equal": 2, "other": [["what is 0 + 1?", "5", "7"]]}
    assert same.main([str(tiny_bundle), str(tiny_bundle), "--count", "0"]) == 2
    assert same.main([str(tiny_bundle), str(tiny_bundle), "--count", "401"]) == 2
    assert "400 at most" in capsys.readouterr().err


def test_drawings_are_compared_code_by_code(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(set(same.captions(640))) == 640
    drawn = iter((np.array([[1, 2], [3, 4]]), np.array([[1, 2], [3, 5]])))
    monkeypatch.setattr(same, "drawings", lambda *_: next(drawn))
    assert same.main([str(tiny_bundle), str(tiny_bundle), "--count", "1", "--drawings", "2"]) == 0
    assert json.loads(capsys.readouterr().out) | {"other": []} == {
        "asked": 1, "equal": 1, "other": [], "drawn": 2, "equal drawings": 1, "equal codes": 0.75
    }  # fmt: skip
    assert same.main([str(tiny_bundle), str(tiny_bundle), "--drawings", "641"]) == 2
    assert "640 at most" in capsys.readouterr().err
    assert same.main([str(tiny_bundle), str(tiny_bundle), "--devices", "cpu", "gpu"]) == 2
    assert "gpu" in capsys.readouterr().err
