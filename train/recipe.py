"""The recipe of the small "emoji" model in one place: sizes of its two networks and lengths of its trainings. Knows no loops;
`python -m mmada_lite.train` runs them in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.errors import Error
from mmada_lite.export.checkpoint import TransformerConfig
from mmada_lite.export.codec_vq import Tower, VQConfig
from mmada_lite.train.loop import LoopSettings
from mmada_lite.train.model import MMaDA
from mmada_lite.train.policy import TRACED, UNIGRPO, WHOLE
from mmada_lite.train.rollouts import ROWS
from mmada_lite.train.sharp import SharpSettings
from mmada_lite.train.stage_three import Ends, PolicySettings
from mmada_lite.train.stage_vq import VQSettings
from mmada_lite.vocabulary import Tokenizer, Vocabulary

IMAGE = ImageSettings(steps=16, guidance=2.5, temperature=1.0, sampling_temperature=1.0)  # how the small model is decoded
TEXT = TextSettings(answer_length=48, steps=48, block_length=8)
TOKENIZER_SIZE = 768
LAYERS = 6  # of the transformer
RESPONSES = 8  # to a prompt, in stage three
SHARD = 4096  # pictures in a shard of the pool
VQ_CONFIG = VQConfig(
    encoder=Tower(ch=16, ch_mult=(1, 2, 3, 6), num_res_blocks=(1, 1, 1, 1)),
    decoder=Tower(ch=16, ch_mult=(1, 2, 3, 6), num_res_blocks=(1, 1, 1, 1)),
    z_channels=12,
    resolution=64,
    group_norm_groups=8,
)

CONTINUE = VQSettings(steps=420, muon_lr=0.01, adam_lr=1e-3, edges=0.7, concept_share=0.6, scene_share=0.45, warmup=20, seed=21)
SHARPEN = VQSettings(
    steps=1600, batch=16, muon_lr=0.01, adam_lr=1e-3, edges=0.5, concept_share=0.7, pieces=1, decoder_only=True, seed=2
)
SHARP = SharpSettings()  # beside it
SHARP_DECODER = Tower(ch=16, ch_mult=(1, 2, 3, 6), num_res_blocks=(1, 2, 3, 4))  # blocks where they cost few seconds


REWARDS: dict[str, dict[str, float]] = {
    "sum": {"answer": 1.0, "thought": 0.5, "format": 0.25},
    "difference3": {"answer": 1.0, "thought": 0.5, "format": 0.25},
    "scene": {"answer": 1.0, "format": 0.25},
    "count": {"answer": 1.0, "format": 0.25},
    "compare": {"answer": 1.0, "format": 0.25},
    "what": {"answer": 1.0},
    "paint": {"concept": 1.0, "background": 0.5},
    "thought_to_image": {"concept": 1.0, "background": 0.5},
}


def policy_settings(
    tasks: Sequence[str],
    seed: int,
    steps: int | None,
    few_steps: bool,
    rate: float = 1.0,
    trace: bool = False,
    prompts: int = 8,
    copies: int = 2,
    skip_ties: bool = False,
    guidance: float = 0.0,
    ratios: tuple[float, float] = WHOLE,
    ends: Ends = "masked",
    seconds: float | None = None,
    on_gpu: bool = False,
) -> PolicySettings:
    """Stage three of the small model. With few steps responses are decoded in a quarter of them; with a trace, masked copies
    are states of the decoding, four steps of which are counted (one of few), four tokens of a text. Drawings are drawn, and
    learned, without guidance: guided ones of one caption earn alike. On a GPU all responses of a batch are decoded at once, and
    keys and values are computed again rather than copied."""
    share = 4 if few_steps else 1
    loop = LoopSettings(80, adam_lr=5e-5, weight_decay=0.0, average=0.97, clip=1.0, seconds=seconds).scaled(steps, rate)
    return PolicySettings(
        tasks=tuple(tasks),
        rewards=REWARDS,
        loop=loop,
        text=TEXT.replace(steps=TEXT.steps // share, temperature=1.0, cache="none" if on_gpu else "prefix"),
        image=IMAGE.replace(steps=IMAGE.steps // share, guidance=guidance),
        prompts=prompts,
        copies=copies,
        group=RESPONSES,
        together=prompts * RESPONSES if on_gpu else ROWS,
        trace=4 // share if trace else None,
        ratios=ratios,
        ends=ends,
        skip_ties=skip_ties,
        objective=TRACED if trace else UNIGRPO,
        seed=seed,
    )


def transformer_config(tokenizer_length: int, mask_id: int, eos_id: int, layers: int = LAYERS) -> TransformerConfig:
    """The small transformer: rows for the text tokens, directly followed by the image codes. Raises Error for a number of
    blocks that stage two could not stack."""
    if layers < 1 or LAYERS % layers:
        fitting = [str(number) for number in range(1, LAYERS + 1) if LAYERS % number == 0]
        raise Error(f"{layers} blocks cannot be stacked to the model's {LAYERS}: give --layers one of {', '.join(fitting)}")
    return TransformerConfig(
        d_model=192,
        n_layers=layers,
        n_heads=6,
        n_kv_heads=6,
        mlp_hidden_size=512,
        vocab_size=tokenizer_length + VQ_CONFIG.codebook_size,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        mask_token_id=mask_id,
        eos_token_id=eos_id,
        max_sequence_length=512,
        codebook_size=VQ_CONFIG.codebook_size,
        llm_vocab_size=tokenizer_length,
        num_vq_tokens=(VQ_CONFIG.resolution // VQ_CONFIG.downsample_factor) ** 2,
    )


def new_model(tokenizer_file: Path, seed: int = 0, layers: int = LAYERS) -> tuple[MMaDA, Tokenizer, Vocabulary]:
    """The small transformer with the first weights of a seed, and the vocabulary that it speaks, of a tokenizer.json."""
    tokenizer = Tokenizer.from_file(tokenizer_file)
    mask, eos = tokenizer.find("<|mdm_mask|>", -1), tokenizer.find("<|endoftext|>", -1)
    config = transformer_config(len(tokenizer), mask, eos, layers)
    torch.manual_seed(seed)
    vocabulary = Vocabulary.from_tokenizer(tokenizer, codebook_size=config.codebook_size, size=config.vocab_size)
    return MMaDA(config), tokenizer, vocabulary
