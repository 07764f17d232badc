"""A trained model as the start of another: the weights of its blocks, and the rows of embedding and head of every token that
both vocabularies spell alike and of every image code; a model of few blocks as the start of a deeper one; and the mean of
several runs. Knows no training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import tokenizers
import torch
from torch import Tensor

from mmada_lite.errors import Error
from mmada_lite.train.model import MMaDA

_BLOCKS = "model.transformer.blocks."
_TABLES = ("model.transformer.wte.weight", "model.transformer.ff_out.weight")


@torch.no_grad()
def grow(model: MMaDA, tokenizer: Path, start: Path) -> int:
    """Copy into `model`, whose text tokens are those of the file `tokenizer`, what the checkpoint `start` knows.

    Returns how many text tokens were found again. Raises Error where the blocks or the codes are of another shape.
    """
    old, new_ids = MMaDA.load(start), _ids(tokenizer)
    old_ids, source, target = _ids(start / "tokenizer.json"), old.state_dict(), model.state_dict()
    codes = model.config.codebook_size
    missing = sorted(set(target) - set(source))
    if missing:
        raise Error(f"{start} cannot be the start of this model: it has no {missing[0]}; use one of the same sizes")
    for name, tensor in source.items():
        same = name in target and (name in _TABLES or target[name].shape == tensor.shape)
        if not same or (name in _TABLES and target[name].shape[1] != tensor.shape[1]) or old.config.codebook_size != codes:
            raise Error(
                f"{start} cannot be the start of this model: {name} is {list(tensor.shape)} there; use one of the same sizes"
            )
    shared = [spelling for spelling in new_ids if spelling in old_ids]
    here, there = (torch.tensor([ids[spelling] for spelling in shared]) for ids in (new_ids, old_ids))
    for name, tensor in source.items():
        if name not in _TABLES:
            target[name].copy_(tensor)
            continue
        target[name][here] = tensor[there]
        target[name][len(new_ids) : len(new_ids) + codes] = tensor[len(old_ids) : len(old_ids) + codes]
    return len(shared)


def stack(weights: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Weights of a model of `layers` blocks from those of one with fewer: its blocks again and again, in their order (depthwise
    stacking, arXiv 2405.15319). Unchanged where there are as many, or where the one number does not divide the other."""
    numbers = {int(name.removeprefix(_BLOCKS).partition(".")[0]) for name in weights if name.startswith(_BLOCKS)}
    few = len(numbers)
    if not few or few == layers or layers % few:
        return dict(weights)
    stacked = {name: tensor for name, tensor in weights.items() if not name.startswith(_BLOCKS)}
    for name in set(weights) - set(stacked):
        number, _, rest = name.removeprefix(_BLOCKS).partition(".")
        stacked |= {f"{_BLOCKS}{layer}.{rest}": weights[name] for layer in range(int(number), layers, few)}
    return stacked


@torch.no_grad()
def average(model: MMaDA, *others: Path) -> None:
    """Put the mean of `model`'s weights and those of checkpoints of its kind into `model` ("model soups", arXiv
    2203.05482): what one run gained and another, or what it was continued from, kept. Raises Error where shapes differ."""
    target = model.state_dict()
    for number, other in enumerate(others):
        source = MMaDA.load(other).state_dict()
        for name, tensor in target.items():
            if name not in source or source[name].shape != tensor.shape:
                raise Error(f"{other} has no {name} of {list(tensor.shape)}; give --mean-with a checkpoint of the same sizes")
            tensor.lerp_(source[name], 1 / (number + 2))


def _ids(file: Path) -> dict[str, int]:
    if not file.is_file():
        raise Error(f"{file} is missing: a start needs its tokenizer.json")
    ids: dict[str, int] = tokenizers.Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)
    return ids
