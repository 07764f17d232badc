"""Gradients of a batch in pieces, on threads that take the next piece when they are free: on a shared machine a busy core then
slows the work by its share, where a fork-join of every operation would wait for it. Knows nothing of what the pieces compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

Piece = Callable[[], tuple[Tensor, dict[str, float]]]  # a scalar loss and its parts, to be logged


class Workers:
    """Threads, each of which runs torch's operations by itself."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def gradients(self, model: nn.Module, pieces: Sequence[Piece]) -> list[dict[str, float]]:
        """Set every parameter's gradient to that of the sum of the pieces' losses; the parts, piece by piece.

        Summed in the order of the pieces, so that the result does not depend on which thread was faster.
        """
        parameters = [p for p in model.parameters() if p.requires_grad]

        def run(piece: Piece) -> tuple[Sequence[Tensor | None], dict[str, float]]:
            loss, parts = piece()
            return torch.autograd.grad(loss, parameters, allow_unused=True), parts

        results = list(self._pool.map(run, pieces))
        for index, parameter in enumerate(parameters):
            found = [g for gradients, _ in results if (g := gradients[index]) is not None]
            parameter.grad = torch.stack(found).sum(0) if found else None
        return [parts for _, parts in results]

    def each(self, function: Callable[[nn.Parameter], None], items: Sequence[nn.Parameter]) -> None:
        """Call the function on every item, spread over the threads."""
        list(self._pool.map(function, items))

    def close(self) -> None:
        self._pool.shutdown()
