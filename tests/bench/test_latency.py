"""The ceiling and the latency of a machine, whole, at a tiny shape; and the laws of turns, of the clock and of scaling."""

import json
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from mock_denoiser import MockDenoiser

from mmada_lite.bench import record
from mmada_lite.bench import timed as timing
from mmada_lite.bench.speed import ceiling, latency, latency_runs, pairs
from mmada_lite.bench.speed.latency_cases import Bench, Case
from mmada_lite.bench.speed.latency_runs import OpenModel
from mmada_lite.bench.timed import PARTS, Clock, TimedDenoiser, TimedSession, forget_peak, peak, timed
from mmada_lite.bundle import Architecture, Bundle
from mmada_lite.cli import main
from mmada_lite.decoding.generate import TextTokens, complete
from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.errors import Error
from mmada_lite.export.synthetic import SIZES, cached_bundle
from mmada_lite.ort import devices
from mmada_lite.ort.devices import choose_device
from mmada_lite.vocabulary import Vocabulary


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
    assert {row["form"] for row in found["rows"] if row["what"] == "memory"} == {"read", "copy", "triad"}
    assert all(row["giga_per_s"]["median"] > 0 for row in found["rows"])
    rates = ceiling.rates(found["rows"])
    assert set(rates) == set(ceiling.FORMS)
    assert all(set(by_tokens) == {1, 32} for by_tokens in rates.values())
    assert found["quick"]


def test_a_layers_rate_lies_between_those_of_its_products() -> None:
    rows = [
        {"what": "product", "form": "fp32", "k": 2, "n": n, "count": count, "tokens": 8, "threads": 1}
        | {"giga_per_s": {"median": speed}}
        for n, count, speed in ((2, 4, 10.0), (6, 2, 30.0), (8, 0, 999.0))
    ]
    rows.append({"what": "memory", "form": "read", "threads": 1, "giga_per_s": {"median": 5.0}})
    work, took = 4 * 4 + 2 * 12, 4 * 4 / 10 + 2 * 12 / 30
    assert ceiling.rates(rows)["fp32"][8] == pytest.approx(1e9 * work / took)


def test_rates_are_those_measured_and_between_them_a_power_law() -> None:
    rates = {1: 10.0, 100: 1000.0, 400: 2000.0}
    assert [ceiling.at(rates, n) for n in rates] == pytest.approx(list(rates.values()))
    assert ceiling.at(rates, 10) == pytest.approx(100.0)
    assert ceiling.at(rates, 200) == pytest.approx(1000 * math.sqrt(2))
    assert ceiling.at(rates, 5000) == pytest.approx(2000.0)
    assert ceiling.at({32: 7.0}, 1) == pytest.approx(7.0)


@pytest.mark.parametrize("window", [1, 7, 64])
def test_a_forward_multiplies_every_weight_by_every_token(window: int) -> None:
    shape = Architecture(64, 3, 4, 2, 16, 96, 144, 10000.0, 1e-5, 512)
    weights = 3 * (2 * 64 * 64 + 2 * 64 * 2 * 16 + 3 * 64 * 96)
    whole = [flops for _, flops in ceiling.backbone_products(shape, [(1, window, 5, window)])]
    assert sum(whole) == 2 * weights * window
    pair = sum(flops for _, flops in ceiling.backbone_products(shape, [(2, window, 5, window)]))
    assert pair == 2 * sum(whole)
    alone = sum(flops for _, flops in ceiling.backbone_products(shape, [(1, window, 5, 1)]))
    assert alone < sum(whole) or window == 1
    assert ceiling.least_seconds(shape, "fp32", {"fp32": {1: 1e9}}, [(1, window, 0, window)]) == pytest.approx(sum(whole) / 1e9)
    faster = {"int8": {1: 1e9}, ceiling.ALONE: {1: 2e9}}
    assert ceiling.least_seconds(shape, "int8", faster, [(1, window, 0, window)]) == pytest.approx(sum(whole) / 2e9)


