"""What training does against recorded numbers (golden/README.md: prompting, loss, rl): padded rows, chats, maskings, losses.

It reads the recordings and calls `train.prompting`, `train.objectives` and `train.policy`, which hold the laws; nothing is
decoded here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmada_lite.bench.parity.replay import Comparison
from mmada_lite.contracts import read_json
from mmada_lite.decoding.rows import chat_ids, picture_prompt
from mmada_lite.train import prompting
from mmada_lite.vocabulary import SpecialTokens, Tokenizer, Vocabulary

if TYPE_CHECKING:
    from torch import Tensor

    from mmada_lite.train.model import MMaDA
    from mmada_lite.train.policy import MaskedCopies, Objective

LOSS, GRADIENT, SHARE = 1e-5, 1e-3, 1e-6  # relative, relative, absolute
LOG_PROBABILITY = 1e-4  # absolute, natural log


def compare_prompts(name: str, folder: Path) -> Iterator[Comparison]:
    """Every recorded builder's rows, the tokenizer's ids behind them, and the chat template. Exact."""
    for number, case in enumerate(read_json(folder / "prompting.json")["cases"]):
        tokenizer = Tokenizer.from_file(folder / case["tokenizer"] / "tokenizer.json")
        vocabulary = Vocabulary.from_tokenizer(tokenizer, codebook_size=8192, size=134656)
        label = f"{name}/{number:02d} {case['task']} {case['tokenizer']} {case['max_text_len']}"
        wrong = [float(len(tokenizer) != case["len_tokenizer_after_init"])]
        for key, ours in _built(case, tokenizer, vocabulary).items():
            wrong += [float(_plain(ours) != case[key])] if key in case else []
        yield Comparison(label, f"{len(wrong)} tables of ids and masks", sum(wrong), 0)


def _plain(values: Any) -> Any:
    return values.tolist() if isinstance(values, np.ndarray) else values


def _built(case: dict[str, Any], tokenizer: Tokenizer, vocabulary: Vocabulary) -> dict[str, Any]:
    """What our builders give for a case, under the case's own keys."""
    if case["task"] == "chat_template":
        return _chat(case, tokenizer, vocabulary)
    if case["task"] == "lm_generate_batch_left_padded":
        texts = [tokenizer.encode(text, special=True) for text in case["rendered"]]
        ids, mask = prompting.left_padded(texts, case["pad_token_id"])
        return {"input_ids": ids, "attention_mask": mask}
    given = case["texts"] if "texts" in case else case["prompts"]
    return _rows(case, vocabulary.special) | {"text_ids": [tokenizer.encode(text, special=True) for text in given]}


def render_chat(messages: Sequence[Mapping[str, str]]) -> str:
    """The chat template as text: what the reference's template gives, generation header included."""
    turns = (f"<|start_header_id|>{m['role']}<|end_header_id|>\n{m['content'].strip()}<|eot_id|>" for m in messages)
    bos = "<|startoftext|>" if messages else ""
    return bos + "".join(turns) + "<|start_header_id|>assistant<|end_header_id|>\n"


def _chat(case: dict[str, Any], tokenizer: Tokenizer, vocabulary: Vocabulary) -> dict[str, Any]:
    ids = chat_ids(tokenizer, vocabulary, case["messages"])
    return {
        "rendered": render_chat(case["messages"]),
        "token_ids": ids,
        "tokenizer_call_ids": tokenizer.encode(case["rendered"], special=True),
        "mmu_inference_input_ids": picture_prompt(case["codes"], vocabulary) + ids,
        "image_code_offset": vocabulary.image_code_offset,
    }


def _rows(case: dict[str, Any], special: SpecialTokens) -> dict[str, Any]:
    task, texts, length = case["task"], case["text_ids"], case["max_text_len"]
    pictures: Any = case.get("image_ids")
    if task == "mmu_gen_prompt":
        ids, masks = prompting.asking_prompts(texts, pictures, special, length)
        return {"input_ids": ids, "prompt_mask": masks}
    if task in ("t2i_gen", "t2i"):
        drop = [u < case["cond_dropout_prob"] for u in case["dropout_uniform"]] if task == "t2i" else None
        rows = prompting.painting_rows(texts, pictures, special, length, case.get("image_labels"), drop)
    elif task == "mmu":
        rows = prompting.asking_rows(texts, pictures, special, length)
    elif task == "r2i":
        rows = prompting.reasoning_rows(texts, pictures, special, length)
    else:
        rows = prompting.text_rows(texts, special, case["max_seq_len"], chat=task == "lm_chat")
    mask = dict.fromkeys(("attention_mask", "prompt_mask", "mask"), rows.mask)
    return {"input_ids": rows.input_ids, "labels": rows.labels, **mask}


