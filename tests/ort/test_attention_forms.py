"""Which operators attend fastest on a card, with planted cards and clocks: measured once, kept, and said."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from mmada_lite.bundle import Bundle
from mmada_lite.cli.main import main
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.ort import attention_forms, devices, loader, nvidia
from mmada_lite.ort.attention_forms import ATTENTION, CASES, FORMS, JOINED, MHA, PLAIN
from mmada_lite.ort.nvidia import Card
from mmada_lite.ort.session import Device, open_session

EMOJI = Path(__file__).parents[2] / "train" / "shipped" / "emoji"
CARD = Card("a planted card", "8.9", 8 << 30)
SECONDS = {JOINED: 0.8, ATTENTION: 0.4, MHA: 0.2, PLAIN: 1.6}  # of a run over a block; a row takes ten times as long


class World:
    """A clock that only runs forward where a form runs, and forms that take so long."""

    def __init__(self, wrong: str = "", broken: str = "") -> None:
        self.now, self.runs, self.wrong, self.broken = 0.0, 0, wrong, broken

    def clock(self) -> float:
        return self.now

    def open(self, form: str, feeds: Mapping[str, NDArray]) -> attention_forms.Opened:
        if form == self.broken:
            raise RuntimeError(f"{form} has no kernel here\nand a second line")
        row = feeds["past_key"].shape[2] == 0

        def run() -> None:
            self.runs += 1
            self.now += SECONDS[form] * (10 if row else 1)

        return run, lambda: np.full((1, 2), 1.0 + (form == self.wrong), np.float16)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nvidia, "cards", lambda: (CARD,))
    monkeypatch.setattr(nvidia, "version", lambda: "13.0")
    monkeypatch.setattr("mmada_lite.files.cache_folder", lambda: tmp_path / "cache")


def test_the_shortest_run_of_each_form_counts_by_layers() -> None:
    world = World()
    times, left_out = attention_forms.measure(world.open, world.clock)
    assert left_out == {}
    for form in FORMS:
        assert times[form]["block"] == pytest.approx(1e3 * SECONDS[form] / attention_forms.LAYERS)
        assert times[form]["row"] == pytest.approx(1e4 * SECONDS[form] / attention_forms.LAYERS)
    assert attention_forms.order(times) == [MHA, ATTENTION, JOINED, PLAIN]
    assert world.runs == len(FORMS) * len(CASES) * (1 + attention_forms.WARM + attention_forms.RUNS)


def test_what_does_not_run_or_is_wrong_is_left_out() -> None:
    world = World(wrong=MHA, broken=ATTENTION)
    times, left_out = attention_forms.measure(world.open, world.clock)
    assert attention_forms.order(times) == [JOINED, PLAIN]
    assert left_out == {ATTENTION: "attention has no kernel here", MHA: "its numbers are off by 1"}


def test_it_is_measured_once_and_kept_by_card(card: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert attention_forms.kept() is None
    times, _ = attention_forms.measure((world := World()).open, world.clock)
    assert attention_forms.keep(times) is None
    assert attention_forms.kept() == times
    (file,) = (tmp_path / "cache").iterdir()
    file.write_text("{}")
    assert attention_forms.kept() is None
    attention_forms.keep(times)
    monkeypatch.setattr(nvidia, "version", lambda: "13.1")
    assert attention_forms.kept() is None  # another driver
    monkeypatch.setattr(nvidia, "cards", lambda: ())
    assert attention_forms.kept() is None
    (tmp_path / "file").touch()
    monkeypatch.setattr(nvidia, "cards", lambda: (CARD,))
    monkeypatch.setattr("mmada_lite.files.cache_folder", lambda: tmp_path / "file" / "below")
    assert "cannot be written" in str(attention_forms.keep(times))


@pytest.mark.usefixtures("card")
def test_an_export_takes_the_fastest_and_measures_only_where_a_card_works(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(EMOJI), "--target", "cuda", "--force", "-o", str(tmp_path / "bundle")]
    measured: list[int] = []

    def measure() -> Any:
        measured.append(1)
        world = World(wrong=MHA)
        return REAL(world.open, world.clock)

    monkeypatch.setattr(attention_forms, "measure", measure)
    monkeypatch.setattr(devices, "fault", lambda device: "no card")
    assert form_after(words, tmp_path) == JOINED
    monkeypatch.setattr(devices, "fault", lambda device: None)
    assert form_after(words, tmp_path) == ATTENTION
    assert "attention by mha is left out: its numbers are off by 1" in capsys.readouterr().err
    assert form_after(words, tmp_path) == ATTENTION
    assert measured == [1]
    assert form_after([*words, "--attention", PLAIN], tmp_path) == PLAIN
    assert main(["export", str(EMOJI), "--attention", MHA, "-o", str(tmp_path / "x")]) == 2
    assert "--attention is about cards by CUDA; add --target cuda" in capsys.readouterr().err


REAL: Callable[..., Any] = attention_forms.measure


def form_after(words: list[str], folder: Path) -> str:
    assert main(words) == 0
    return attention_forms.form_of((folder / "bundle" / "backbone.onnx").read_bytes())


@pytest.mark.usefixtures("card")
def test_a_bundle_that_attends_slowly_here_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundle = Bundle.open(export_checkpoint(EMOJI, tmp_path / "bundle", target="cuda"))
    loader.warn_where_slow(bundle, Device("cuda", "a test"))
    assert not caplog.messages
    times, _ = attention_forms.measure((world := World()).open, world.clock)
    attention_forms.keep(times)
    loader.warn_where_slow(bundle, Device("cuda", "a test"))
    said = "bundle attends by joined, which takes 4.0 times as long as mha on this card; export it with --attention mha"
    assert caplog.messages == [said]
    assert attention_forms.slowness(b"q_num_heads", {MHA: times[MHA]}) is not None


def test_the_graphs_that_are_measured_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU provider, over fewer keys."""
    monkeypatch.setattr(attention_forms, "LAYERS", 2)
    for past in (0, 30):
        feeds = {
            name: array[:, :9] if array.ndim == 3 else array[:, :, :past]
            for name, array in attention_forms._inputs("block").items()
        }
        given = []
        for form in FORMS:
            graph = attention_forms.attention_graph(form)
            onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)
            given.append(open_session(graph, Device("cpu", "a test"), 1).run(None, feeds)[0].astype(np.float32))
        for other in given[1:]:
            np.testing.assert_allclose(other, given[0], atol=2e-3)


def test_a_form_is_known_by_its_operators(tmp_path: Path) -> None:
    for form in FORMS:
        written = export_checkpoint(EMOJI, tmp_path / form, target="cuda", attention=form)
        assert attention_forms.form_of((written / "backbone.onnx").read_bytes()) == form
