"""Stage three, UniGRPO (MMaDA, arXiv 2505.15809, section 3.3): groups of responses to a prompt, advantages within the group,
masked copies of every response, clipped ratios and a divergence from the model that the stage began with. Text, understanding
and drawing are one case. Knows what a step does, and in which order; objective, rewards, rollouts and loop are elsewhere.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmada_lite.decoding.rows import picture_end, picture_part, unconditional_prompt
from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.errors import Error, did_you_mean
from mmada_lite.train import rollouts
from mmada_lite.train.denoiser import TorchDenoiser
from mmada_lite.train.loop import Loop, LoopSettings, Piece
from mmada_lite.train.model import MMaDA
from mmada_lite.train.policy import (
    UNIGRPO,
    WHOLE,
    Draws,
    MaskedCopies,
    Objective,
    group_advantages,
    noised_copies,
    policy_loss,
    token_log_probabilities,
    trace_copies,
)
from mmada_lite.train.progress import step_generator
from mmada_lite.train.prompts import Prompt, Source
from mmada_lite.train.rewards import Classifier, SeenTogether, weigh
from mmada_lite.vocabulary import Tokenizer, Vocabulary

Decode = Callable[[NDArray[np.int64]], NDArray[np.uint8]]  # codes [B, N] -> pictures [B, H, W, 3]
Ends = Literal["masked", "counted", "shown"]


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """Stage three: what is asked, how it is rewarded, and how far a step may go.

    tasks: names of train/prompts.sources in turn, one a batch. rewards: by task, weights of train/rewards. text, image: how
    responses are drawn; a drawing is learned under the guidance that it was drawn with. prompts, group: prompts of a batch and
    responses to each. together: responses decoded at once, more on a GPU. updates: steps on the same responses. copies: masked
    copies of a response. trace: copies hide at random, at ratios of their own (None, as in UniGRPO), or they are what the
    decoding had before it when it took so many steps, which alone are counted (TraceRL). ratios: the mask ratios of copies at
    random. ends: what follows the first end of a text is masked in those and not counted, or it is masked at random and counted
    as any token (both are in dLLM-RL), or it is shown, which gives the length away: for ablations alone. skip_ties: groups
    whose responses all earn alike are left out of the updates, which they could only hold back (DAPO, arXiv 2503.14476).
    """

    tasks: tuple[str, ...]
    rewards: Mapping[str, Mapping[str, float]]
    loop: LoopSettings
    text: TextSettings
    image: ImageSettings
    prompts: int = 8
    group: int = 8
    together: int = rollouts.ROWS  # responses decoded at once
    updates: int = 2
    copies: int = 2
    trace: int | None = None
    ratios: tuple[float, float] = WHOLE
    ends: Ends = "masked"
    skip_ties: bool = False
    objective: Objective = UNIGRPO
    seed: int = 0

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in self.rewards:
                raise Error(f"the task {task!r} has no rewards; those that have some are {', '.join(self.rewards) or 'none'}")
        if self.prompts < 1 or self.updates < 1 or self.copies < 1:
            raise Error(f"prompts {self.prompts}, updates {self.updates} and copies {self.copies} are whole numbers from 1")
        if self.trace is not None and self.trace < 1:
            raise Error(f"trace is {self.trace}: give the decoding steps that a copy counts, 1 or more, or None")
        if self.loop.steps % self.updates:
            raise Error(f"{self.loop.steps} steps are no multiple of {self.updates} updates on the same responses; use one")
        if not 0 <= self.ratios[0] < self.ratios[1] <= 1:
            raise Error(
                f"mask ratios from {self.ratios[0]:g} to {self.ratios[1]:g} cannot be: give two within 0..1, the lower first"
            )
        if self.ends not in get_args(Ends):
            raise Error(f"ends is {self.ends!r}; use one of {', '.join(get_args(Ends))}")
        if (self.text.temperature, self.image.sampling_temperature) != (1, 1):
            raise Error(
                "stage three learns from what is drawn at temperature 1: set text.temperature and sampling_temperature to 1"
            )
        if self.group < 2:
            raise Error(f"group is {self.group}; an advantage needs at least 2 responses to compare")


class Responses(NamedTuple):
    """Prompts and responses [B, L]: tokens, which of them are counted, the decoding step that wrote each (0 in the prompt; one
    more than all in the region of a response that was never reached)."""

    targets: Tensor  # int64
    counted: Tensor  # bool
    region: Tensor  # bool, every position of the response, counted or not
    order: Tensor  # int64

    @property
    def late(self) -> Tensor:
        """What follows the first end of a response, or was never reached, bool [B, L]."""
        return self.region & ~self.counted


@dataclass(slots=True)
class Policy:
    """The model as it decodes: what rollouts ask for."""

    model: MMaDA
    tokenizer: Tokenizer
    vocabulary: Vocabulary

    @property
    def denoiser(self) -> TorchDenoiser:
        offset = self.vocabulary.image_code_offset
        return TorchDenoiser(self.model, slice(offset, offset + self.vocabulary.codebook_size))


class Guided(NamedTuple):
    """How drawings are guided: (1 + scale) * conditional - scale * unconditional logits. nothing: ids of the unconditional
    prompt; body: tokens from the first code to the end of the row."""

    scale: float
    nothing: tuple[int, ...]
    body: int


class PolicyObjective(nn.Module):
    """The policy loss of a piece of masked copies."""

    def __init__(self, model: MMaDA, objective: Objective, codes: tuple[int, int], guided: Guided) -> None:
        super().__init__()
        self.model, self.objective, self.codes, self.guided = model, objective, codes, guided

    def forward(
        self,
        tokens: Tensor,  # int64 [C, L] with masks
        targets: Tensor,  # int64 [C, L]
        chosen: Tensor,  # bool [C, L]
        old: Tensor,  # float32 [C, L] log-probabilities before the batch
        reference: Tensor,  # float32 [C, L] of the model that the stage began with
        advantages: Tensor,  # float32 [C]
        length: Tensor,  # int64 [C] tokens of the response that a copy was made from
        drawing: Tensor,  # bool [C] codes rather than text
        total: Tensor,  # float32 [C] copies of the whole batch, with those that hide nothing
    ) -> tuple[Tensor, dict[str, Tensor]]:
        new = self.log_probabilities(tokens, targets, chosen, bool(drawing[0]))
        parts = policy_loss(new, old, chosen, advantages, self.objective, reference, length)
        share = len(tokens) / total[0]
        logged = {"policy": parts.policy, "divergence": parts.divergence, "clipped": parts.clipped}
        return share * parts.total, {name: torch.stack([v.detach(), v.new_tensor(1.0)]) for name, v in logged.items()}

    def log_probabilities(self, tokens: Tensor, targets: Tensor, chosen: Tensor, drawing: bool) -> Tensor:
        """Of the targets at the chosen positions [C, L]; of a drawing as it is sampled, among the codes alone and guided."""
        hidden = self.model.hidden_at(tokens, chosen)
        if not drawing:
            return token_log_probabilities(self.model.logits(hidden), targets, chosen)
        scale, nothing, body = self.guided
        if scale > 0:
            prompts = torch.tensor(nothing, device=tokens.device).expand(len(tokens), -1)
            plain = torch.cat((prompts, tokens[:, -body:]), dim=1)
            there = torch.cat((torch.zeros_like(prompts, dtype=torch.bool), chosen[:, -body:]), dim=1)
            hidden = (1 + scale) * hidden - scale * self.model.hidden_at(plain, there)
        return token_log_probabilities(self.model.logits(hidden, slice(*self.codes)), targets, chosen, self.codes[0])


class StageThree:
    """A run of UniGRPO: model, the frozen model that it began with, and its state in `folder`."""

    def __init__(
        self,
        policy: Policy,
        folder: Path,
        settings: PolicySettings,
        sources: Mapping[str, Source],
        decode: Decode | None = None,
        classify: Classifier | None = None,
    ) -> None:
        for task in settings.tasks:
            if task not in sources:
                raise Error(f"no task is called {task!r}; {did_you_mean(task, sources, f'use {list(sources)}')}")
        self.policy, self.settings, self.sources, self.decode = policy, settings, sources, decode
        self.seen = None if classify is None else SeenTogether(classify)
        self.rewards = {task: weigh(settings.rewards[task], self.seen) for task in settings.tasks}
        offset = policy.vocabulary.image_code_offset
        span = (offset, offset + policy.vocabulary.codebook_size)
        body = policy.model.config.num_vq_tokens + len(picture_end(policy.vocabulary))
        guided = Guided(settings.image.guidance, tuple(unconditional_prompt(policy.vocabulary)), body)
        frozen = copy.deepcopy(policy.model).eval().requires_grad_(False)
        self.reference = PolicyObjective(frozen, settings.objective, span, guided)
        objective = PolicyObjective(policy.model, settings.objective, span, guided)
        how = replace(settings.loop, align=settings.updates)
        # AdamW alone: Muon makes every direction of a gradient as strong as its strongest, and most of this one is noise.
        self.loop = Loop(objective, set(), folder, how, lambda step: min(1.0, (step + 1) / 5))
        self.objective = objective
        self.reference.to(self.loop.accelerator.device)
        self._pieces: list[list[Piece]] = []

    def train(self, until: int | None = None) -> None:
        """Go on to the last step (or stop before step `until`)."""
        self.loop.run(self._batch, until)

    def _batch(self, step: int) -> list[Piece]:
        turn, number = step % self.settings.updates, step // self.settings.updates
        if turn == 0:
            with self.loop.gathered():
                self._pieces = self._respond(number)
        return self._pieces[turn]

    def _respond(self, number: int) -> list[list[Piece]]:
        """Ask, decode, reward; the masked copies of every update on these responses."""
        settings = self.settings
        rng = step_generator(settings.seed, number)
        task = settings.tasks[number % len(settings.tasks)]
        prompts = self.sources[task](self.policy, settings.prompts, rng)
        responses, rewards = self._shared(task, prompts, seed=int(rng.integers(1 << 31)))
        self.loop.note({f"reward_{task}": float(rewards.mean())})
        advantages = group_advantages(rewards)
        if settings.skip_ties:
            differ = (advantages != 0).any(-1)
            counting = differ.repeat_interleave(settings.group)
            responses, advantages = Responses(*(part[counting] for part in responses)), advantages[differ]
            if not len(advantages):
                return [[] for _ in range(settings.updates)]
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 31)))
        first = torch.rand(len(responses.targets) * settings.copies, generator=generator)
        updates = []
        for turn in range(settings.updates):
            copies = self._copies(responses, first, turn, generator)
            updates.append(
                [self._piece(copies, responses, advantages.flatten(), prompts[0].draws)] if len(copies.tokens) else []
            )
        return updates

    def _copies(self, responses: Responses, first: Tensor, turn: int, generator: torch.Generator) -> MaskedCopies:
        """The masked copies of update number `turn`: `first` [C] are the draws of the first."""
        settings, (targets, counted, region, order) = self.settings, responses
        mask, late = self.policy.vocabulary.special.mask, responses.late
        if settings.trace is not None:
            states = (first + turn / settings.updates) % 1.0  # each update has other states of a decoding, spread over it
            return trace_copies(targets, region, order, mask, settings.trace, late, states)
        draws = Draws(first, torch.rand(len(first), targets.shape[1], generator=generator))
        open_to = counted if settings.ends == "shown" else region
        return noised_copies(targets, counted, open_to, mask, draws, turn, settings.updates, settings.ratios)

    @torch.no_grad()
    def _piece(self, copies: MaskedCopies, responses: Responses, advantages: Tensor, drawing: bool) -> Piece:
        device = self.loop.accelerator.device
        arguments = (copies.tokens.to(device), copies.targets.to(device), copies.chosen.to(device), drawing)
        with self.loop.accelerator.autocast():  # as the new ones are computed: a ratio begins at 1
            old, reference = self.objective.log_probabilities(*arguments), self.reference.log_probabilities(*arguments)
        return {
            "tokens": copies.tokens,
            "targets": copies.targets,
            "chosen": copies.chosen,
            "old": old.cpu(),
            "reference": reference.cpu(),
            "advantages": advantages[copies.row],
            "length": responses.counted.sum(1)[copies.row],
            "drawing": torch.full((len(copies.tokens),), drawing),
            "total": torch.full((len(copies.tokens),), float(len(advantages) * self.settings.copies)),
        }

    def _shared(self, task: str, prompts: Sequence[Prompt], seed: int) -> tuple[Responses, Tensor]:
        """Responses to all prompts and their rewards: every process decodes its own and gets those of the others."""
        from accelerate.utils import gather_object

        world, rank = self.loop.accelerator.num_processes, self.loop.accelerator.process_index
        own = prompts[rank::world]
        responses = self._rollout(own, seed + rank)
        mine = [(*responses, self._reward(task, own, responses.targets, responses.counted))]
        parts = gather_object(mine) if world > 1 else mine
        *all_responses, rewards = (torch.cat(same) for same in zip(*parts, strict=True))
        return Responses(*all_responses), rewards

    def _rollout(self, prompts: Sequence[Prompt], seed: int) -> Responses:
        """Rows [prompts * group, L] of prompt and response. One length for all."""
        settings, ids = self.settings, [p.ids for p in prompts for _ in range(self.settings.group)]
        special, config = self.policy.vocabulary.special, self.policy.model.config
        if prompts[0].draws:
            codes, order = rollouts.draw(
                self.policy, ids, settings.image, config.num_vq_tokens, seed, together=settings.together
            )
            body = picture_part(codes, np.zeros(codes.shape, dtype=bool), self.policy.vocabulary)
            counted = np.zeros(body.shape, dtype=bool)
            counted[:, : codes.shape[1]] = True
            region, order = counted, np.pad(order, ((0, 0), (0, body.shape[1] - codes.shape[1])))
        else:
            written = rollouts.write(self.policy, ids, settings.text, seed, settings.together)
            body, counted = ended(written.ids, special.eot, special.eos, special.mask, settings.ends == "counted")
            region = np.ones(body.shape, dtype=bool)
            order = np.where(written.order < 0, written.order.max() + 1, written.order)
        before = np.zeros((len(ids), len(ids[0])), dtype=np.int64)
        parts = (np.array(ids), body), (before > 0, counted), (before > 0, region), (before, order)
        return Responses(*(torch.from_numpy(np.concatenate(pair, axis=1)) for pair in parts))

    def _reward(self, task: str, prompts: Sequence[Prompt], targets: Tensor, response: Tensor) -> Tensor:
        """[prompts, group]"""
        settings, tokenizer, special = self.settings, self.policy.tokenizer, self.policy.vocabulary.special
        replies: list[str | NDArray[np.uint8]]
        if prompts[0].draws:
            if self.decode is None:
                raise Error(f"the task {task!r} draws, and no image tokenizer was given to decode what it draws")
            codes = targets[response].reshape(len(targets), -1).numpy() - self.policy.vocabulary.image_code_offset
            pictures = list(self.decode(codes))
            if self.seen is not None:
                shown = zip(pictures, (p.truth.layout for p in prompts for _ in range(settings.group)), strict=True)
                self.seen.look([(picture, layout.rows, layout.columns) for picture, layout in shown if layout is not None])
            replies = list(pictures)
        else:
            ends = {special.eot, special.eos, special.mask}
            answers = [row[mask].tolist() for row, mask in zip(targets, response, strict=True)]
            replies = [tokenizer.decode([t for t in ids if t not in ends]).strip() for ids in answers]
        reward = self.rewards[task]
        asked = [prompt for prompt in prompts for _ in range(settings.group)]
        rewards = [reward(prompt.text, reply, prompt.truth) for prompt, reply in zip(asked, replies, strict=True)]
        return torch.tensor(rewards).reshape(len(prompts), settings.group)


def ended(
    body: NDArray[np.int64], eot: int, eos: int, mask: int, to_the_last: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Answers with ends of text after their first end, and which tokens count: up to that end, or all that was written; masks
    that were never reached do not."""
    ends = np.isin(body, [eot, eos])
    after = (ends.cumsum(axis=1) - ends) > 0
    return np.where(after, eos, body), (body != mask) & (to_the_last | ~after)
