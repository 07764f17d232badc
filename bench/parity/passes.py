"""Single forward passes against recorded numbers (golden/README.md: llm, vq, image): torch and exported graphs, no decoding.

Pads are dropped where the project drops them: removing left pads equals masking them, which is itself compared here.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from mmada_lite import images
from mmada_lite.bench.parity.replay import Arrays, Comparison, Ints, differing
from mmada_lite.contracts import read_json
from mmada_lite.decoding.denoiser import Denoiser, Floats, Window
from mmada_lite.decoding.schedules import masked_after

LOGITS, PIXELS, RESIZED = 2e-4, 1e-4, 1e-6  # largest absolute differences that are allowed
TABLE = "mask_len_table.json"


def compare_logits(denoiser: Denoiser, name: str, folder: Path) -> Iterator[Comparison]:
    """One forward over every recorded row: all tokens given, and with left pads dropped against the masked reference."""
    recorded = load_file(folder / "forward.safetensors")
    pads = [int(np.argmax(mask != 0)) for mask in recorded["attention_mask"]]
    with_pads, without_pads = [], []
    for row, (ids, pad) in enumerate(zip(recorded["input_ids"], pads, strict=True)):
        with_pads.append(_worst(recorded, "logits_nomask", row, 0, _logits(denoiser, ids[None])[0]))
        without_pads.append(_worst(recorded, "logits_bias", row, pad, _logits(denoiser, ids[None, pad:])[0]))
    yield Comparison(name, "logits", max(with_pads), LOGITS)
    yield Comparison(name, "logits, pads dropped = pads masked", max(without_pads), LOGITS)


def _logits(denoiser: Denoiser, tokens: Ints) -> Floats:
    """All logits [B, L, V] of one plain forward."""
    positions = np.arange(tokens.shape[1], dtype=np.int64)
    query_index = np.ascontiguousarray(np.broadcast_to(positions, tokens.shape))
    hidden, _ = denoiser.forward(Window(np.ascontiguousarray(tokens), positions, query_index), keep=False)
    return denoiser.logits("text", hidden, np.eye(tokens.shape[0], dtype=np.float32))


def _worst(recorded: Arrays, kind: str, row: int, pad: int, logits: Floats) -> float:
    """Largest difference of one row's logits [L - pad, V] from what was recorded: all of them, or chosen parts of them."""
    if kind in recorded:
        return _apart(logits, recorded[kind][row, pad:])
    worst = _apart(logits[:, recorded["columns"]], recorded[f"{kind}_cols"][row, pad:])
    if row == 0:
        at = recorded["positions_full"]
        worst = max(worst, _apart(logits[at[at >= pad] - pad], recorded[f"{kind}_full_row0"][at >= pad]))
    best = np.take_along_axis(logits, recorded[f"{kind}_top8_ids"][row, pad:], axis=-1)
    wide = logits.astype(np.float64)
    peak = wide.max(axis=-1)
    total = np.log(np.exp(wide - peak[:, None]).sum(axis=-1)) + peak
    top8, logsumexp = recorded[f"{kind}_top8_values"][row, pad:], recorded[f"{kind}_logsumexp"][row, pad:]
    return max(worst, _apart(best, top8), _apart(total, logsumexp))


def compare_torch_states(name: str, folder: Path) -> Iterator[Comparison]:
    """What only the torch model shows: the input of every block, under the true mask and the training losses' added bias."""
    import torch

    from mmada_lite.train.model import MMaDA

    model, recorded = MMaDA.load(folder), load_file(folder / "forward.safetensors")
    tokens, mask = torch.from_numpy(recorded["input_ids"]), torch.from_numpy(recorded["attention_mask"]).bool()
    bias = (mask[:, :, None] & mask[:, None, :])[:, None]
    real = mask.numpy()
    with torch.inference_mode():
        for kind, given in (("nomask", None), ("bias", bias)):
            if f"hidden_states_{kind}" not in recorded:
                continue
            output = model(tokens, bias=given, keep_states=True)
            compared = real if kind == "bias" else np.ones_like(real)
            states = torch.stack(output.states).numpy()
            difference = _apart(states[:, compared], recorded[f"hidden_states_{kind}"][:, compared])
            yield Comparison(name, f"hidden states, {'masked' if kind == 'bias' else 'plain'}", difference, LOGITS)
        if "logits_floatbias01" in recorded:
            logits = model.logits(model(tokens, bias=bias.float()).hidden).numpy()
            difference = _apart(logits[real], recorded["logits_floatbias01"][real])
            yield Comparison(name, "logits, bias added as in training", difference, LOGITS)


