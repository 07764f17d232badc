"""The published way of decoding, for its time: the whole row through the model at every step, the head over every row and
column, probabilities of all of them in float64, pads of pictures kept, the pair of guidance as one batch, no cache.

It asks for one thing only, the logits of whole rows, so that torch, a quantized torch model or another engine can stand
behind it; replays of recorded steps show that its laws are the published ones. It knows no clock and no weights.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmada_lite.decoding.rows import picture_part, unconditional_prompt
from mmada_lite.decoding.schedules import masked_after, noise_temperatures, transfers
from mmada_lite.train.model import MMaDA
from mmada_lite.vocabulary import Vocabulary

Logits = Callable[[Tensor, Tensor | None], Tensor]  # tokens [B, L], kept [B, L] (false: a pad) or None -> [B, L, V]
PADDED = 512  # ids to which the published code pads the prompt of a picture
_TINY = 1e-20


def torch_logits(model: MMaDA, head: Callable[[Tensor], Tensor] | None = None) -> Logits:
    """The logits of a torch model, or of its blocks under another head. Where there are pads, they are masked by a bias."""

    def logits(tokens: Tensor, kept: Tensor | None) -> Tensor:
        bias = None if kept is None else (kept[:, :, None] & kept[:, None, :])[:, None]
        hidden = model(tokens, bias=bias).hidden
        logits = head(hidden) if head else model.logits(hidden)
        if logits.is_cuda:
            torch.cuda.synchronize()  # a clock must not stop before the card is done
        return logits

    return logits


def write_text(logits: Logits, prompt: Tensor, answer: int, block: int, steps: int, mask: int) -> Iterator[Tensor]:
    """Greedy text, block by block: the row [B, P + answer] after every step."""
    masks = torch.full((prompt.shape[0], answer), mask, dtype=torch.int64, device=prompt.device)
    row = torch.cat([prompt, masks], 1)
    count = answer // block
    for start in range(prompt.shape[1], row.shape[1], block):
        stop = start + block
        quotas = [transfers(int(n), steps // count) for n in (row[:, start:stop] == mask).sum(1)]
        for turn in range(steps // count):
            row_logits = logits(row, None)
            predicted = row_logits.argmax(-1)
            confidence = row_logits.to(torch.float64).softmax(-1).gather(-1, predicted[..., None])[..., 0]
            confidence[:, stop:] = -torch.inf
            confidence[row != mask] = -torch.inf
            for each, quota in enumerate(quotas):
                where = confidence[each].topk(int(quota[turn])).indices
                row[each, where] = predicted[each, where]
            yield row


@dataclass(frozen=True, slots=True)
class Picture:
    """What a picture is drawn from: tokens [B, L] of pads, prompt, soi, codes or masks, eoi; kept [B, L] is false at pads;
    without, without_kept: the same rows with the empty prompt; count: codes of a picture; columns: theirs among the logits."""

    tokens: Tensor
    kept: Tensor
    without: Tensor
    without_kept: Tensor
    count: int
    columns: slice
    mask: int


def draw_picture(
    logits: Logits,
    picture: Picture,
    steps: int,
    guidance: float,
    schedule: str = "cosine",
    temperature: float = 1.0,
    greedy: bool = False,
) -> Iterator[Tensor]:
    """The tokens [B, L] after every step, the most confident codes first. greedy: the most probable code, none drawn."""
    tokens, region = picture.tokens.clone(), slice(-picture.count - 1, -1)
    plan, noise = masked_after(schedule, picture.count, steps), noise_temperatures(temperature, steps)
    for turn in range(steps):
        guided = _guided(logits, tokens, picture, guidance)
        share = guided[:, region, picture.columns].softmax(-1)
        drawn = share.argmax(-1) if greedy else _drawn(share)
        unknown = tokens[:, region] == picture.mask
        taken = torch.where(unknown, drawn + picture.columns.start, tokens[:, region])
        confidence = share.gather(-1, drawn[..., None])[..., 0].float()
        confidence[~unknown] = torch.finfo(torch.float32).max
        uniform = torch.rand_like(confidence).clamp(min=_TINY)
        ranked = confidence.clamp(min=_TINY).log() + float(noise[turn]) * -(-uniform.log()).clamp(min=_TINY).log()
        left = (unknown.sum(1) - 1).clamp(max=int(plan[turn])).clamp(min=1)
        border = ranked.sort(dim=1).values.gather(1, left[:, None])
        tokens[:, region] = torch.where(ranked < border, picture.mask, taken)
        yield tokens


def _guided(logits: Logits, tokens: Tensor, picture: Picture, guidance: float) -> Tensor:
    if guidance == 0:
        return logits(tokens, picture.kept)
    end = tokens.shape[1] - picture.count - 1
    other = torch.cat([picture.without[:, :end], tokens[:, end:]], 1)
    pair = logits(torch.cat([tokens, other]), torch.cat([picture.kept, picture.without_kept]))
    with_prompt, without = pair.chunk(2)
    return (1 + guidance) * with_prompt - guidance * without


def _drawn(share: Tensor) -> Tensor:
    return torch.multinomial(share.flatten(0, 1), 1).view(share.shape[:2])


def picture_to_draw(
    prompt: list[int], vocabulary: Vocabulary, count: int, padded: int = PADDED, device: str = "cpu"
) -> Picture:
    """A picture of `count` codes, all to be drawn; the prompt's ids, up to the codes, padded on the left to `padded`, as
    published. device: of torch, where its rows lie."""
    special, rows, prompts = vocabulary.special, [], (prompt, unconditional_prompt(vocabulary))
    longest = max(padded + 2, *map(len, prompts))
    to_draw = picture_part(np.zeros(count), np.ones((1, count), dtype=bool), vocabulary)
    for each in prompts:
        row = torch.cat([torch.tensor([each]), torch.from_numpy(to_draw)], 1)
        pads = longest - len(each)
        kept = torch.ones((1, pads + row.shape[1]), dtype=torch.bool)
        kept[:, :pads] = False
        rows += [torch.cat([torch.full((1, pads), special.ipad), row], 1), kept]
    first = vocabulary.image_code_offset
    tokens, tokens_kept, without, without_kept = (row.to(device) for row in rows)
    return Picture(
        tokens, tokens_kept, without, without_kept, count, slice(first, first + vocabulary.codebook_size), special.mask
    )
