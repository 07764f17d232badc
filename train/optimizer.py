"""The optimizer of our own training: Muon for the matrices inside the network, AdamW for everything else, and a running
average of the weights. Knows nothing of models beyond named parameters.

Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks") replaces the momentum of a matrix by the
nearest semi-orthogonal matrix, found with a quintic Newton-Schulz iteration.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmada_lite.train.parallel import Workers

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, chosen there for speed near zero


def orthogonalize(matrix: Tensor, iterations: int = 5) -> Tensor:
    """The approximately nearest semi-orthogonal matrix [rows, columns]; bfloat16 inside, which the iteration tolerates."""
    a, b, c = _COEFFICIENTS
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = (x / (x.norm() + 1e-7)).bfloat16()
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    turned: Tensor = x.T if matrix.shape[0] > matrix.shape[1] else x
    return turned.to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay; convolutions are seen as [out, in * kernel]."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.workers: Workers | None = None  # where set, its threads share the matrices

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for parameter in parameters:  # here, because the table of states is not made for several writers
                if not self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            if self.workers is None:
                for parameter in parameters:
                    self._update(parameter, group)
            else:
                self.workers.each(partial(self._update, group=group), parameters)

    @torch.no_grad()
    def _update(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        gradient, momentum = parameter.grad, self.state[parameter]["momentum"]
        assert gradient is not None
        momentum.lerp_(gradient, 1 - group["momentum"])
        nesterov = gradient.lerp(momentum, group["momentum"])
        direction = orthogonalize(nesterov.flatten(1))
        rows, columns = direction.shape
        scale = group["lr"] * math.sqrt(max(1.0, rows / columns))
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(direction.view_as(parameter), alpha=-scale)


class Optimizer:
    """Muon and AdamW as one, with a shared factor on both learning rates."""

    def __init__(self, model: nn.Module, matrix_names: set[str], *, muon_lr: float, adam_lr: float, decay: float) -> None:
        matrices = [p for name, p in model.named_parameters() if name in matrix_names]
        rest = [p for name, p in model.named_parameters() if name not in matrix_names]
        self._rates = (muon_lr, adam_lr)
        self.muon = Muon(matrices, muon_lr, 0.95, decay)
        self.adam = torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0)

    def step(self, factor: float) -> None:
        for optimizer, rate in zip((self.muon, self.adam), self._rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


class Average:
    """Exponential moving average of a model's parameters, warmed up so that early weights do not linger."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 10))
        for name, parameter in model.named_parameters():
            self.values[name].lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the model's weights and the average; calling it again brings both back."""
        for name, parameter in model.named_parameters():
            held = self.values[name].clone()
            self.values[name].copy_(parameter)
            parameter.copy_(held)


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