def compare_losses(name: str, folder: Path, models: Path) -> Iterator[Comparison]:
    """The reference's losses of every recorded run, the gradient norms of one, and the maskings of pictures."""
    from safetensors.torch import load_file

    from mmada_lite.train.model import MMaDA

    case = read_json(folder / "case.json")
    model, data = MMaDA.load(models / case["model"]), load_file(folder / "inputs.safetensors")
    for run, expected in case["expected"].items():
        if run.startswith("forward"):
            for task, loss in _reference_run(model, data, case, run).items():
                apart = _relative(float(loss.detach()), expected[task])
                yield Comparison(f"{name}/{run}", f"{task} loss, relative", apart, LOSS)
    yield _gradients(name, model, data, case)
    yield from _maskings(name, folder, case["mask_id"])


def _reference_run(model: "MMaDA", data: "dict[str, Tensor]", case: dict[str, Any], run: str) -> "dict[str, Tensor]":
    """The losses of one recorded run of the reference, through our model."""
    import torch

    from mmada_lite.train import objectives
    from mmada_lite.train.objectives import TextRows

    ids, labels, masks, t2i = data["input_ids"], data["labels"], data["t2i_masks"], case["batch_size_t2i"]
    lengths = None if "no_answer" in run or "t2i_0" in run else data["answer_lengths_lm"]
    texts = {"lm": TextRows(data["p_mask_lm"], lengths), "mmu": TextRows(data["p_mask_mmu"], data["answer_lengths"])}
    if run == "forward_t2i":
        ids, labels, texts = ids[:t2i], labels[:t2i], {}
    elif run == "forward_process_with_r2i":
        ids, labels = torch.cat((ids, data["r2i_input_ids"])), torch.cat((labels, data["r2i_labels"]))
        texts["r2i"] = TextRows(data["p_mask_r2i"], data["answer_lengths_r2i"])
    elif run == "forward_process_batch_size_t2i_0":
        ids, labels, masks, t2i = ids[t2i:], labels[t2i:], masks[:0], 0
    logits = model.logits(model(ids, bias=objectives.reference_bias(masks, len(ids))).hidden)
    return objectives.reference_losses(logits, ids, labels, case["mask_id"], t2i, case["max_seq_length"], texts)


def _gradients(name: str, model: "MMaDA", data: "dict[str, Tensor]", case: dict[str, Any]) -> Comparison:
    import torch

    expected = case["expected"]["gradient_l2_norms_of_t2i_plus_0.1_lm_plus_mmu"]
    model.zero_grad()
    parts = _reference_run(model, data, case, "forward_process")
    torch.autograd.backward(parts["t2i"] + 0.1 * parts["lm"] + parts["mmu"])
    norms = {key: float(p.grad.norm()) for key, p in model.named_parameters() if p.grad is not None}
    worst = max(_relative(norms.get(key, float("inf")), value) for key, value in expected.items())
    return Comparison(f"{name}/gradients", "norm of every parameter, relative", worst, GRADIENT)


def _maskings(name: str, folder: Path, mask_id: int) -> Iterator[Comparison]:
    import torch
    from safetensors.torch import load_file

    from mmada_lite.train import objectives

    tensors = load_file(folder / "masking.safetensors")
    for given in read_json(folder / "masking.json"):
        prefix = given["prefix"]
        recorded = {key.split(".")[1]: t for key, t in tensors.items() if key.startswith(prefix + ".")}
        everything = given.get("predict_all_tokens", False)
        ours = objectives.mask_picture(
            recorded["tokens"],
            recorded["timestep_uniform"],
            recorded["order_uniform"],
            given.get("mask_id", mask_id),
            given["schedule"],
            given["min_masking_rate"],
            everything,
        )
        wrong = float((ours.input_ids != recorded["input_ids"]).sum() + (ours.labels != recorded["labels"]).sum())
        yield Comparison(f"{name}/masking {prefix}", "ids and labels", wrong, 0)
        shares = torch.abs(ours.probability - recorded["mask_prob"]).max()
        weights = torch.abs(ours.weight - recorded["loss_weight"]).max() if everything else torch.zeros(())
        yield Comparison(f"{name}/masking {prefix}", "probability and weight", float(torch.maximum(shares, weights)), SHARE)


