"""The ceiling and the latency of a machine, whole, at a tiny shape; and the laws of turns, of the clock and of scaling."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from conftest import MockDenoiser

from mmada_lite.bench import record
from mmada_lite.bench import timed as timing
from mmada_lite.bench.speed import ceiling, latency, latency_runs, operators
from mmada_lite.bench.speed.latency_cases import Bench
from mmada_lite.bench.timed import PARTS, Clock, TimedDenoiser, TimedSession, forget_peak, peak, timed
from mmada_lite.bundle import Bundle
from mmada_lite.cli import main
from mmada_lite.decoding.generate import TextTokens, complete
from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.export.synthetic import SIZES, cached_bundle
from mmada_lite.ort import devices
from mmada_lite.ort.devices import choose_device
from mmada_lite.vocabulary import Tokenizer, Vocabulary, closing_ids


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where random bundles are kept."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def bundle(work: Path) -> Bundle:
    return cached_bundle("tiny", "int8", work)


def test_the_whole_ceiling_at_a_tiny_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "ceiling.json"
    words = ["--shapes", "tiny", "--tokens", "1", "32", "--threads", "1", "--quick", "-o", str(target)]
    assert ceiling.main(words) == 0
    found = record.load(target)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found
    shapes = ceiling.matrices(SIZES["tiny"].architecture)
    products = {(r["form"], r["k"], r["n"], r["tokens"]) for r in found["rows"] if r["what"] == "product"}
    assert products == {(form, k, n, tokens) for form in ceiling.FORMS for k, n, _ in shapes for tokens in (1, 32)}
    assert {"attention", "elementwise", "node", "memory"} <= {row["what"] for row in found["rows"]}
    assert all(row["giga_per_s"]["median"] > 0 for row in found["rows"] if row["what"] != "node")
    rates = ceiling.rates(found["rows"], 1)
    assert set(rates.matrix) == set(ceiling.FORMS)
    sizes = {row["form"]: row["bytes_a_weight"] for row in found["rows"] if row["what"] == "product"}
    assert sizes["fp32"] == 4 > sizes["int8"] == sizes[ceiling.ALONE] > sizes["int4-b32"]
    assert all(set(by_tokens) == {1, 32} for by_tokens in (*rates.matrix.values(), rates.attention, rates.elementwise))
    assert min(rates.memory, rates.node) > 0
    assert found["quick"]


def test_a_layers_rate_lies_between_those_of_its_products() -> None:
    rows = [
        {"what": "product", "form": "fp32", "k": 2, "n": n, "count": count, "tokens": 8, "threads": 1}
        | {"giga_per_s": {"median": speed}}
        for n, count, speed in ((2, 4, 10.0), (6, 2, 30.0), (8, 0, 999.0))
    ]
    for what, form in (("attention", "fp32"), ("elementwise", "fp32"), ("memory", "numpy read")):
        rows.append({"what": what, "form": form, "tokens": 8, "threads": 1, "giga_per_s": {"median": 5.0}})
    rows.append({"what": "node", "form": "fp32", "threads": 1, "seconds": {"median": 1e-6}})
    work, took = 4 * 4 + 2 * 12, 4 * 4 / 10 + 2 * 12 / 30
    assert ceiling.rates(rows, 1).matrix["fp32"][8] == pytest.approx(1e9 * work / took)


def test_the_whole_latency_at_a_tiny_shape(
    bundle: Bundle, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "latency.json"
    words = ["--shape", "tiny", "--quick", "--threads", "1", "--kv-commit-every", "2", "--work"]
    assert latency.main([*words, str(work), "-o", str(target)]) == 0
    found = record.load(target)
    shown = capsys.readouterr().out
    assert json.loads(shown.splitlines()[-1]) == found
    decodes = [row for row in found["rows"] if "parts" in row]
    assert {(row["task"], row["cache"]) for row in decodes} == {
        *((task, cache) for task in ("text", "understanding") for cache in ("none", "prefix", "dual", "prompt")),
        *((task, f"{cache}/2") for task in ("text", "understanding") for cache in ("dual", "prompt")),
        ("drawing", None),
        ("inpainting", None),
    }
    for row in decodes:
        assert set(row["parts"]) == set(PARTS)
        assert sum(row["parts"].values()) == pytest.approx(row["seconds"]["median"], rel=1e-6)
        assert 0 < row["python_share"] < 1
        assert row["ceiling_share"] > 0
        assert 0 < row["first_step_seconds"]["median"] <= row["seconds"]["median"]
        assert row["tokens_per_second"] * row["seconds"]["median"] == pytest.approx(row["tokens"])
        assert row["predicted_seconds"] == pytest.approx(sum(row["predicted_parts"].values()))
        assert row["calls"] == row["model_calls"] * (2 if row["cache"] is None else 1)
        assert row["scaled_from"] == (None if row["cache"] is None else "1 of 2 blocks")
    assert {row["task"] for row in found["rows"]} >= {"forward"}
    assert next(row for row in found["rows"] if row["task"] == "forward")["matrix_share"] > 0
    assert all(size is None or size > 10**7 for size in (found["idle_bytes"], *(row["peak_bytes"] for row in decodes)))
    assert "random weights are never sure" in shown


def test_the_small_model_is_measured_with_thresholds(tmp_path: Path) -> None:
    target = tmp_path / "latency.json"
    words = ["--tasks", "text", "--caches", "dual", "--quick", "--threads", "1", "-o", str(target)]
    assert latency.main(words) == 0
    assert {row["task"] for row in record.load(target)["rows"]} >= {"image_encoder", "image_decoder"}
    steps, sure = (row for row in record.load(target)["rows"] if row["task"] == "text")
    assert (steps["threshold"], sure["threshold"]) == (None, 0.9)
    assert steps["predicted_seconds"] > 0
    assert sure["predicted_seconds"] is None
    assert sure["tokens_per_forward"] >= 1


def test_a_later_record_is_refused_before_a_bundle_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, made = tmp_path / "latency.json", tmp_path / "made"
    target.write_text(json.dumps(record.record("latency", [], []) | {"schema": 2}))
    assert latency.main(["--shape", "tiny", "--quick", "--work", str(made), "-o", str(target)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not made.exists()


def test_faults_are_one_line(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["latency", "--shape", "9b"], "no shape is called '9b'"),
        (["latency", "--threads", "0"], "--threads 0 cannot be measured"),
        (["latency", "--shape", "tiny", "--precision", "int5", "--work", str(work / "x")], "no precision is called 'int5'"),
        (["latency", "--precision", "int5"], "no precision is called 'int5'"),
        (["ceiling", "--shapes", "tiny", "9b"], "no shape is called '9b'"),
        (["ceiling", "--shapes", "tiny", "--forms", "fp32", "int5"], "no format is called 'int5'"),
    ):
        assert main.main(["bench", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"mmada-lite: {message}")
    assert not (work / "x" / "tiny-int5").exists()


def test_every_variant_runs_once_a_round_and_each_round_begins_with_another() -> None:
    order: list[str] = []

    class Watched:
        def __init__(self, name: str) -> None:
            self.name, self.model = name, SimpleNamespace(denoiser=None)
            self.case = SimpleNamespace(steps=self.steps)

        def steps(self, denoiser: object) -> Iterator[int]:
            order.append(f"warm {self.name}")
            yield from range(5)

        def run(self) -> str:
            order.append(self.name)
            return self.name

    variants = cast("list[latency_runs.Variant]", [Watched(name) for name in "abc"])
    found = [(turn, number) for turn, number, _ in latency_runs.in_turns(variants, 4)]
    assert order[:3] == ["warm a", "warm b", "warm c"]
    rounds = [order[3 + 3 * turn : 6 + 3 * turn] for turn in range(4)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len({each[0] for each in rounds}) == 3
    assert [turn for turn, _ in found] == sorted(turn for turn, _ in found)


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_a_clock_changes_nothing_and_its_parts_add_up(vocabulary: Vocabulary, cache: str) -> None:
    settings = TextSettings(answer_length=8, block_length=4, steps=8).replace(cache=cache)  # type: ignore[arg-type]
    plain = MockDenoiser({p: p for p in range(20)}, {p: 1 / (p + 2) for p in range(20)})
    tokens, watched = TextTokens.of(vocabulary.special, None), TimedDenoiser(plain, Clock())
    unwatched, timed_too = (complete(denoiser, [1, 2, 3], settings, tokens) for denoiser in (plain, watched))
    assert len(list(unwatched.steps)) == 8
    run = timed(timed_too.steps, watched.clock)
    np.testing.assert_array_equal(timed_too.ids, unwatched.ids)
    assert sum(run.parts.values()) == pytest.approx(run.seconds, rel=1e-6)
    assert (run.steps, run.model_calls, run.written, len(run.windows)) == (8, 8, 8, 8)
    assert [w for _, w, _, _ in run.windows] == ([11] * 8 if cache == "none" else [11, 4, 4, 4] * 2)
    assert run.parts["copying"] > 0


def test_sessions_are_counted_to_their_part_and_are_themselves_otherwise() -> None:
    class Session:
        name = "its own"

        def run(self, outputs: Any, feeds: Any) -> str:
            return f"{outputs} {feeds}"

    clock = Clock()
    session = TimedSession(Session(), "backbone", clock)
    assert (session.name, session.run(None, 3)) == ("its own", "None 3")
    assert set(clock.seconds) == {"backbone"}
    assert clock.in_sessions == clock.seconds["backbone"] > 0
    clock.add("selection", 5.0)
    assert clock.in_sessions < 5
    clock.reset()
    assert not clock.seconds


def test_a_part_of_the_blocks_stands_for_all(bundle: Bundle) -> None:
    bench = Bench.of(bundle)
    settings = TextSettings(answer_length=8, block_length=2, steps=8)
    whole, part = bench.text(6, settings), bench.text(6, settings, blocks=1)
    assert (whole.leave, whole.scale, part.leave, part.scale) == (0, 1.0, 6, 4.0)
    watched = TimedDenoiser(MockDenoiser({p: 20 + p for p in range(20)}), Clock())
    assert timed(part.steps(watched), watched.clock, part.leave).steps == 2
    assert timed(whole.steps(watched), watched.clock, whole.leave).steps == 8


def test_cases_are_as_long_as_they_say(bundle: Bundle) -> None:
    bench, text = Bench.of(bundle), TextSettings(answer_length=8, block_length=4, steps=8)
    for pictures in (1, 2):
        assert bench.understanding(pictures, text).prompt == pictures * 16 + 3
        drawing = bench.drawing(pictures, ImageSettings(steps=4, guidance=1.0))
        canvas = drawing.begin(MockDenoiser({})).canvas
        assert int(canvas.masked().sum()) == drawing.size == pictures * 16
        assert len(canvas.branches()) == 2
    half = bench.drawing(1, ImageSettings(steps=12), part=0.5)
    assert (half.task, half.size) == ("inpainting", 8)
    assert cast("ImageSettings", half.settings).steps == 8
    canvas = bench.text(33, text).begin(MockDenoiser({})).canvas
    assert canvas.start == 33
    special = bundle.vocabulary.special
    assert not {getattr(special, name) for name in special.__slots__} & set(canvas.tokens[0, :33].tolist())


def test_a_thought_is_waited_for_and_no_token_ends_a_text(tiny_bundle: Path, bundle: Bundle) -> None:
    thinking = TextSettings(answer_length=8, steps=8, block_length=4).replace(threshold=0.9, thought_first=True)
    tokens = Bench.of(Bundle.open(tiny_bundle))._tokens(thinking)
    assert tokens.closing == tuple(closing_ids(Tokenizer.from_file(tiny_bundle / "tokenizer.json")))
    assert not tokens.stop
    assert not Bench.of(bundle)._tokens(thinking).closing  # random weights without a tokenizer


def test_a_count_that_cannot_be_is_refused_before_anything_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["--kv-commit-every", "0"],
        ["--threads", "0"],
        ["--blocks", "-1"],
        ["--answer", "0"],
        ["--forwards", "32", "0"],
    ):
        assert latency.main(["--quick", *words]) == 2
        said = capsys.readouterr().err
        assert said == f"mmada-lite: {words[0]} {words[-1]} cannot be measured; give whole numbers of at least 1\n"


@pytest.mark.parametrize("words", [["--slice", "-1"], ["--slice", "nan"], ["--tokens", "8", "0"], ["--rounds", "0"]])
def test_what_cannot_be_measured_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench", "ceiling", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mmada-lite: {words[0]} {words[-1]} cannot be measured; give ")


def test_what_no_memory_holds_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench", "ceiling", "--shapes", "tiny", "--tokens", "1" + "0" * 15, "--threads", "1"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("mmada-lite: out of memory (")
    assert line.endswith("); ask for smaller sizes or counts")


def test_a_user_waits_for_the_first_step_and_then_for_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "STARTS", 1)
    target = tmp_path / "start.json"
    assert latency.main(["--tasks", "startup", "--rounds", "1", "-o", str(target)]) == 0
    (row,) = record.load(target)["rows"]
    assert 0 < row["first_step_seconds"]["median"] < row["seconds"]["median"]


def test_a_run_that_was_stopped_goes_on_to_the_same_record(
    work: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target, run, started = tmp_path / "latency.json", latency.measured, list[str]()
    words = ["--shape", "tiny", "--quick", "--threads", "1", "--caches", "none", "--work", str(work), "-o", str(target)]

    def killed_behind_text(variants: list[latency_runs.Variant], rounds: int) -> list[record.Row]:
        started.append(variants[0].case.task)
        if len(started) == 2:
            raise KeyboardInterrupt
        return run(variants, rounds)

    monkeypatch.setattr(latency, "measured", killed_behind_text)
    assert latency.main(words) == 130
    left = record.load(record.unfinished(target))
    assert (left["complete"], list(left["tasks"])) == (False, ["ceiling, int8, 1 threads", "text"])
    monkeypatch.setattr(latency, "apart", lambda *_: pytest.fail("the ceiling was measured again"))
    capsys.readouterr()
    assert latency.main(words) == 0
    assert started == ["text", "understanding", "understanding", "drawing", "inpainting"]
    content, said = record.load(target), capsys.readouterr().err
    assert content["complete"]
    assert [row for row in left["rows"] if row.get("task") == "text"] == [r for r in content["rows"] if r["task"] == "text"]
    assert "going on behind ceiling, int8, 1 threads, text" in said
    assert "3 of 6: understanding" in said


def test_a_device_is_measured_without_a_ceiling_and_told_against_the_cpu(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no GPU in these tests: the CPU stands in for it."""
    monkeypatch.setattr(latency, "choose_device", lambda name: choose_device("cpu"))
    for module in (latency_runs, timing):
        monkeypatch.setattr(module, "choose_device", lambda name: choose_device("cpu"))
    monkeypatch.setattr(latency, "apart", lambda *_: pytest.fail("the ceiling of a CPU says nothing of a GPU"))
    monkeypatch.setenv("ORT_FPA_INTB_GEMM", "1")
    target = tmp_path / "cuda.json"
    words = ["--shape", "tiny", "--device", "cuda", "--quick", "--threads", "1", "--caches", "dual", "--work", str(work)]
    assert latency.main([*words, "--tasks", "understanding", "drawing", "-o", str(target)]) == 0
    content = record.load(target)
    rows = {row["task"]: row for row in content["rows"]}
    assert (rows["agreement"]["agreement"], content["environment"]["ORT_FPA_INTB_GEMM"]) == (1.0, "1")
    for task in ("understanding", "drawing"):
        assert (rows[task]["precision"], rows[task]["ceiling_share"], rows[task]["predicted_seconds"]) == ("fp16", None, None)
    assert Bundle.open(work / "tiny-fp16-cuda").target == "cuda"
    assert "100.0% of the tokens that a CPU writes" in capsys.readouterr().out


