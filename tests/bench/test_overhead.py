"""Laws of what decoding costs beside the model: it counts what a model would compute, and smaller steps compute less."""

from pathlib import Path

from mmada_lite.bench import record
from mmada_lite.bench.speed import latency, overhead
from mmada_lite.bench.speed.overhead import Instant

SMALL = {"codes": 64, "picture_steps": 8, "answer": 16, "prompt": 10, "layers": 2, "width": 64}


def test_tokens_are_those_of_the_rows_and_smaller_steps_have_fewer() -> None:
    rows = {(row["task"].split()[1], row["policy"]): row for row in overhead.rows(1, Instant(**SMALL))}
    assert sum(task == "picture" for task, _ in rows) == len(overhead.PICTURES)
    exact = rows["picture", "exact"]
    assert exact["tokens"] == 8 * (10 + 64 + 1 + 4 + 64 + 1)  # eight steps, both rows whole: prompt, codes, eoi
    assert rows["text", "exact"]["tokens"] == 16 * 26
    assert rows["text", "cache=dual"]["tokens"] == 26 + 15 * 16
    for (_, policy), row in rows.items():
        assert row["of_exact"] < 1 or policy == "exact"
        assert row["python_ms"]["median"] > 0
        assert f"| {policy} |" in overhead.table([row])
    assert rows["picture", "unconditional_every=4"]["tokens"] == 8 * 75 + 2 * 69  # every fourth step has both rows


def test_it_is_a_task_of_the_latency(tmp_path: Path) -> None:
    target = tmp_path / "overhead.json"
    assert latency.main(["--tasks", "overhead", "--rounds", "1", "-o", str(target)]) == 0
    assert len(record.load(target)["rows"]) == len(overhead.PICTURES) + len(overhead.TEXTS)
