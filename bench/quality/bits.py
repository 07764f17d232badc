"""How many bits a weight takes until another model answers like fp32: what no format of fewer bits can be asked for.

    mmada-lite bench bits train/shipped/emoji --bits 4 8 10

Every matrix of the torch model's layers and its head is rounded to the nearest of 2^bits numbers, a float32 scale for 32
weights; activations, norms and embedding stay in float32. So each row of the table leaves out what a real format adds. All
widths read the same states of the fp32 model's decodings as `bench truth`'s formats. It knows no format and no bundle but
the reference's.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import mmada_lite
from mmada_lite.bench import record
from mmada_lite.bench.quality.models import open_subject
from mmada_lite.bench.quality.quantization import fresh_prompts, loss_of, percent, tasks_of
from mmada_lite.bench.quality.trajectories import compare, trajectories
from mmada_lite.decoding.denoiser import Denoiser
from mmada_lite.errors import Error
from mmada_lite.quant.convert import Request, quantize_model
from mmada_lite.train.denoiser import TorchDenoiser

Row = Mapping[str, Any]
BITS = (4, 5, 6, 7, 8, 9, 10, 11, 12)
BLOCK = 32
AIMS = (0.96, 0.99)  # of agreement: what is asked of four bits and of eight


def rounded(weight: Tensor, bits: int, block: int = BLOCK) -> Tensor:
    """A weight [N, K] at the nearest of 2^bits evenly spaced numbers, zero among them, a scale for `block` inputs of a
    column (the last ones may be fewer)."""
    parts = []
    for start in range(0, weight.shape[1], block):
        part = weight[:, start : start + block]
        scale = part.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 0.5)
        codes = (part / scale.clamp_min(torch.finfo(part.dtype).tiny)).round()
        parts.append(codes.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale)
    return torch.cat(parts, dim=1)


def denoiser_of(checkpoint: Path, bits: int) -> Denoiser:
    """The torch model of a checkpoint with its matrices rounded."""
    subject = open_subject(checkpoint)
    if not isinstance(subject.denoiser, TorchDenoiser):
        raise Error(
            f"{checkpoint} is a bundle, whose matrices are rounded already; name the folder of a checkpoint (config.json)"
        )
    transformer = subject.denoiser.model.transformer
    matrices = [part for each in transformer.blocks for part in each.children() if isinstance(part, nn.Linear)]
    for matrix in (*matrices, transformer.ff_out):
        matrix.weight = nn.Parameter(rounded(matrix.weight.data, bits), requires_grad=False)
    return subject.denoiser


def enough(shares: Mapping[int, float], aim: float) -> int | None:
    """The fewest bits of the measured ones from which on the share of agreement is at least so much."""
    least = None
    for bits in sorted(shares, reverse=True):
        if shares[bits] < aim:
            break
        least = bits
    return least


def measure(options: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """A row for each width, widest last."""
    candidates = {bits: denoiser_of(options.checkpoint, bits) for bits in sorted(set(options.bits))}
    reference = quantize_model(options.checkpoint, scratch / "fp32", Request("fp32", "rtn"))
    model = mmada_lite.load(reference, device="cpu", threads=1)
    asked = fresh_prompts(options.prompts, tasks_of(model))
    states = trajectories(model, asked, options.states)
    print(f"{len(candidates)} widths on {len(states)} states of {len(asked)} prompts", file=sys.stderr, flush=True)
    found = compare(model.denoiser, {str(bits): each for bits, each in candidates.items()}, states, len(asked))
    tasks = np.array([prompt.task for prompt in asked])
    rows = []
    for bits in candidates:
        whole = loss_of(found[str(bits)], np.ones(len(tasks), bool))
        parts = {task: asdict(loss_of(found[str(bits)], tasks == task)) for task in dict.fromkeys(tasks.tolist())}
        rows.append({"bits": bits, **asdict(whole), "tasks": parts})
    return rows


def table(rows: Sequence[Row]) -> str:
    tasks = list(rows[0]["tasks"])
    lines = ["| bits a weight | all, agreement % | " + " | ".join(tasks) + " | KL, nats |", "|---" * (len(tasks) + 3) + "|"]
    for each in rows:
        shares = [percent(each["agreement"]), *(percent(each["tasks"][task]["agreement"]) for task in tasks)]
        lines.append("| " + " | ".join([str(each["bits"]), *shares, f"{each['divergence'][0]:.5f}"]) + " |")
    return "\n".join(lines)


def conclusions(rows: Sequence[Row]) -> list[str]:
    """For everything together, every task and every aim, the fewest bits that reach it."""
    shares = {"all": {each["bits"]: each["agreement"][0] for each in rows}}
    for task in rows[0]["tasks"]:
        shares[task] = {each["bits"]: each["tasks"][task]["agreement"][0] for each in rows}
    least = {(task, aim): enough(by_bits, aim) for task, by_bits in shares.items() for aim in AIMS}
    reached = {key: f"from {bits} bits on" if bits else "at none of these widths" for key, bits in least.items()}
    return [f"{task}: {aim:.0%} {said}" for (task, aim), said in reached.items()]


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="mmada-lite bench bits", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--bits", type=int, nargs="+", default=BITS, help="2 to 16 (default 4 to 12)")
    parser.add_argument("--prompts", type=int, default=30, help="of each task (default 30)")
    parser.add_argument("--states", type=int, default=4, help="of each decoding (default 4)")
    parser.add_argument("-o", "--output", type=Path, help="the JSON file (default: bench/results/bits.json in a checkout)")
    options = parser.parse_args(words)
    try:
        if not all(1 <= number <= 1000 for number in (options.prompts, options.states)):
            raise Error("--prompts and --states are from 1 to 1000")
        if not all(2 <= bits <= 16 for bits in options.bits):
            raise Error("each of --bits is from 2 to 16")
        with tempfile.TemporaryDirectory() as scratch:
            rows = measure(options, Path(scratch))
        said = conclusions(rows)
        content = record.record("bits", words, rows, block=BLOCK, conclusions=said)
        print("\n".join([table(rows), *said]))
        record.save(content, options.output)
    except Error as fault:
        print(f"mmada-lite: {fault}", file=sys.stderr)
        return 2
    print(json.dumps(content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
