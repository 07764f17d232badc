"""A training in miniature: discs for icons, random codes for pictures, a transformer of two layers, planted rewards. What the
laws of the training are tested with, in the tests' own process and in processes of their own (toy_run.py)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mmada_lite.decoding.settings import ImageSettings, TextSettings, plain
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.export.checkpoint import SIDECAR, TransformerConfig
from mmada_lite.export.codec_vq import Tower, VQConfig
from mmada_lite.train.data import arithmetic, scenes, texts
from mmada_lite.train.data.concepts import COLOURS, CONCEPT_NAMES, CONCEPTS, NUMBERS
from mmada_lite.train.data.layouts import cells
from mmada_lite.train.data.pictures import background_tone
from mmada_lite.train.data.pool import NOTHING, Pool
from mmada_lite.train.data.scenes import GRIDS, draw_layout
from mmada_lite.train.data.sources import STYLES
from mmada_lite.train.data.tokenizer import train_tokenizer
from mmada_lite.train.judge import Judge
from mmada_lite.train.loop import LoopSettings
from mmada_lite.train.model import MMaDA
from mmada_lite.train.prompts import Prompt, Source
from mmada_lite.train.rewards import Response, Truth
from mmada_lite.train.rollouts import Speaker
from mmada_lite.train.stage_three import Policy, PolicySettings, StageThree
from mmada_lite.train.stages import Share, StageSettings
from mmada_lite.train.vq import MagViT
from mmada_lite.vocabulary import Tokenizer, Vocabulary

CODES = 256
SIDE = 8  # codes of a picture
TINY_VQ = VQConfig(Tower(8, (1, 1, 2, 2), (1, 1, 1, 1)), Tower(8, (1, 1, 2, 2), (1, 1, 1, 1)), 8, 64, 4)  # 64 pixels, 8 bits
MIXTURE = {task: Share(1.0) for task in ("paint", "thought_to_image", "ask", "scene", "sum")} | {
    "fact": Share(0.5),
    "caption_to_thought": Share(0.5),
}


def disc(colour: tuple[int, int, int], size: int = 96) -> NDArray[np.uint8]:
    """A filled circle on transparency, RGBA."""
    y, x = np.mgrid[:size, :size] - size / 2
    icon = np.zeros((size, size, 4), np.uint8)
    icon[..., :3] = colour
    icon[..., 3] = np.where(x * x + y * y < (0.45 * size) ** 2, 255, 0)
    return icon


def discs(styles: int = 1) -> NDArray[np.uint8]:
    """Icons [styles, concepts, 96, 96, 4], a tone of its own for each."""
    tones = [[(40 + 3 * i, 90 + 40 * s, 230 - 3 * i) for i in range(len(CONCEPT_NAMES))] for s in range(styles)]
    return np.stack([np.stack([disc(tone) for tone in row]) for row in tones])


def occupied(picture: NDArray[np.uint8], rows: int, columns: int) -> list[bool]:
    """Whether each cell of a picture holds something that stands out from the background."""
    tone = background_tone(picture)
    apart = [np.linalg.norm(cell.astype(np.float64) - tone, axis=2) > 40 for cell in cells(picture, rows, columns)]
    return [float(far.mean()) > 0.05 for far in apart]


def write_tokenizer(file: Path) -> Path:
    """The tokenizer of the recipe, on a part of its sentences."""
    sums = arithmetic.corpus(np.random.default_rng(0), 20)
    train_tokenizer(chain(texts.corpus(), list(scenes.corpus())[:4000], sums), 768, file)
    return file


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary.from_tokenizer(tokenizer, codebook_size=CODES, size=len(tokenizer) + CODES)


def config_of(vocabulary: Vocabulary, layers: int = 2, width: int = 32) -> TransformerConfig:
    return TransformerConfig(
        d_model=width,
        n_layers=layers,
        n_heads=2,
        n_kv_heads=2,
        mlp_hidden_size=64,
        vocab_size=vocabulary.size,
        rope_theta=1e4,
        rms_norm_eps=1e-5,
        mask_token_id=vocabulary.special.mask,
        eos_token_id=vocabulary.special.eos,
        max_sequence_length=512,
        codebook_size=vocabulary.codebook_size,
        llm_vocab_size=vocabulary.image_code_offset,
        num_vq_tokens=SIDE * SIDE,
    )


def tiny_model(vocabulary: Vocabulary, layers: int = 2, width: int = 32) -> MMaDA:
    torch.manual_seed(0)
    return MMaDA(config_of(vocabulary, layers, width))


def single_pool() -> Pool:
    """Two pictures of each kind of each training pair; the codes mean nothing."""
    rng = np.random.default_rng(0)
    pictures = [(i, COLOURS.index(k), tidy) for i, k in texts.pairs(held_out=False) for tidy in (True, False) for _ in range(2)]
    concept, colour, tidy = (np.array(column) for column in zip(*pictures, strict=True))
    names = np.full((len(pictures), 4), NOTHING)
    names[:, 0] = concept
    codes = rng.integers(CODES, size=(len(pictures), SIDE * SIDE))
    return Pool(codes, names, np.full(len(pictures), NOTHING), colour, tidy.astype(bool))


def scene_pool(count: int = 600) -> Pool:
    """Layouts of the training side: tidy ones of two things, the others of four places."""
    rng = np.random.default_rng(1)
    tidy = np.arange(count) % 2 == 0
    grid = np.where(tidy, rng.integers(1, 3, size=count), 0)
    names = np.full((count, 4), NOTHING)
    for row in range(count):
        layout = draw_layout(GRIDS[grid[row]], False, rng)
        for cell, name in layout.named:
            names[row, cell] = NUMBERS[name]
    return Pool(rng.integers(CODES, size=(count, SIDE * SIDE)), names, grid, rng.integers(len(COLOURS), size=count), tidy)


def stage_settings(steps: int, save_seconds: float = 1e9) -> StageSettings:
    loop = LoopSettings(steps, muon_lr=0.02, adam_lr=1e-2, save_seconds=save_seconds)
    return StageSettings(MIXTURE, loop, rows=4, warmup=2)


def records(folder: Path) -> list[dict]:
    """The log of a training without its times."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def early_letters(prompt: str, response: Response, truth: Truth) -> float:
    """The planted reward of texts: the share of letters of the first half of the alphabet."""
    assert isinstance(response, str)
    letters = [letter for letter in response.casefold() if letter.isalpha()]
    return sum(letter < "n" for letter in letters) / max(1, len(letters))


