"""Trainings in miniature, in processes that may be killed and in pairs of processes: `python toy_run.py FOLDER TOKENIZER`.

Imports once and forks, as importing torch costs more than all of these trainings. What each left behind is judged by
test_processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import toys
from torch import nn

from mmada_lite.train import loop
from mmada_lite.train.data.sequences import Sequences
from mmada_lite.train.optimizer import Average, optimizers
from mmada_lite.train.rewards import REWARDS
from mmada_lite.train.stages import train_stage
from mmada_lite.vocabulary import Tokenizer

loop.fast_type = lambda device: torch.float32  # laws of sums: rounding to bfloat16, where the processor has it, hides them
STEPS = 8
KILLS = 4
SECONDS = 240.0  # a child that takes longer hangs


def fork(target: Callable[[], object], **environment: str) -> int:
    """Run `target` in a child with those variables of environment; its exit code says how it went."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ.update(environment)
        torch.set_num_threads(1)
        target()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(child: int, seconds: float) -> int | None:
    """The exit code of a child (minus the signal that killed it), or None where it still runs after so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended_child, status = os.waitpid(child, os.WNOHANG)
        if ended_child:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def runs_still(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def finish(*children: int) -> list[int]:
    """The exit codes of children; those that hang are killed."""
    codes = []
    for child in children:
        code = ended(child, SECONDS)
        if code is None:
            os.kill(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        codes.append(code)
    return codes


def pair(target: Callable[[], object]) -> list[int]:
    """Two processes that know each other, told as `torchrun` and `accelerate launch` tell them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    own = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"} for rank in range(2)]
    return finish(*[fork(target, **common, **variables) for variables in own])


class Runs:
    """Every training of this file, in a folder of its own."""

    def __init__(self, root: Path, tokenizer: Path) -> None:
        self.root, self.tokenizer = root, Tokenizer.from_file(tokenizer)
        self.vocabulary = toys.vocabulary_of(self.tokenizer)
        self.sequences = Sequences(self.tokenizer, self.vocabulary, toys.single_pool(), toys.scene_pool(200))
        REWARDS.update(toys.PLANTED)

    def stage(self, name: str, save_seconds: float = 0.0) -> None:
        """Stages one and two; saved after every step."""
        train_stage(
            toys.tiny_model(self.vocabulary), self.sequences, self.root / name, toys.stage_settings(STEPS, save_seconds)
        )

    def policy(self, name: str) -> None:
        """Stage three; every process writes down which weights it ended with."""
        model = toys.tiny_model(self.vocabulary)
        toys.stage_three(model, self.tokenizer, self.root / name, toys.policy_settings(("letters", "shades"), 8)).train()
        content = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
        (self.root / name / f"weights-{os.environ.get('RANK', '0')}").write_text(hashlib.sha256(content).hexdigest())

    def killed(self, name: str) -> None:
        """Kill the training at a random moment of a step or of its saving, again and again, then let it finish."""
        chance, kills = random.Random(0), 0
        assert finish(fork(lambda: self.stage("whole"))) == [0]
        usual = self.seconds("whole") / STEPS
        while kills < KILLS:
            before, child = self.noted(name), fork(lambda: self.stage(name))
            until = time.monotonic() + SECONDS
            while self.noted(name) <= before and runs_still(child) and time.monotonic() < until:  # records come before states
                time.sleep(0.002)
            time.sleep(chance.uniform(0.0, 0.5) * usual)
            os.kill(child, signal.SIGKILL)
            if finish(child) == [0]:  # it was quicker
                break
            kills += 1
        (self.root / name / "kills").write_text(str(kills))
        assert finish(fork(lambda: self.stage(name))) == [0]

    def noted(self, name: str) -> int:
        """The last step in the log of a training, -1 before the first."""
        file = self.root / name / "log.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        steps = [json.loads(line)["step"] for line in lines if line.endswith("}")]
        return steps[-1] if steps else -1

    def seconds(self, name: str) -> float:
        """How long a training took, without its savings."""
        return float(json.loads((self.root / name / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])["seconds"])

    def killed_between_renames(self, name: str) -> None:
        """The last state was moved away, the new one is not there yet."""

        def target() -> None:
            rename = Path.rename

            def renamed(path: Path, other: Path) -> Path:
                moved = rename(path, other)
                if path.name == "state":
                    os.kill(os.getpid(), signal.SIGKILL)
                return moved

            Path.rename = renamed  # type: ignore[assignment, method-assign]
            self.stage(name)

        assert finish(fork(target)) == [-signal.SIGKILL]
        (self.root / name / "left").write_text(" ".join(sorted(p.name for p in (self.root / name).iterdir() if p.is_dir())))
        assert finish(fork(lambda: self.stage(name))) == [0]


def sharded(folder: Path) -> None:
    """Some steps of Muon, AdamW and the average on a model that is cut over the processes (FSDP2), and on a whole one."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    results = []
    for cut in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4))
        if cut:
            fully_shard(model, mesh=mesh)
        muon_and_adam = optimizers(model, {"0.weight", "2.weight"}, muon_lr=0.05, adam_lr=0.01, decay=0.1)
        average = Average(model, 0.9)
        for step in range(4):
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
            torch.autograd.backward((model(x) - 1).square().mean())  # the same rows everywhere: means over processes are theirs
            for optimizer in muon_and_adam:
                optimizer.step()
                optimizer.zero_grad()
            average.update(model, step)
        weights = {name: p.full_tensor() if cut else p for name, p in model.state_dict().items()}  # type: ignore[operator]
        results.append((weights, average.full()))
    content = average.state_dict()  # as accelerate keeps it: the first process writes, all read
    if dist.get_rank() == 0:
        torch.save(content, folder / "average.pt")
    dist.barrier()
    again = Average(model, 0.9)
    again.load_state_dict(torch.load(folder / "average.pt", weights_only=True))
    results.append((average.full(), again.full()))
    if dist.get_rank() == 0:
        torch.save(results, folder / "sharded.pt")
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    import accelerate  # noqa: F401  (before the forks, or every child would)

    optimizers(nn.Linear(2, 2), set(), muon_lr=0.1, adam_lr=0.1, decay=0.0)[0].step()  # imports what torch puts off
    root = Path(sys.argv[1])
    runs = Runs(root, Path(sys.argv[2]))
    runs.killed("killed")
    runs.killed_between_renames("renamed")
    assert pair(lambda: runs.stage("pair", 1e9)) == [0, 0]
    assert pair(lambda: runs.policy("policy")) == [0, 0]
    assert pair(lambda: sharded(root)) == [0, 0]


if __name__ == "__main__":
    main()
