"""The recipe of the small "emoji" model in one place: sizes of its two networks, lengths of its trainings and the layout of its
working folder. Knows no loops; `python -m mmada_lite.train` runs them in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmada_lite.export.checkpoint import TransformerConfig
from mmada_lite.export.vq_layout import Tower, VQConfig
from mmada_lite.train.stage_vq import VQSettings

TOKENIZER_SIZE = 512
SHARD = 8192  # pictures in a shard of the pool
VQ_CONFIG = VQConfig(
    encoder=Tower(ch=16, ch_mult=(1, 2, 3, 6), num_res_blocks=(1, 1, 1, 1)),
    decoder=Tower(ch=16, ch_mult=(1, 2, 3, 6), num_res_blocks=(1, 1, 1, 1)),
    z_channels=12,
    resolution=64,
    group_norm_groups=8,
)

SHARPEN = VQSettings(steps=700, muon_lr=0.01, adam_lr=1e-3, edges=1.0, concept_share=0.7, decoder_only=True, seed=2)


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where the files of a training lie, under one folder."""

    root: Path

    @property
    def packages(self) -> Path:
        return self.root / "packages"

    @property
    def concepts(self) -> Path:
        return self.root / "concepts.npz"

    @property
    def library(self) -> Path:
        return self.root / "library-train.npz"

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizer.json"

    @property
    def vq(self) -> Path:
        return self.root / "vq"

    @property
    def vq_model(self) -> Path:
        return self.root / "vq" / "model"

    @property
    def sharp(self) -> Path:
        return self.root / "vq-sharp"

    @property
    def sharp_model(self) -> Path:
        """The image tokenizer after `sharpen`: the same encoder, a better decoder."""
        return self.root / "vq-sharp" / "model"

    @property
    def judge(self) -> Path:
        return self.root / "judge"

    @property
    def pool(self) -> Path:
        return self.root / "pool"

    @property
    def transformer(self) -> Path:
        return self.root / "transformer"

    @property
    def checkpoint(self) -> Path:
        """The finished model in the Hugging Face layout."""
        return self.root / "emoji"


def transformer_config(tokenizer_length: int, mask_id: int, eos_id: int) -> TransformerConfig:
    """The small transformer: rows for the text tokens, directly followed by the image codes."""
    return TransformerConfig(
        d_model=192,
        n_layers=6,
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
