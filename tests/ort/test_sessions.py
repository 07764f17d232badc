"""What sessions rest on: threads sleep when a run ends, the embedder has one of them, and its table is mapped, not loaded."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmada_lite.bundle import Bundle
from mmada_lite.errors import Error
from mmada_lite.export import transformer
from mmada_lite.export.graph import Graph, WeightFile
from mmada_lite.export.precision import specs_for
from mmada_lite.ort import session
from mmada_lite.ort.devices import choose_device
from mmada_lite.ort.loader import open_denoiser
from mmada_lite.ort.session import open_session


def test_threads_stay_awake_for_the_next_operation_and_no_longer(tiny_bundle: Path) -> None:
    options = open_session(tiny_bundle / "backbone.onnx", choose_device("cpu"), 2).get_session_options()
    assert options.get_session_config_entry("session.intra_op.spin_duration_us") == "20"
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_the_embedder_has_one_thread_and_the_others_what_is_asked(tiny_bundle: Path) -> None:
    opened = {}

    def keep(graph: str, session: Any) -> Any:
        opened[graph] = session.get_session_options().intra_op_num_threads
        return session

    open_denoiser(Bundle.open(tiny_bundle), choose_device("cpu"), 3, keep)
    assert opened == {"embedder": 1, "backbone": 3, "text_head": 3, "image_head": 3}


def test_an_int8_graph_of_an_earlier_export_is_refused_where_it_would_end_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On x86 without VNNI, before onnxruntime 1.30. The graph is a stand-in: a word of it is changed, and nothing opens it."""
    cpu, graph = choose_device("cpu"), tmp_path / "backbone.onnx"
    monkeypatch.setattr(session, "exact_int8", lambda: False)
    for word, version, refused in (
        ("weight", "1.29.1", True),
        ("weight", "1.30.0", False),
        ("weight.middle", "1.24.4", False),
        (f"weight {session.NARROW_CODES}", "1.24.4", False),
    ):
        graph.write_text(f"MatMulIntegerToFloat {word}")
        monkeypatch.setattr(session.onnxruntime_package(), "__version__", version)
        with pytest.raises(Error, match="export the model again, or pip" if refused else "cannot load") as said:
            open_session(graph, cpu, 1)
        assert "\n" not in str(said.value)


class _Table:
    """A large table whose rows all differ."""

    def shape(self, name: str) -> tuple[int, ...]:
        return (65536, 512)

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        first, stop = (rows.start or 0, rows.stop) if rows else (0, 65536)
        return np.arange(first, stop, dtype=np.float32)[:, None] / 8 + np.arange(512, dtype=np.float32)


LOOK_UP = """
import re, sys
import numpy as np
from pathlib import Path
from mmada_lite.ort import session
from mmada_lite.ort.devices import choose_device
from mmada_lite.ort.session import open_session

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

device = choose_device("cpu")
before = anonymous()
session = open_session(Path(sys.argv[1]), device, 1)
(rows,) = session.run(None, {"tokens": np.array([[0, 7, 65535]])})
print(anonymous() - before, rows.shape)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is counted by Linux's /proc")
def test_the_table_of_the_embedder_is_mapped_not_loaded(tmp_path: Path) -> None:
    with WeightFile(tmp_path / "weights.bin", lambda tensor, wrote: None) as weights:
        graph = Graph("embedder", weights)
        transformer.build_embedder(graph, _Table(), specs_for("fp16", "cpu", {})["embedder"], 512)
        graph.save(tmp_path / "embedder.onnx")
    size = (tmp_path / "weights.bin").stat().st_size
    assert size >= 65536 * 512 * 2
    command = [sys.executable, "-c", LOOK_UP, str(tmp_path / "embedder.onnx")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    grown, shape = re.fullmatch(r"(-?\d+) (.*)\n", output).groups()  # type: ignore[union-attr]
    assert shape == "(1, 3, 512)"
    assert int(grown) < size / 3
