"""The optimizer of our own training: Muon for the matrices inside the network, AdamW for everything else, and a running
average of the weights. Knows nothing of models beyond named parameters.

Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks") replaces the momentum of a matrix by the
nearest semi-orthogonal matrix, found with a quintic Newton-Schulz iteration.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, chosen there for speed near zero


def orthogonalize(matrix: Tensor, iterations: int = 5) -> Tensor:
    """The approximately nearest semi-orthogonal matrices of [..., rows, columns]; bfloat16 inside on a GPU: tolerated."""
    a, b, c = _COEFFICIENTS
    turned = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if turned else matrix
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    x = x.bfloat16() if x.is_cuda else x
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    nearest: Tensor = (x.mT if turned else x).to(matrix.dtype)
    return nearest


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay; convolutions are seen as [out, in * kernel].

    Where several processes hold the same parameters, each makes its share of the matrices orthogonal and they exchange them.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            wanted = [self._nesterov(parameter, group["momentum"]) for parameter in parameters]
            for parameter, direction in zip(parameters, self._directions(wanted), strict=True):
                rows, columns = direction.shape
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                scale = group["lr"] * math.sqrt(max(1.0, rows / columns))
                parameter.add_(_spread_like(direction.view(parameter.shape), parameter), alpha=-scale)

    def _nesterov(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state["momentum"], momentum)

    def _directions(self, wanted: list[Tensor]) -> list[Tensor]:
        gathered = [tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for tensor in wanted]
        flat = [tensor.flatten(1) for tensor in gathered]
        shared = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        world, rank = (dist.get_world_size(), dist.get_rank()) if shared else (1, 0)
        if not shared:
            return orthogonal(flat)
        own = [orthogonalize(m) if number % world == rank else torch.zeros_like(m) for number, m in enumerate(flat)]
        if not own:
            return own
        joined = torch.cat([matrix.flatten() for matrix in own])
        dist.all_reduce(joined)
        parts = torch.split(joined, [matrix.numel() for matrix in own])
        return [part.view_as(matrix) for part, matrix in zip(parts, own, strict=True)]


def orthogonal(matrices: list[Tensor]) -> list[Tensor]:
    """Those of one shape together: a small model on a GPU waits for the start of every product, not for the product."""
    results = list(matrices)
    for shape in dict.fromkeys(m.shape for m in matrices):
        alike = [number for number, m in enumerate(matrices) if m.shape == shape]
        for number, result in zip(alike, orthogonalize(torch.stack([matrices[n] for n in alike])), strict=True):
            results[number] = result
    return results


def _spread_like(full: Tensor, like: Tensor) -> Tensor:
    """A full tensor, cut as another is where that is sharded (FSDP2)."""
    return distribute_tensor(full, like.device_mesh, like.placements) if isinstance(like, DTensor) else full


def optimizers(
    model: nn.Module, matrices: set[str], *, muon_lr: float, adam_lr: float, decay: float
) -> list[torch.optim.Optimizer]:
    """Muon for the parameters of those names, AdamW for the rest. Parameters without gradient belong to neither."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    inner = [p for name, p in named if name in matrices]
    rest = [p for name, p in named if name not in matrices]
    muon: list[torch.optim.Optimizer] = [Muon(inner, muon_lr, 0.95, decay)] if inner else []
    return [*muon, torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0)] if rest else muon


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to `factor` times the one that it was made with."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("highest", group["lr"]) * factor


class Average:
    """Exponential moving average of a model's parameters, warmed up so that early weights do not linger."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def full(self) -> dict[str, Tensor]:
        """The averaged parameters by name, gathered where they are sharded."""
        return {name: v.full_tensor() if isinstance(v, DTensor) else v for name, v in self.values.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"decay": self.decay, "values": self.full()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in self.values.items():
            value.copy_(_spread_like(state["values"][name].to(value.device), value))

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 10))
        for name, parameter in model.named_parameters():
            if name in self.values:
                self.values[name].lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the model's weights and the average; calling it again brings both back."""
        for name, parameter in model.named_parameters():
            if name not in self.values:
                continue
            average = self.values[name].clone()
            self.values[name].copy_(parameter)
            parameter.copy_(average)


def trapezoid(step: int, steps: int, warmup: int, decay: float = 0.6, floor: float = 0.02) -> float:
    """Learning-rate factor: up over `warmup` steps, flat, then down to `floor` over the last share `decay` of the run.

    While it is flat, `steps` can still be changed on resuming.
    """
    left = (steps - step) / max(1.0, decay * steps)
    return min((step + 1) / warmup, 1.0, floor + (1 - floor) * left)


def warm_cosine(step: int, steps: int, warmup: int, floor: float = 0.02) -> float:
    """Learning-rate factor: linear up over `warmup` steps, then a cosine down to `floor` at the end."""
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))
