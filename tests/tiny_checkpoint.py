"""A checkpoint of random weights, with pictures and a tokenizer of bytes: exported in a second, and meaning nothing."""

from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from mmada_lite.export.checkpoint import TransformerConfig
from mmada_lite.export.codec_vq import Tower, VQConfig
from mmada_lite.train.model import MMaDA
from mmada_lite.train.vq import MagViT

SPECIAL = [
    *("<|startoftext|>", "<|endoftext|>", "<|soi|>", "<|eoi|>", "<|t2i|>", "<|mmu|>", "[iPAD]", "<|r2i|>"),
    *("<|mdm_mask|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
]
CODES = 16
TOWER = Tower(ch=8, ch_mult=(1, 1, 2), num_res_blocks=(1, 1, 1))


def write_tokenizer(path: Path) -> int:
    """A tokenizer.json of 256 bytes and the special tokens; returns its length."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(path))
    return tokenizer.get_vocab_size()


def write_checkpoint(folder: Path, seed: int = 0) -> Path:
    """A transformer of two layers and an image tokenizer of 16-pixel pictures with 4 x 4 codes."""
    folder.mkdir(parents=True)
    text_vocab_size = write_tokenizer(folder / "tokenizer.json")
    config = TransformerConfig(
        d_model=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        mlp_hidden_size=48,
        vocab_size=text_vocab_size + CODES,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        mask_token_id=256 + SPECIAL.index("<|mdm_mask|>"),
        eos_token_id=256 + SPECIAL.index("<|endoftext|>"),
        max_sequence_length=256,
        codebook_size=CODES,
        llm_vocab_size=text_vocab_size,
        num_vq_tokens=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MMaDA(config)
        model.initialize()
        model.save(folder, "float32")
        codec = VQConfig(TOWER, TOWER, z_channels=4, resolution=16, group_norm_groups=4)
        MagViT(codec).save(folder / "vq", "float32")
    return folder
