"""The torch transformer against the reference's recorded numbers, and the laws that its cache, rows and masks obey."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmada_lite.errors import Error
from mmada_lite.export.checkpoint import TensorSource, TransformerConfig
from mmada_lite.train.model import MMaDA

GOLDEN = Path(__file__).parents[1] / "golden" / "llm"
NAMES = ("mha", "gqa", "realvocab")
TOLERANCE = 2e-4  # on logits that reach +-20, as golden/README.md recommends
TINY = TransformerConfig(32, 2, 4, 2, 48, 90, 1e4, 1e-5, 70, 71, 64, 16, 74, 4)


@pytest.fixture(scope="module")
def models() -> dict[str, MMaDA]:
    return {name: MMaDA.load(GOLDEN / name).requires_grad_(False) for name in NAMES}


@pytest.fixture(scope="module")
def recorded() -> dict[str, dict[str, Tensor]]:
    return {name: load_file(GOLDEN / name / "forward.safetensors") for name in NAMES}


def bias_of(mask: Tensor) -> Tensor:
    return (mask[:, :, None] & mask[:, None, :])[:, None]  # bool [B, 1, L, L]


def apart(ours: Tensor, theirs: Tensor, real: Tensor) -> float:
    return float((ours - theirs).detach().abs()[real].max())


@pytest.mark.parametrize("name", ["mha", "gqa"])
@pytest.mark.parametrize("kind", ["nomask", "bias", "floatbias01"])
def test_logits_equal_the_reference(
    models: dict[str, MMaDA], recorded: dict[str, dict[str, Tensor]], name: str, kind: str
) -> None:
    model, data = models[name], recorded[name]
    real = data["attention_mask"].bool()
    bias = {"nomask": None, "bias": bias_of(real), "floatbias01": bias_of(real).float()}[kind]
    output = model(data["input_ids"], bias=bias, keep_states=True)
    assert apart(model.logits(output.hidden), data[f"logits_{kind}"], real) < TOLERANCE
    if kind != "floatbias01":
        for state, expected in zip(output.states, data[f"hidden_states_{kind}"], strict=True):
            assert apart(state, expected, real) < TOLERANCE


@pytest.mark.parametrize("kind", ["nomask", "bias"])
def test_the_real_vocabulary_by_columns(models: dict[str, MMaDA], recorded: dict[str, dict[str, Tensor]], kind: str) -> None:
    model, data = models["realvocab"], recorded["realvocab"]
    real = data["attention_mask"].bool()
    output = model(data["input_ids"], bias=bias_of(real) if kind == "bias" else None, keep_states=True)
    logits = model.logits(output.hidden)
    assert apart(logits[..., data["columns"]], data[f"logits_{kind}_cols"], real) < TOLERANCE
    assert apart(logits.logsumexp(-1), data[f"logits_{kind}_logsumexp"], real) < TOLERANCE
    values, ids = logits.topk(8)
    assert torch.equal(ids[..., 0][real], data[f"logits_{kind}_top8_ids"][..., 0][real])
    assert apart(values, data[f"logits_{kind}_top8_values"], real) < TOLERANCE
    places = data["positions_full"]
    assert apart(logits[0, places], data[f"logits_{kind}_full_row0"], real[0, places]) < TOLERANCE
    if kind == "bias":
        assert apart(torch.stack(output.states, 2), data["hidden_states_bias"].movedim(0, 2), real) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_dropping_pads_equals_masking_them(models: dict[str, MMaDA], recorded: dict[str, dict[str, Tensor]], name: str) -> None:
    model, data = models[name], recorded[name]
    real = data["attention_mask"].bool()
    masked = model.logits(model(data["input_ids"], bias=bias_of(real)).hidden)
    for row, keep in enumerate(real):
        dropped = model.logits(model(data["input_ids"][row : row + 1, keep]).hidden)
        assert float((dropped[0] - masked[row, keep]).abs().max()) < TOLERANCE


def test_bfloat16_agrees_about_as_well_as_the_reference(recorded: dict[str, dict[str, Tensor]]) -> None:
    data = recorded["mha"]
    real = data["attention_mask"].bool()
    model = MMaDA.load(GOLDEN / "mha", dtype=torch.bfloat16)
    ours = model.logits(model(data["input_ids"], bias=bias_of(real)).hidden).float()
    wrong = (data["logits_bias_bf16model"] - data["logits_bias"]).abs()[real].max()
    assert apart(ours, data["logits_bias"], real) < 2 * wrong


@pytest.mark.parametrize("name", ["mha", "gqa"])
def test_a_fresh_past_equals_no_past(models: dict[str, MMaDA], recorded: dict[str, dict[str, Tensor]], name: str) -> None:
    """Keys and values of a full forward serve any window of it, as prefix and suffix in any order."""
    model, tokens = models[name], recorded[name]["input_ids"]
    full = model(tokens)
    window = torch.arange(8, 15).expand(tokens.shape[0], -1)
    rest = torch.tensor([*range(15, tokens.shape[1]), *range(8)])
    past = [(keys[:, :, rest], values[:, :, rest]) for keys, values in full.present]
    part = model(tokens[:, 8:15], positions=window, past=past)
    # Block inputs differ from the second layer on unless the past is exact, and here it is.
    assert float((part.hidden - full.hidden[:, 8:15]).abs().max()) < TOLERANCE
    for (keys, _), (expected, _) in zip(part.present, full.present, strict=True):
        assert keys.shape[2] == 7
        assert float((keys - expected[:, :, 8:15]).abs().max()) < TOLERANCE


def test_positions_follow_the_past(models: dict[str, MMaDA], recorded: dict[str, dict[str, Tensor]]) -> None:
    model, tokens = models["gqa"], recorded["gqa"]["input_ids"]
    past = model(tokens[:, :10]).present
    explicit = torch.arange(10, tokens.shape[1]).expand(tokens.shape[0], -1)
    assert torch.equal(model(tokens[:, 10:], past=past).hidden, model(tokens[:, 10:], positions=explicit, past=past).hidden)


def test_a_loss_computes_what_it_needs(models: dict[str, MMaDA], recorded: dict[str, dict[str, Tensor]]) -> None:
    """Hidden states and gradients at chosen positions are those of the whole forward, also where nothing is chosen."""
    model, tokens = copy.deepcopy(models["gqa"]).requires_grad_(True), recorded["gqa"]["input_ids"]
    chosen = torch.zeros(tokens.shape, dtype=torch.bool)
    assert model.hidden_at(tokens, chosen).shape == (0, model.config.d_model)
    chosen[0, 5:8], chosen[2, 11] = True, True
    part, full = model.hidden_at(tokens, chosen), model(tokens).hidden[chosen]
    torch.testing.assert_close(part, full, rtol=0, atol=1e-5)
    parameters = list(model.transformer.blocks.parameters())
    gradients = [torch.autograd.grad(states.square().sum(), parameters) for states in (part, full)]
    for one, other in zip(*gradients, strict=True):
        # An entry sums terms of every position that may cancel, in another order on another processor: a small entry is as
        # far off as a large one, so that the distance is compared with the largest.
        assert float((one - other).abs().max()) <= 2e-5 * float(other.abs().max())


def test_rows_and_columns_choose_without_changing(models: dict[str, MMaDA], recorded: dict[str, dict[str, Tensor]]) -> None:
    model, tokens = models["gqa"], recorded["gqa"]["input_ids"]
    queries = torch.tensor([[3, 1], [20, 20], [0, 23]])
    hidden = model(tokens).hidden
    chosen = model(tokens, rows=queries).hidden
    for row in range(3):
        torch.testing.assert_close(chosen[row], hidden[row, queries[row]], rtol=0, atol=1e-5)
    states = model(tokens, rows=queries, keep_states=True)
    torch.testing.assert_close(states.hidden, chosen, rtol=0, atol=1e-5)
    assert states.states[-1].shape == hidden.shape
    bias = torch.randn(3, 1, tokens.shape[1], tokens.shape[1], generator=torch.Generator().manual_seed(3))
    given = model(tokens, rows=queries, bias=bias).hidden
    for row, full in enumerate(model(tokens, bias=bias).hidden):
        torch.testing.assert_close(given[row], full[queries[row]], rtol=0, atol=1e-5)
    torch.testing.assert_close(model.logits(chosen, slice(246, 374)), model.logits(chosen)[..., 246:374], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_saving_and_loading_goes_around(tmp_path: Path, dtype: str) -> None:
    model = MMaDA(TINY)
    model.save(tmp_path, dtype, max_shard_size=20_000)
    assert len(TensorSource.open(tmp_path).files) > 1
    again = MMaDA.load(tmp_path)
    assert again.config == TINY
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor.to(getattr(torch, dtype)).float(), rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in again.parameters())


def test_names_are_the_references() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in MMaDA(TINY).state_dict().items()}
    assert shapes == TINY.expected_tensors()


def test_initialization_is_reproducible() -> None:
    first, second = MMaDA(TINY), MMaDA(TINY)
    for model in (first, second):
        model.initialize(torch.Generator().manual_seed(5))
    tokens = torch.arange(10)[None]
    assert torch.equal(first(tokens).hidden, second(tokens).hidden)


def test_the_training_attention_learns_what_the_fused_one_does() -> None:
    """Under bfloat16 on the CPU gradients take another path through attention: it must lead to the same place."""
    model = MMaDA(TINY)
    tokens = torch.randint(0, 90, (3, 16), generator=torch.Generator().manual_seed(0))
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = torch.nn.functional.cross_entropy(model.logits(model(tokens).hidden).float().flatten(0, 1), tokens.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert float(torch.nn.functional.cosine_similarity(gradients[0], gradients[1], dim=0)) > 0.999


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    MMaDA(TINY).save(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"mlp_hidden_size": 48', '"mlp_hidden_size": 50'))
    with pytest.raises(Error, match=r"ff_out\.weight is \[32, 48\] and should be \[32, 50\].* and 3 more"):
        MMaDA.load(tmp_path)
