"""Trains the byte-level BPE tokenizer of the small model on its own sentences. Digits are single tokens, and every special
token of MMaDA is inside, so that the length of the tokenizer is the offset of the image codes. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mmada_lite.train.data.thoughts import CLOSE, OPEN

SPECIAL_TOKENS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|soi|>",
    "<|eoi|>",
    "<|t2i|>",
    "<|mmu|>",
    "[iPAD]",
    "<|r2i|>",
    "<|mdm_mask|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)


def train_tokenizer(sentences: Iterable[str], size: int, file: Path) -> int:
    """Train on the sentences, save to `file`, return the number of tokens (at most `size`, special ones included)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - 2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((s.replace(OPEN, "").replace(CLOSE, "") for s in sentences), trainer)
    # One token each, and text all the same: they are shown to whoever reads the answer.
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in (OPEN, CLOSE)])
    file.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(file))
    return int(tokenizer.get_vocab_size())