def test_without_a_gpu_one_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "fault", lambda device: f"no {device} here")
    assert latency.main(["--shape", "tiny", "--device", "cuda", "--work", str(tmp_path), "-o", str(tmp_path / "x.json")]) == 2
    assert "no cuda here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_decoded_is_told_before_the_ceiling_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(latency, "apart", lambda *_: pytest.fail("the ceiling was measured"))
    assert latency.main(["--quick", "--prompt", "100000"]) == 2
    assert "do not fit into the" in capsys.readouterr().err


def test_the_peak_is_counted_anew() -> None:
    if peak() is None or not forget_peak():
        pytest.skip("this system does not count what a process held at most anew")
    block = np.ones(60_000_000, np.uint8)
    high = peak()
    del block
    forget_peak()
    low = peak()
    assert high is not None
    assert low is not None
    assert low < high - 40_000_000


def test_operators_of_the_first_run_do_not_count() -> None:
    def node(operator: str, begun: float, taken: float) -> dict[str, Any]:
        return {"cat": "Node", "name": f"{operator}_kernel_time", "ts": begun, "dur": taken, "args": {"op_name": operator}}

    events = [
        {"cat": "Session", "name": "model_run", "ts": 0.0, "dur": 50.0},
        node("MatMulIntegerToFloat", 1.0, 40.0),
        {"cat": "Session", "name": "model_run", "ts": 60.0, "dur": 30.0},
        *(node(name, 61.0, 2.0) for name in ("MatMulIntegerToFloat", "MatMulNBits", "Attention", "QuantizeLinear", "Sigmoid")),
        {"cat": "Node", "name": "x_fence_before", "ts": 62.0, "dur": 9.0, "args": {"op_name": "MatMul"}},
    ]
    found = operators.by_kind(events)
    assert found == pytest.approx({"matrix": 4e-6, "rounding": 2e-6, "attention": 2e-6, "elementwise": 2e-6})


def test_a_forward_is_taken_apart_whole(bundle: Bundle) -> None:
    seconds, kinds = operators.operator_seconds(bundle, 1, 64, 3)
    assert len(seconds) == 3
    assert set(kinds) == set(operators.KINDS)
    assert min(kinds.values()) > 0
    assert sum(kinds.values()) < max(seconds) * 1.5
