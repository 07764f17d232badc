"""Texts that no tokenizer was made for, of which every host must make the same ids."""

import random

WORDS = (
    "a",
    "an",
    "the",
    "cat",
    "dog",
    "star",
    "red",
    "blue",
    "7",
    "12",
    "on",
    "background",
    "what",
    "is",
    "this",
    "?",
    "moon",
)


def odd_texts(seed: int) -> list[str]:
    """Sentences, signs, spaces and scripts in a mixture that no tokenizer was made for."""
    chooser = random.Random(seed)
    pieces = [
        *WORDS,
        *(
            "A Red Heart",
            "ÀÉЖ",
            "İ",
            "don't",
            "it's",
            "I'll",
            "we've",
            "'S",
            "'",
            "''s",
            "<|eot_id|>",
            "<|mdm_mask|>",
            "[iPAD]",
        ),
        *(" ", "  ", "\n", "\n\n ", "\t", "\r\n", "\u00a0", "\u3000", "\u2028", "\u200b", "\x00", "\x1c", "\x7f"),
        *("é", "e\u0301", "ß", "Ж", "日本語", "한국", "عربى", "हिन्दी", "𝔘", "😀", "👩‍👩‍👧", "½", "Ⅷ", "٣", "०", "²", "𐄇"),
        *("!?", "...", "—", "«»", "+-*/=", "{[(", "_", "€", "2024", "3.14", "1,000"),
    ]
    made = ["".join(chooser.choices(pieces, k=chooser.randint(0, 30))) for _ in range(400)]
    anything = ["".join(chr(c) for c in chooser.choices([*range(0xD800), *range(0xE000, 0x2FA20)], k=40)) for _ in range(100)]
    return ["", " ", "a" * 3000, *pieces, *made, *anything]
