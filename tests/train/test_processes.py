"""Laws of trainings in processes of their own: killed at any moment, they end where an unbroken one ends; two processes
find the losses and the weights of one. All of them are run once, by toy_run.py."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toys import records

from mmada_lite.train.loop import trained_weights

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(toy_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (HERE.parents[1], HERE.parent))),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(HERE / "toy_run.py"), str(root), str(toy_tokenizer)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-4000:]
    return root


@pytest.mark.parametrize("name", ["killed", "renamed"])
def test_a_killed_run_ends_where_an_unbroken_one_does(runs: Path, name: str) -> None:
    assert records(runs / name) == records(runs / "whole")
    for averaged in (True, False):
        (resumed, steps), (unbroken, _) = (trained_weights(runs / run, averaged) for run in (name, "whole"))
        assert steps == len(records(runs / "whole")) == 8
        assert all(torch.equal(resumed[key], unbroken[key]) for key in unbroken)
    assert not (runs / name / "state.old").exists()


def test_it_was_killed_on_the_way(runs: Path) -> None:
    assert int((runs / "killed" / "kills").read_text()) >= 1  # of four, unless a step was quicker than the eye


def test_between_two_renames_the_old_state_is_left(runs: Path) -> None:
    assert (runs / "renamed" / "left").read_text() == "state.old state.partial"


def test_two_processes_find_the_loss_of_one(runs: Path) -> None:
    one, two = records(runs / "whole"), records(runs / "pair")
    assert len(one) == len(two) == 8
    for first, second in zip(one, two, strict=True):
        assert first == pytest.approx(second, rel=2e-4, abs=2e-4)
    (alone, _), (shared, _) = (trained_weights(runs / name, averaged=False) for name in ("whole", "pair"))
    for name, value in alone.items():  # the matrices too, which are made orthogonal in turns and exchanged
        assert torch.allclose(value, shared[name], atol=1e-3), name


def test_two_processes_share_a_batch_of_responses(runs: Path) -> None:
    log = records(runs / "policy")
    assert [record["step"] for record in log] == list(range(8))
    assert all(math.isfinite(record["loss"]) for record in log)
    assert sum("reward_letters" in record for record in log) == sum("reward_shades" in record for record in log) == 2
    first, second = ((runs / "policy" / f"weights-{rank}").read_text() for rank in range(2))
    assert first == second


def test_a_model_that_is_cut_over_processes_learns_the_same(runs: Path) -> None:
    """FSDP2 on two processes: weights, their average, and the average after it was saved and read again."""
    (unsharded, average), (sharded, sharded_average), averages_read_again = torch.load(runs / "sharded.pt", weights_only=True)
    for one, other in ((unsharded, sharded), (average, sharded_average), averages_read_again):
        assert one.keys() == other.keys()
        assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)