def compare_policy(name: str, folder: Path, models: Path) -> Iterator[Comparison]:
    """The policy objective: masked copies, log-probabilities, losses, the gradient norm over all parameters, advantages."""
    import torch
    from safetensors.torch import load_file

    from mmada_lite.train.model import MMaDA
    from mmada_lite.train.policy import Objective, group_advantages

    info = read_json(folder / "case.json")
    model, tensors = MMaDA.load(models / info["model"]), load_file(folder / "case.safetensors")
    for case in info["cases"]:
        label, prefix = f"{name}/{case['prefix']} {case['method']}", case["prefix"] + "."
        recorded = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
        copies = _masked_copies(case, info, recorded, tensors)
        pairs = ((copies.tokens, "noisy"), (copies.targets, "labels"), (copies.chosen, "p_mask"))
        wrong = sum(_unequal(ours, recorded[key]) for ours, key in pairs)
        rewards = torch.tensor(info["rewards"])[copies.row]
        wrong += _unequal(rewards, torch.tensor(case["row_rewards"]))
        yield Comparison(label, f"{len(copies.row)} masked copies and their rewards", wrong, 0)
        if wrong:
            continue  # what follows is about these very copies
        new = _log_probabilities(model, copies, torch.ones_like(copies.chosen))
        apart = float((new.detach() - recorded["logp_new"]).abs().max())
        yield Comparison(label, "log-probability of every token", apart, LOG_PROBABILITY)
        for given in case["losses"]:
            estimator = "k3" if given["use_kl_estimator_k3"] else "difference"
            objective = Objective(given["eps"], given["beta"], estimator)  # type: ignore[arg-type]
            yield from _policy_step(label, model, copies, recorded["logp_old"], rewards, objective, given)
    for number, given in enumerate(info["z_score"]):
        ours = group_advantages(torch.tensor(given["rewards"], dtype=torch.float64))
        apart = float((ours - torch.tensor(given["advantages"], dtype=torch.float64)).abs().max())
        yield Comparison(f"{name}/z_score {number}", "advantages of a group", apart, SHARE)


def compare_ends(name: str, folder: Path, models: Path) -> Iterator[Comparison]:
    """UniGRPO as stage three has it, on texts that end early: what is masked, the loss, the gradient norm. Recorded by loops
    from the formulas, not by published code (rl/README.md)."""
    import torch
    from safetensors.torch import load_file

    from mmada_lite.train.model import MMaDA
    from mmada_lite.train.policy import UNIGRPO, Draws, noised_copies, policy_loss
    from mmada_lite.train.stage_three import ended

    info = read_json(folder / "ends.json")
    model, tensors = MMaDA.load(models / info["model"]), load_file(folder / "ends.safetensors")
    ids, start, every = tensors["full_ids"], info["prompt_len"], len(tensors["t_uniform"])
    counted, region = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    counted[:, start:] = torch.from_numpy(ended(ids[:, start:].numpy(), info["eot_id"], info["eos_id"], info["mask_id"])[1])
    region[:, start:] = True
    draws = Draws(tensors["t_uniform"], tensors["pos_uniform"])
    for case in info["cases"]:
        label, prefix = f"{name}/{case['prefix']} ends, update {case['turn'] + 1} of {info['updates']}", case["prefix"] + "."
        recorded = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
        copies = noised_copies(ids, counted, region, info["mask_id"], draws, case["turn"], info["updates"])
        pairs = ((copies.tokens, "noisy"), (copies.targets, "labels"), (copies.chosen, "p_mask"))
        wrong = sum(_unequal(ours, recorded[key]) for ours, key in pairs) + _unequal(copies.row, torch.tensor(case["rows"]))
        yield Comparison(label, f"{len(copies.row)} masked copies", wrong, 0)
        if wrong:
            continue
        model.zero_grad()
        new, length = _log_probabilities(model, copies, copies.chosen), counted.sum(1)[copies.row]
        gains = torch.tensor(info["advantages"])[copies.row]
        old, reference = recorded["logp_old"], recorded["logp_ref"]
        loss = len(copies.row) / every * policy_loss(new, old, copies.chosen, gains, UNIGRPO, reference, length).total
        torch.autograd.backward(loss)
        norm = float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm())
        yield Comparison(label, "loss, relative", _relative(float(loss.detach()), case["loss"]), LOSS)
        yield Comparison(label, "gradient norm, relative", _relative(norm, case["global_grad_norm"]), GRADIENT)