def test_the_whole_latency_at_a_tiny_shape(
    bundle: Bundle, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "latency.json"
    words = ["--shape", "tiny", "--quick", "--threads", "1", "--work"]
    assert latency.main([*words, str(work), "-o", str(target)]) == 0
    found = record.load(target)
    shown = capsys.readouterr().out
    assert json.loads(shown.splitlines()[-1]) == found
    decodes = [row for row in found["rows"] if "parts" in row]
    assert {(row["task"], row["cache"]) for row in decodes} == {
        *((task, cache) for task in ("text", "filling", "understanding") for cache in ("none", "prefix", "dual", "prompt")),
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
        assert row["scaled_from"] == (None if row["cache"] is None else "1 of 2 blocks")
    assert {row["task"] for row in found["rows"]} >= {"forward"}
    assert next(row for row in found["rows"] if row["task"] == "forward")["matrix_share"] > 0
    assert all(size is None or size > 10**7 for size in (found["idle_bytes"], *(row["peak_bytes"] for row in decodes)))
    assert "random weights are never sure" in shown


def test_the_small_model_is_measured_with_thresholds(tmp_path: Path) -> None:
    target = tmp_path / "latency.json"
    words = ["--tasks", "text", "--caches", "dual", "--quick", "--threads", "1", "-o", str(target)]
    assert latency.main(words) == 0
    steps, sure = (row for row in record.load(target)["rows"] if row["task"] == "text")
    assert (steps["threshold"], sure["threshold"]) == (None, 0.9)
    assert steps["ceiling_share"] > 0
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
        (["latency", "--threads", "0"], "--threads: 0 cannot be measured"),
        (["latency", "--shape", "tiny", "--precision", "int5", "--work", str(work / "x")], "no precision is called 'int5'"),
        (["latency", "--precision", "int5"], "no precision is called 'int5'"),
        (["ceiling", "--shapes", "tiny", "9b"], "no shape is called '9b'"),
        (["ceiling", "--shapes", "tiny", "--forms", "fp32", "int5"], "no format is called 'int5'"),
    ):
        assert main.main(["bench", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"mmada-lite: {message}")
    assert not (work / "x" / "tiny-int5").exists()


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
    assert (run.parts["python"], run.parts["head"]) == (pytest.approx(run.seconds), 0)


def test_sessions_are_counted_to_their_part_and_are_themselves_otherwise() -> None:
    class Session:
        name = "its own"

        def run(self, outputs: Any, feeds: Any) -> str:
            return f"{outputs} {feeds}"

    clock = Clock()
    session = TimedSession(Session(), "backbone", clock)
    assert (session.name, session.run(None, 3)) == ("its own", "None 3")
    assert set(clock.seconds) == {"backbone"}
    assert clock.seconds["backbone"] > 0
    clock.reset()
    assert not clock.seconds


def test_a_part_of_the_blocks_stands_for_all(bundle: Bundle) -> None:
    bench = Bench.of(bundle)
    settings = TextSettings(answer_length=8, block_length=2, steps=8)
    whole, part = bench.text(6, settings), bench.text(6, settings, blocks=1)
    assert (whole.leave, whole.scale, part.leave, part.scale) == (0, 1.0, 6, 4.0)
    watched = TimedDenoiser(MockDenoiser({p: 20 + p for p in range(20)}), Clock())
    assert timed(part.begin(watched).steps, watched.clock, part.leave).steps == 2
    assert timed(whole.begin(watched).steps, watched.clock, whole.leave).steps == 8


def test_holes_take_the_forwards_of_a_text_of_as_many_tokens(bundle: Bundle) -> None:
    bench, settings = Bench.of(bundle), TextSettings(answer_length=8, block_length=4, steps=6)
    for blocks in (None, 1):
        text, filling = bench.text(6, settings, blocks), bench.filling(6, settings, blocks)
        assert (text.size, text.leave, text.scale) == (filling.size, filling.leave, filling.scale)
    for cache in ("none", "dual"):
        cases = (each(6, settings.replace(cache=cache)) for each in (bench.text, bench.filling))
        text_steps, steps = (list(case.begin(MockDenoiser({p: 20 + p for p in range(30)})).steps) for case in cases)
        assert [len(step.positions) for step in text_steps] == [len(step.positions) for step in steps]
        assert text_steps[-1].model_calls == steps[-1].model_calls == 6


def test_cases_are_as_long_as_they_say(bundle: Bundle) -> None:
    bench, text = Bench.of(bundle), TextSettings(answer_length=8, block_length=4, steps=8)
    assert bench.understanding(text).prompt == 16 + 3
    drawing = bench.drawing(ImageSettings(steps=4, guidance=1.0))
    canvas = drawing.begin(MockDenoiser({})).canvas
    assert int(canvas.masked().sum()) == drawing.size == 16
    assert len(canvas.branches()) == 2
    half = bench.drawing(ImageSettings(steps=12), part=0.5)
    assert (half.task, half.size) == ("inpainting", 8)
    assert cast("ImageSettings", half.settings).steps == 8
    canvas = bench.text(33, text).begin(MockDenoiser({})).canvas
    assert canvas.start == 33
    special = bundle.vocabulary.special
    assert not {getattr(special, name) for name in special.__slots__} & set(canvas.tokens[0, :33].tolist())


def test_a_count_that_cannot_be_is_refused_before_anything_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["--threads", "0"],
        ["--blocks", "-1"],
        ["--answer", "0"],
        ["--forwards", "32", "0"],
    ):
        assert latency.main(["--quick", *words]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"mmada-lite: {words[0]}: {words[-1]} cannot be measured; give whole numbers of at least 1; see")


@pytest.mark.parametrize("words", [["--slice", "-1"], ["--slice", "nan"], ["--tokens", "8", "0"], ["--rounds", "0"]])
def test_what_cannot_be_measured_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench", "ceiling", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mmada-lite: {words[0]}: {words[-1]} cannot be measured; give ")


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
    assert row["seconds"]["median"] > 0
    assert row["peak_bytes"] > 10**7


