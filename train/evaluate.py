"""How good a trained checkpoint is: drawings named by the judge, backgrounds read from pixels, answers about pictures of styles
that were never trained on, sums that were held out. Counts with 95% intervals. Decoding is the project's own pair of loops.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mmada_lite.canvas import Canvas, image_canvas, paint_prompt, picture_prompt, text_canvas
from mmada_lite.decoding import decode_image, decode_text, final_codes
from mmada_lite.sampling import PhiloxSampler
from mmada_lite.settings import ImageSettings, TextSettings
from mmada_lite.train.data.concepts import COLOURS, CONCEPTS
from mmada_lite.train.data.pictures import PLAIN, background_of, compose
from mmada_lite.train.data.pool import encode
from mmada_lite.train.data.texts import FACTS, SUM_QUESTIONS, WHAT_QUESTIONS, pairs, standard_caption, sums
from mmada_lite.train.denoiser import TorchDenoiser
from mmada_lite.train.judge import Judge
from mmada_lite.train.model import MMaDA
from mmada_lite.train.stage_vq import to_pictures
from mmada_lite.train.vq import MagViT
from mmada_lite.vocabulary import Tokenizer, Vocabulary, chat_ids

Pair = tuple[int, str]  # index of the concept, name of the background
IMAGE = ImageSettings(steps=16, guidance=2.5, temperature=1.0, sampling_temperature=1.0)
TEXT = TextSettings(answer_length=16, steps=16, block_length=16)
ROWS = 32  # decoded together


@dataclass(frozen=True, slots=True)
class Subject:
    """A checkpoint under test."""

    model: MMaDA
    vq: MagViT
    tokenizer: Tokenizer
    vocabulary: Vocabulary

    @classmethod
    def load(cls, folder: Path) -> Subject:
        """From a folder in the Hugging Face layout."""
        model, tokenizer = MMaDA.load(folder), Tokenizer.from_file(folder / "tokenizer.json")
        config = model.config
        vocabulary = Vocabulary.from_tokenizer(
            tokenizer, codebook_size=config.codebook_size, size=config.vocab_size, mask_id=config.mask_token_id
        )
        return cls(model.eval(), MagViT.load(folder / "vq").eval(), tokenizer, vocabulary)

    @property
    def denoiser(self) -> TorchDenoiser:
        offset = self.vocabulary.image_code_offset
        return TorchDenoiser(self.model, slice(offset, offset + self.vocabulary.codebook_size))


def interval(right: int, total: int) -> dict[str, float]:
    """Counts, share and its 95% Wilson interval."""
    z, share = 1.959964, right / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return {
        "right": right,
        "total": total,
        "share": round(share, 4),
        "low": round(max(0.0, middle - half), 4),
        "high": round(min(1.0, middle + half), 4),
    }


def draw(subject: Subject, captions: Sequence[str], seed: int, settings: ImageSettings = IMAGE) -> NDArray[np.uint8]:
    """One picture per caption, [captions, 64, 64, 3]; captions of one length are decoded together."""
    special, length = subject.vocabulary.special, subject.model.config.num_vq_tokens
    prompts = [paint_prompt(subject.tokenizer.encode(text), special) for text in captions]
    pictures: list[NDArray[np.uint8] | None] = [None] * len(prompts)
    for rows in batches([len(p) for p in prompts]):
        canvases = [
            image_canvas(
                prompts[i],
                np.zeros(length),
                np.ones(length, dtype=bool),
                subject.vocabulary,
                unconditional_prompt=paint_prompt([], special) if settings.guidance > 0 else None,
            )
            for i in rows
        ]
        canvas = join(canvases)
        sampler = PhiloxSampler(seed + rows[0], settings.sampling_temperature, canvas.start)
        codes = final_codes(list(decode_image(subject.denoiser, canvas, settings, sampler)))
        decoded = to_pictures(subject.vq.decode(_tensor(codes)))
        for i, picture in zip(rows, decoded, strict=True):
            pictures[i] = picture
    return np.stack([p for p in pictures if p is not None])


def answer(subject: Subject, prompts: Sequence[list[int]], settings: TextSettings = TEXT) -> list[str]:
    """The answer to each prompt; prompts of one length are decoded together."""
    special = subject.vocabulary.special
    stop = {special.eot, special.eos}
    answers = [""] * len(prompts)
    for rows in batches([len(p) for p in prompts]):
        canvas = text_canvas(np.array([prompts[i] for i in rows]), settings.answer_length, special)
        for _ in decode_text(subject.denoiser, canvas, settings, PhiloxSampler(0, 0.0, canvas.start)):
            pass
        for i, tokens in zip(rows, canvas.tokens[:, canvas.region].tolist(), strict=True):
            end = next((n for n, token in enumerate(tokens) if token in stop), len(tokens))
            answers[i] = subject.tokenizer.decode(tokens[:end]).strip()
    return answers


def batches(lengths: Sequence[int]) -> list[list[int]]:
    """Indices in groups of equal length, at most ROWS each."""
    groups: list[list[int]] = []
    for length in sorted(set(lengths)):
        rows = [i for i, other in enumerate(lengths) if other == length]
        groups += [rows[i : i + ROWS] for i in range(0, len(rows), ROWS)]
    return groups


def join(canvases: Sequence[Canvas]) -> Canvas:
    """Canvases of one layout as the rows of one."""
    first = canvases[0]
    first.tokens = np.concatenate([c.tokens for c in canvases])
    first.editable = np.concatenate([c.editable for c in canvases])
    if first.unconditional is not None:
        first.unconditional = np.concatenate([c.unconditional for c in canvases if c.unconditional is not None])
    return first


def question(subject: Subject, text: str) -> list[int]:
    return chat_ids(subject.tokenizer, subject.vocabulary.special, [{"role": "user", "content": text}])


def judge_drawings(
    subject: Subject, judge: Judge, wanted: Sequence[Pair], seed: int, settings: ImageSettings = IMAGE
) -> tuple[dict[str, object], NDArray[np.uint8]]:
    """Draw every pair with the standard caption; how many are named right and have the right background."""
    pictures = draw(subject, [standard_caption(CONCEPTS[i], colour) for i, colour in wanted], seed, settings)
    named = judge.classify(pictures) == np.array([i for i, _ in wanted])
    grounds = np.array([background_of(p) == colour for p, (_, colour) in zip(pictures, wanted, strict=True)])
    per_concept = {
        concept.name: f"{int(named[rows].sum())}/{len(rows)}"
        for index, concept in enumerate(CONCEPTS)
        if (rows := [n for n, (i, _) in enumerate(wanted) if i == index])
    }
    report: dict[str, object] = {
        "named_right": interval(int(named.sum()), len(named)),
        "background_right": interval(int(grounds.sum()), len(grounds)),
        "both_right": interval(int((named & grounds).sum()), len(named)),
        "per_concept": per_concept,
    }
    return report, pictures


def judge_answers(subject: Subject, icons: NDArray[np.uint8]) -> dict[str, object]:
    """Questions about untouched icons [styles, concepts, S, S, 4] on every background."""
    rng = np.random.default_rng(5)
    shown = [(s, i, k) for s in range(len(icons)) for i in range(len(CONCEPTS)) for k in COLOURS]
    codes = encode(subject.vq, np.stack([compose(icons[s, i], k, rng, PLAIN) for s, i, k in shown]))
    heads = [picture_prompt(row, subject.vocabulary) for row in codes]
    what, ground = question(subject, WHAT_QUESTIONS[0]), question(subject, "what colour is the background?")
    things = answer(subject, [head + what for head in heads])
    colours = answer(subject, [head + ground for head in heads])
    right = np.array([a == CONCEPTS[i].phrase for a, (_, i, _) in zip(things, shown, strict=True)])
    per_icon = right.reshape(-1, len(COLOURS)).mean(axis=1)
    missed = [CONCEPTS[n % len(CONCEPTS)].name for n in np.flatnonzero(per_icon < 0.5)]
    return {
        "what_is_this": interval(int(right.sum()), len(right)),
        "icons_mostly_right": interval(int((per_icon > 0.5).sum()), len(per_icon)),
        "background": interval(sum(a == k for a, (_, _, k) in zip(colours, shown, strict=True)), len(shown)),
        "missed": missed,
    }


def judge_texts(subject: Subject) -> dict[str, object]:
    """Sums of both sides of the split, and the facts."""
    report: dict[str, object] = {}
    for name, held in (("sums_held_out", True), ("sums_trained", False)):
        asked = sums(held)
        found = answer(subject, [question(subject, SUM_QUESTIONS[0].format(a=a, b=b)) for a, b in asked])
        report[name] = interval(sum(f == str(a + b) for f, (a, b) in zip(found, asked, strict=True)), len(asked))
    facts = [(wording, reply) for reply, wordings in FACTS for wording in wordings]
    found = answer(subject, [question(subject, wording) for wording, _ in facts])
    report["facts_trained"] = interval(sum(f == reply for f, (_, reply) in zip(found, facts, strict=True)), len(facts))
    return report


def evaluate(
    subject: Subject, judge: Judge, icons: dict[str, NDArray[np.uint8]], seeds: int = 4
) -> tuple[dict[str, object], NDArray[np.uint8]]:
    """Everything, as a report; and the drawings of the held-out pairs. `icons`: name of a set of styles -> its icons."""
    held, pictures = judge_drawings(subject, judge, pairs(held=True) * seeds, seed=1000)
    every = [(i, k) for i in range(len(CONCEPTS)) for k in COLOURS]
    every_report, _ = judge_drawings(subject, judge, every, seed=2000)
    report: dict[str, object] = {"drawings_held_out_pairs": held, "drawings_all_pairs": every_report}
    report |= {f"answers_{name}": judge_answers(subject, array) for name, array in icons.items()}
    report |= judge_texts(subject)
    report["decoding"] = {"image": str(IMAGE), "text": str(TEXT)}
    return report, pictures


def contact_sheet(pictures: NDArray[np.uint8], columns: int = 10) -> NDArray[np.uint8]:
    """Pictures [N, H, W, 3] side by side, white where the last row is short."""
    count, height, width, _ = pictures.shape
    rows = -(-count // columns)
    sheet = np.full((rows * columns, height, width, 3), 255, dtype=np.uint8)
    sheet[:count] = pictures
    tiled = sheet.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    return tiled.reshape(rows * height, columns * width, 3)


def write_report(file: Path, report: dict[str, object]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _tensor(codes: NDArray[np.int64]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(codes))
