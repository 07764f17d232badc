"""Laws of `bench loops`: it counts what a model would compute, and smaller steps compute less."""

import json

import pytest

from mmada_lite.bench.speed import overhead

SMALL = ["--codes", "64", "--picture-steps", "8", "--answer-length", "16", "--layers", "2", "--width", "64", "--rounds", "1"]


def test_tokens_are_those_of_the_rows_and_smaller_steps_have_fewer(capsys: pytest.CaptureFixture) -> None:
    assert overhead.main([*SMALL, "--prompt", "10"]) == 0
    rows = {(row["task"], row["policy"]): row for row in json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]}
    assert {policy for task, policy in rows if task == "picture"} == set(overhead.PICTURES)
    exact = rows["picture", "exact"]
    assert exact["tokens"] == 8 * (64 + 2 + 10 + 64 + 2 + 3)  # eight steps, both rows whole: prompt, soi, codes, eoi
    assert rows["text", "exact"]["tokens"] == 16 * 26
    assert rows["text", "dual"]["tokens"] == 26 + 15 * 16
    for (_, policy), row in rows.items():
        assert row["of_exact"] < 1 or policy == "exact"
        assert row["python_ms"]["median"] > 0
    assert rows["picture", "guidance to 0.6"]["tokens"] == 8 * 76 + 5 * 69


def test_what_cannot_be_decoded_is_one_line(capsys: pytest.CaptureFixture) -> None:
    assert overhead.main([*SMALL, "--answer-length", "0"]) == 2
    assert "--answer-length 0 cannot be measured" in capsys.readouterr().err