def test_a_run_that_was_stopped_goes_on_to_the_same_record(
    work: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target, run, started = tmp_path / "latency.json", OpenModel.measured, list[str]()
    words = ["--shape", "tiny", "--quick", "--threads", "1", "--caches", "none", "--work", str(work), "-o", str(target)]

    def killed_behind_text(model: OpenModel, cases: list[Case], rounds: int) -> list[record.Row]:
        started.append(cases[0].task)
        if len(started) == 2:
            raise KeyboardInterrupt
        return run(model, cases, rounds)

    monkeypatch.setattr(OpenModel, "measured", killed_behind_text)
    assert latency.main(words) == 130
    left = record.load(record.unfinished(target))
    assert (left["complete"], list(left["tasks"])) == (False, ["ceiling", "text"])
    monkeypatch.setattr(latency, "apart", lambda *_: pytest.fail("the ceiling was measured again"))
    capsys.readouterr()
    assert latency.main(words) == 0
    assert started == ["text", "filling", "filling", "understanding", "drawing", "inpainting"]
    content, said = record.load(target), capsys.readouterr().err
    assert content["complete"]
    assert left["tasks"]["text"] == [row for row in content["rows"] if row["task"] == "text"]
    assert "going on behind ceiling, text" in said
    assert "3 of 6: filling" in said


def test_two_trees_are_compared_in_pairs_and_a_stopped_run_goes_on(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other tree is this one with other options: what its commands are, and that no ceiling is measured, is seen."""
    root, ran, run = Path(__file__).parents[2], list[tuple[str, list[str]]](), pairs.run_module

    def killed_in_the_second_pair(module: str, *words: object, environment: dict[str, str]) -> record.Row:
        ran.append((environment["PYTHONPATH"], [str(word) for word in words]))
        if len(ran) == 6:
            raise KeyboardInterrupt
        return run(module, *words, environment=environment)

    monkeypatch.setattr(pairs, "run_module", killed_in_the_second_pair)
    target, linked = tmp_path / "pairs.json", tmp_path / "linked"
    linked.symlink_to(root)
    words = ["--shape", "tiny", "--quick", "--threads", "1", "--tasks", "text", "drawing", "--caches", "dual"]
    words += ["--work", str(work), "--against", str(linked), "--against-options", "--precision int4", "--pairs", "2"]
    assert latency.main([*words, "-o", str(target)]) == 130
    assert list(record.load(record.unfinished(target))["tasks"]) == ["pair 1"]
    assert latency.main([*words, "-o", str(target)]) == 0
    content = record.load(target)
    assert [(row["task"], row["cache"], row["pairs"]) for row in content["rows"]] == [("text", "dual", 2), ("drawing", None, 2)]
    for row in content["rows"]:
        mine = [pair for pair in content["pairs"] if pair["task"] == row["task"]]
        for measure in ("seconds", "peak_bytes"):
            ratios = sorted(this / other for this, other in (pair[measure] for pair in mine))
            assert [row[f"{measure}_ratio"][name] for name in ("min", "max")] == pytest.approx(ratios)
    sides = ["other" if "int4" in given else "this" for _, given in ran]
    assert sides == ["this", "other"] * 2 + ["other", "this"] + ["other", "this"] * 2
    assert [given[given.index("-o") - 1] for _, given in ran] == ["text"] * 2 + ["drawing"] * 2 + ["text"] * 4 + ["drawing"] * 2
    assert all("--no-ceiling" in given and "--against" not in given for _, given in ran)
    assert {Path(given[given.index("--work") + 1]) for _, given in ran} == {work / "this", work / "other"}
    assert "| drawing | - | - | 2 |" in capsys.readouterr().out


def test_loading_is_measured_in_processes_of_a_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone and against a tree; what does not load there is one line."""
    monkeypatch.setattr(latency, "STARTS", 1)
    root, target = Path(__file__).parents[2], tmp_path / "load.json"
    words = ["--tasks", "load", "--rounds", "1", "-o", str(target), "--force"]
    assert latency.main(words) == 0
    (alone,) = record.load(target)["rows"]
    assert latency.main([*words, "--against", str(root), "--pairs", "1"]) == 0
    (row,) = record.load(target)["rows"]
    assert (alone["task"], row["task"], row["pairs"]) == ("load", "load", 1)
    for seconds in (alone["seconds"]["median"], *row["median_seconds"]):
        assert 0.02 < seconds < 60
    (tmp_path / "mmada_lite.py").write_text("def load(): raise OSError('no disk')")
    with pytest.raises(Error, match="the model does not load: OSError: no disk"):
        pairs.load_seconds(tmp_path)


def test_a_folder_that_is_no_checkout_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert latency.main(["--against", str(tmp_path), "-o", str(tmp_path / "x.json")]) == 2
    assert "is no checkout of this project" in capsys.readouterr().err


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
        assert (rows[task]["precision"], rows[task]["ceiling_share"]) == ("fp16", None)
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
    found = latency_runs.by_kind(events)
    assert found == pytest.approx({"matrix": 4e-6, "rounding": 2e-6, "attention": 2e-6, "elementwise": 2e-6})


def test_a_forward_is_taken_apart_whole(bundle: Bundle) -> None:
    seconds, kinds = latency_runs.operator_seconds(bundle, 1, 64, 3)
    assert len(seconds) == 3
    assert set(kinds) == set(latency_runs.KINDS)
    assert min(kinds.values()) > 0
    assert sum(kinds.values()) < max(seconds) * 1.5