def _masked_copies(
    case: dict[str, Any], info: dict[str, Any], recorded: "dict[str, Tensor]", tensors: "dict[str, Tensor]"
) -> "MaskedCopies":
    import torch

    from mmada_lite.train import policy

    ids, start, mask_id = tensors["full_ids"], case["start_pos"], info["mask_id"]
    response = torch.zeros_like(ids, dtype=torch.bool)
    response[:, start:] = True
    late = policy.late_pads(ids, response, info["pad_id"], case["post_num"])
    if case["method"] == "TraceRL":
        order = torch.zeros_like(ids)
        order[:, start:] = tensors["step_map"]
        return policy.trace_copies(ids, response, order, mask_id, case["shrink"], late)
    draws = policy.Draws(recorded["t_uniform"], recorded["pos_uniform"])
    bounds, coupled = (case["lower_p"], case["upper_p"]), case["method"] == "coupled"
    return policy.random_copies(ids, response, mask_id, draws, bounds, coupled, late)


def _log_probabilities(model: "MMaDA", copies: "MaskedCopies", asked: "Tensor") -> "Tensor":
    from mmada_lite.train.policy import token_log_probabilities

    return token_log_probabilities(model.logits(model(copies.tokens).hidden[asked]), copies.targets, asked)


def _policy_step(
    label: str,
    model: "MMaDA",
    copies: "MaskedCopies",
    old: "Tensor",
    rewards: "Tensor",
    objective: "Objective",
    expected: dict[str, Any],
) -> Iterator[Comparison]:
    """One loss and its gradients, through the masked positions alone."""
    import torch

    from mmada_lite.train.policy import policy_loss

    model.zero_grad()
    new = _log_probabilities(model, copies, copies.chosen)
    loss = policy_loss(new, old, copies.chosen, rewards, objective).total
    torch.autograd.backward(loss)
    norm = float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm())
    what = f"clip {objective.clip} beta {objective.beta} {objective.estimator}"
    apart = abs(float(loss.detach()) - expected["loss"]) / _size_of_terms(new.detach(), old, copies, rewards, objective)
    yield Comparison(label, f"{what}: loss, relative to its terms", apart, LOSS)
    yield Comparison(label, f"{what}: gradient norm, relative", _relative(norm, expected["global_grad_norm"]), GRADIENT)


def _size_of_terms(new: "Tensor", old: "Tensor", copies: "MaskedCopies", rewards: "Tensor", objective: "Objective") -> float:
    """The policy loss with every gain, and every log-probability that a divergence is a difference of, taken by its size. Both
    nearly cancel, and what is left has the rounding of the terms, which is another on every processor."""
    from mmada_lite.train.policy import policy_loss

    chosen, plain = copies.chosen, replace(objective, estimator="difference")
    lost, won = (policy_loss(new, old, chosen, part, objective).policy for part in (rewards.clamp(max=0), rewards.clamp(min=0)))
    apart = policy_loss(new.abs(), -old.abs(), chosen, rewards, plain).divergence
    return float(lost - won + objective.beta * apart)


def _unequal(ours: "Tensor", recorded: "Tensor") -> float:
    """How many entries differ; infinitely many when the shapes do."""
    return float((ours != recorded).sum()) if ours.shape == recorded.shape else float("inf")


def _relative(ours: float, recorded: float) -> float:
    return abs(ours - recorded) / max(abs(recorded), 1e-12)