def compare_torch_vq(name: str, folder: Path) -> Iterator[Comparison]:
    """The image tokenizer in torch: latents, codes, and pictures from both given and random codes."""
    import torch

    from mmada_lite.train.vq import MagViT

    vq, recorded = MagViT.load(folder), load_file(folder / "io.safetensors")
    with torch.inference_mode():
        for image in _vq_images(recorded):
            pixels = torch.from_numpy(recorded[f"{image}.pixels"])
            grid = recorded[f"{image}.z"].shape[2:]
            codes = vq.encode(pixels).numpy().reshape(recorded[f"{image}.codes"].shape)
            yield Comparison(f"{name} {image}", "codes", differing(codes, recorded[f"{image}.codes"]), 0)
            for kind in ("", "random_"):
                decoded = vq.decode(torch.from_numpy(recorded[f"{image}.{kind}codes"]), grid).numpy()
                what = "pixels of random codes" if kind else "pixels"
                yield Comparison(f"{name} {image}", what, _apart(decoded, recorded[f"{image}.{kind}decoded"]), PIXELS)


def compare_graph_vq(name: str, folder: Path, codec: images.Codec) -> Iterator[Comparison]:
    """The image tokenizer's two graphs, on the same numbers."""
    recorded = load_file(folder / "io.safetensors")
    for image in _vq_images(recorded):
        grid, expected = recorded[f"{image}.z"].shape[2:], recorded[f"{image}.codes"]
        codes = codec.encode(recorded[f"{image}.pixels"]).reshape(expected.shape)
        yield Comparison(f"{name} {image}", "codes", differing(codes, expected), 0)
        for kind in ("", "random_"):
            given = recorded[f"{image}.{kind}codes"].reshape(expected.shape[0], *grid)
            decoded = codec.decoder.run(["pixels"], {"codes": given})[0]
            what = "pixels of random codes" if kind else "pixels"
            yield Comparison(f"{name} {image}", what, _apart(decoded, recorded[f"{image}.{kind}decoded"]), PIXELS)


def compare_pictures(name: str, folder: Path) -> Iterator[Comparison]:
    """The laws of resizing, cutting and rounding, which are the runtime's own code."""
    recorded = load_file(folder / "expected.safetensors")
    listed = read_json(folder / "case.json")["images"]
    files = {Path(entry["file"]).stem: folder / entry["file"] for entry in listed}
    for key, expected in recorded.items():
        stem, resize, resolution = key.rsplit(".", 2)
        path = files.get(Path(stem).stem)
        if path is None:
            yield Comparison(f"{name}/{key}", "picture listed in case.json", float("inf"), 0)
            continue
        with Image.open(path) as image:
            fitted = images.fit(image.convert("RGB"), int(resolution), "squash" if resize == "squash" else "crop")
        pixels = images.to_pixels(fitted)[0]
        if resize == "transform_nonorm":
            pixels = np.asarray(fitted, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
        yield Comparison(f"{name}/{key}", "pixels", _apart(pixels, expected), RESIZED)
    rounding = folder / "to_uint8.safetensors"
    if rounding.is_file():
        decoded = load_file(rounding)
        wrong = differing(images.to_bytes(decoded["decoded"]), decoded["uint8_hwc"])
        yield Comparison(f"{name}/to_uint8", "bytes", wrong, 0)


def compare_schedules(name: str, folder: Path) -> Iterator[Comparison]:
    """How many codes stay masked after each step, for every schedule and size that the table holds."""
    for entry in read_json(folder / TABLE)["table"]:
        schedule, tokens, steps = entry["schedule"], entry["seq_len"], entry["timesteps"]
        counts = masked_after(schedule, tokens, steps)
        wrong = differing(counts, np.array(entry["floor_N_times_ratio"]))
        yield Comparison(f"{name}/schedule {schedule} {tokens} codes {steps} steps", "codes left masked", wrong, 0)


def _vq_images(recorded: Arrays) -> list[str]:
    return sorted({key.split(".")[0] for key in recorded})


def _apart(a: NDArray, b: NDArray) -> float:
    """Largest absolute difference; infinite when the shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    return float(np.abs(a - b).max(initial=0.0))
