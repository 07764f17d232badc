"""Laws of a model that grows out of another: what both spell keeps its rows, a start of another shape is refused."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toys import config_of, tiny_model

from mmada_lite.errors import Error
from mmada_lite.train.data.sequences import Sequences
from mmada_lite.train.grow import average, grow, stack
from mmada_lite.train.model import MMaDA


def checkpoint(folder: Path, model: MMaDA, tokenizer: Path) -> Path:
    model.save(folder, "float32")
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    return folder


def test_a_grown_model_of_the_same_vocabulary_is_the_same(
    toy_sequences: Sequences, toy_tokenizer: Path, tmp_path: Path
) -> None:
    start = tiny_model(toy_sequences.vocabulary)
    torch.manual_seed(5)
    model = MMaDA(start.config)
    tokens = torch.randint(0, start.config.vocab_size, (2, 20))
    assert not torch.equal(model.logits(model(tokens).hidden), start.logits(start(tokens).hidden))
    assert grow(model, toy_tokenizer, checkpoint(tmp_path / "start", start, toy_tokenizer)) == len(toy_sequences.tokenizer)
    assert torch.equal(model.logits(model(tokens).hidden), start.logits(start(tokens).hidden))


def test_growing_carries_shared_tokens_and_codes(toy_sequences: Sequences, toy_tokenizer: Path, tmp_path: Path) -> None:
    """Into a smaller vocabulary with some tokens of its own: what both spell and every code keeps its rows."""
    import tokenizers

    content = json.loads(toy_tokenizer.read_text(encoding="utf-8"))
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != "<think>"]
    for number, token in enumerate(sorted(content["added_tokens"], key=lambda t: t["id"])[-1:]):
        token["id"] = len(content["model"]["vocab"]) + number
    (tmp_path / "less.json").write_text(json.dumps(content), encoding="utf-8")
    ids = [
        tokenizers.Tokenizer.from_file(str(f)).get_vocab(with_added_tokens=True)
        for f in (tmp_path / "less.json", toy_tokenizer)
    ]
    assert len(ids[0]) == len(ids[1]) - 1
    start = tiny_model(toy_sequences.vocabulary)
    folder = checkpoint(tmp_path / "start", start, tmp_path / "less.json")  # codes begin one row earlier there
    torch.manual_seed(5)
    model = MMaDA(replace(start.config, vocab_size=start.config.vocab_size))
    fresh = model.transformer.wte.weight.detach().clone()
    assert grow(model, toy_tokenizer, folder) == len(ids[0])
    for table, old in ((model.transformer.wte, start.transformer.wte), (model.transformer.ff_out, start.transformer.ff_out)):
        for spelling, there in ids[0].items():
            assert torch.equal(table.weight[ids[1][spelling]], old.weight[there])
        codes = slice(len(ids[1]), len(ids[1]) + 256), slice(len(ids[0]), len(ids[0]) + 256)
        assert torch.equal(table.weight[codes[0]], old.weight[codes[1]])
    assert torch.equal(model.transformer.wte.weight[ids[1]["<think>"]], fresh[ids[1]["<think>"]])
    inner = [name for name in model.state_dict() if ".blocks." in name]
    assert all(torch.equal(model.state_dict()[name], start.state_dict()[name]) for name in inner)


@pytest.mark.parametrize("sizes", [(3, 32), (1, 32), (2, 16)])
def test_a_start_of_another_shape_is_refused(
    toy_sequences: Sequences, toy_tokenizer: Path, tmp_path: Path, sizes: Sequence[int]
) -> None:
    start = checkpoint(tmp_path, tiny_model(toy_sequences.vocabulary, *sizes), toy_tokenizer)
    model = tiny_model(toy_sequences.vocabulary)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(Error, match=r"cannot be the start of this model: .*; use one of the same sizes"):
        grow(model, toy_tokenizer, start)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    (start / "tokenizer.json").unlink()
    with pytest.raises(Error, match=r"tokenizer.json is missing"):
        grow(model, toy_tokenizer, start)


def test_codes_of_another_number_are_no_start(toy_sequences: Sequences, toy_tokenizer: Path, tmp_path: Path) -> None:
    config = config_of(toy_sequences.vocabulary)
    smaller = MMaDA(replace(config, codebook_size=128, vocab_size=config.vocab_size - 128))
    with pytest.raises(Error, match="cannot be the start"):
        grow(tiny_model(toy_sequences.vocabulary), toy_tokenizer, checkpoint(tmp_path, smaller, toy_tokenizer))


def test_the_mean_of_runs(toy_sequences: Sequences, toy_tokenizer: Path, tmp_path: Path) -> None:
    ours, other = tiny_model(toy_sequences.vocabulary), tiny_model(toy_sequences.vocabulary)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    average(ours, checkpoint(tmp_path / "other", other, toy_tokenizer))
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, (before[name] + other.state_dict()[name]) / 2)
    third = tiny_model(toy_sequences.vocabulary)
    with torch.no_grad():
        for parameter in third.parameters():
            parameter.mul_(-2.0)
    average(ours, tmp_path / "other", checkpoint(tmp_path / "third", third, toy_tokenizer))
    for name, tensor in ours.state_dict().items():
        halves = (before[name] + other.state_dict()[name]) / 2
        torch.testing.assert_close(tensor, (halves + other.state_dict()[name] + third.state_dict()[name]) / 3)
    wider = MMaDA(replace(ours.config, mlp_hidden_size=2 * ours.config.mlp_hidden_size))
    with pytest.raises(Error, match="give --mean-with a checkpoint of the same sizes"):
        average(wider, tmp_path / "other")


def test_few_blocks_are_stacked_in_their_order(toy_sequences: Sequences) -> None:
    """Blocks a, b become a, b, a, b; what is not a block stays; a depth that does not fit is left to be refused."""
    few = tiny_model(toy_sequences.vocabulary, 2, 32)
    deep = MMaDA(replace(few.config, n_layers=4))
    deep.load_state_dict(stack(few.state_dict(), 4), strict=True)
    for layer, block in enumerate(deep.transformer.blocks):
        for name, value in block.state_dict().items():
            assert torch.equal(value, few.transformer.blocks[layer % 2].state_dict()[name])
    assert torch.equal(deep.transformer.wte.weight, few.transformer.wte.weight)
    for layers in (2, 3):
        assert set(stack(few.state_dict(), layers)) == set(few.state_dict())
