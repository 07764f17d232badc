"""All layers of a checkpoint in turn, one of them in memory at a time: codes go into a work folder as they are found, and a
conversion that was killed goes on with the layer after the last finished one, to the same result.

Units of the work folder: `states-N` (what layer N reads), `layer-N` and the heads (codes and factors). It knows the order of
things; how a layer is rounded is `block_rounding`, what a unit is on the disk `work_folder`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mmada_lite.export.lowering import WeightSpec
from mmada_lite.quant.block_rounding import Batch, BlockRounder, HeadSample, aligned, embed, load_block, round_head
from mmada_lite.quant.calibration import Sample, grouped_by_length
from mmada_lite.quant.methods import Method
from mmada_lite.quant.sources import codes_to_arrays
from mmada_lite.quant.transforms import OUTPUT_MATRIX, ROOT, SITES, TransformedTensors
from mmada_lite.quant.work_folder import WorkFolder

_TASKS_OF_HEAD = {"text_head": ("ask", "chat"), "image_head": ("paint",)}


@dataclass(slots=True)
class _States:
    """What a layer reads, [B, L, D] of each batch: of the model that is being rounded and, with gptaq, of the exact one."""

    rounded: list[torch.Tensor]
    exact: list[torch.Tensor] | None


class LayerPipeline:
    """A conversion on its way through the layers. image_rows: the rows of the output matrix that are codes of pictures."""

    def __init__(
        self,
        tensors: TransformedTensors,
        method: Method,
        specs: Mapping[str, WeightSpec],
        image_rows: slice,
        work: WorkFolder,
        samples: Sequence[Sample],
        report: Callable[[str], None],
    ) -> None:
        self.tensors, self.config, self.method, self.specs = tensors, tensors.config, method, specs
        self.work, self.report = work, report
        self.batches = [Batch.of(group) for group in grouped_by_length(samples)]
        self.head_rows = {"text_head": slice(0, tensors.shape(OUTPUT_MATRIX)[0]), "image_head": image_rows}

    def run(self) -> None:
        """Bring the work folder to its end: codes of every layer and head."""
        for layer in range(self.config.n_layers):
            finished = self.work.has(f"layer-{layer}")
            if finished:
                self._restore_factors(layer)
                if self.work.has(f"states-{layer + 1}") or self.work.has(f"layer-{layer + 1}"):
                    continue
            self.report(f"layer {layer + 1} of {self.config.n_layers}")
            states = self._load_states(layer)
            self._advance(layer, states, finished)
            self._save_states(layer + 1, states)
            self.work.drop(f"states-{layer}")
        if self.method.compensates:
            self._round_heads()

    def _advance(self, layer: int, states: _States, finished: bool) -> None:
        """Round one layer and save it, unless that was finished before; the states become those that the next one reads."""
        factors: dict[str, np.ndarray] = {}
        if self.method.smooth and not finished and not self.specs["backbone"].format.floating:
            factors = self._rounder(layer).smoothing_factors(states.rounded, self.batches)
            self.tensors.transforms.factors.update({(layer, site): values for site, values in factors.items()})
            self.tensors.forget()
        codes = self._rounder(layer).advance(states.rounded, self.batches, states.exact)
        self.tensors.forget()
        if not finished:
            arrays = {f"factors.{site}": values for site, values in factors.items()}
            for matrix, quantized in codes.items():
                arrays |= codes_to_arrays(matrix, quantized)
            self.work.save(f"layer-{layer}", arrays)

    def _rounder(self, layer: int) -> BlockRounder:
        block = load_block(self.tensors, self.config, layer)
        return BlockRounder(block, self.config, self.method, self.specs["backbone"], f"{ROOT}.blocks.{layer}")

    def _round_heads(self) -> None:
        """Each head for the tasks that read it. One that no task reads is left to be rounded alone."""
        for head, tasks in _TASKS_OF_HEAD.items():
            if self.specs[head].format.floating or self.work.has(head):
                continue
            states = self._load_states(self.config.n_layers)
            samples = [
                HeadSample(batch, states.rounded[i], states.exact[i] if states.exact else None)
                for i, batch in enumerate(self.batches)
                if batch.task in tasks
            ]
            if samples:
                self.report(head.replace("_", " "))
                quantized = round_head(self.tensors, samples, self.head_rows[head], self.specs[head])
                self.work.save(head, codes_to_arrays("ff_out", quantized))

    def _restore_factors(self, layer: int) -> None:
        """The factors of a finished layer, folded in again."""
        arrays = self.work.load(f"layer-{layer}")
        for site in SITES:
            if f"factors.{site}" in arrays:
                self.tensors.transforms.factors[layer, site] = np.array(arrays[f"factors.{site}"])

    def _load_states(self, layer: int) -> _States:
        if layer == 0:
            states = embed(self.tensors, self.batches)
            return _States(states, list(states) if self.method.rounding == "gptaq" else None)
        arrays = self.work.load(f"states-{layer}")
        states = [aligned(np.asarray(arrays[name])) for name in sorted(arrays)]
        return _States(states[: len(self.batches)], states[len(self.batches) :] or None)

    def _save_states(self, layer: int, states: _States) -> None:
        """Of all batches, then the exact ones."""
        every = [*states.rounded, *(states.exact or ())]
        self.work.save(f"states-{layer}", {f"{number:05d}": x.numpy() for number, x in enumerate(every)})