def brightness(prompt: str, response: Response, truth: Truth) -> float:
    """The planted reward of pictures."""
    assert not isinstance(response, str)
    return float(response.mean()) / 255


def grey(codes: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The planted image tokenizer: a code is a shade."""
    shades = codes.reshape(len(codes), SIDE, SIDE, 1).repeat(3, axis=3) * 255 // (CODES - 1)
    return shades.astype(np.uint8)


def asking(draws: bool) -> Source:
    """Prompts of one length, each with its number."""

    def ask(speaker: Speaker, count: int, rng: np.random.Generator) -> list[Prompt]:
        special, number = speaker.vocabulary.special, int(rng.integers(200))
        start = special.t2i if draws else special.bos
        return [Prompt((start, special.bos, number + n, special.eos), f"{number + n}", Truth(), draws) for n in range(count)]

    return ask


PLANTED = {"letters": early_letters, "shades": brightness}
TASKS: dict[str, Source] = {"letters": asking(False), "shades": asking(True)}


def policy_settings(tasks: Sequence[str], steps: int, save_seconds: float = 1e9, updates: int = 2) -> PolicySettings:
    return PolicySettings(
        tasks=tuple(tasks),
        rewards={"letters": {"letters": 1.0}, "shades": {"shades": 1.0}},
        loop=LoopSettings(steps, muon_lr=0.02, adam_lr=1e-2, weight_decay=0.0, average=0.9, save_seconds=save_seconds),
        text=TextSettings(answer_length=8, steps=4, block_length=8, temperature=1.0),
        image=ImageSettings(steps=3, guidance=0.0, sampling_temperature=1.0),
        prompts=2,
        group=6,
        updates=updates,
    )


def stage_three(model: MMaDA, tokenizer: Tokenizer, folder: Path, settings: PolicySettings) -> StageThree:
    """A run on the planted tasks; their rewards must stand beside the others (PLANTED)."""
    return StageThree(Policy(model, tokenizer, vocabulary_of(tokenizer)), folder, settings, TASKS, grey)


def write_place(root: Path, tokenizer: Path) -> Path:
    """A working folder with noise for icons, a judge of first weights, and a tiny checkpoint with its bundle."""
    rng = np.random.default_rng(0)
    shape = (len(CONCEPTS), 96, 96, 4)
    np.savez(root / "concepts.npz", **{s.name: rng.integers(0, 256, size=shape, dtype=np.uint8) for s in STYLES})
    model = tiny_model(vocabulary_of(Tokenizer.from_file(tokenizer)))
    Judge().save(root / "judge", {})
    model.save(root / "checkpoint", "float32")
    torch.manual_seed(1)
    MagViT(TINY_VQ).save(root / "checkpoint" / "vq", "float32")
    shutil.copyfile(tokenizer, root / "checkpoint" / "tokenizer.json")
    text, image = TextSettings(answer_length=8, steps=2, block_length=8), ImageSettings(steps=2, guidance=1.0)
    defaults = {"text": plain(text), "image": plain(image)}
    (root / "checkpoint" / SIDECAR).write_text(json.dumps({"name": "tiny", "defaults": defaults}), encoding="utf-8")
    export_checkpoint(root / "checkpoint", root / "bundle", precision="fp32")
    return root
