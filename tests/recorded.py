"""What the recorded models do not say in a checkpoint's own files: their vocabulary, from case.json."""

import json
from pathlib import Path

from mmada_lite.vocabulary import SpecialTokens, Vocabulary


def recorded_vocabulary(folder: Path) -> Vocabulary:
    """The ids that a recorded model's case.json lists; chat headers, which it does not, stand as the end of text."""
    info = json.loads((folder / "case.json").read_text())
    ids = info["token_ids"]
    special = SpecialTokens(**{key: ids.get(key, ids["eos"]) for key in SpecialTokens.__dataclass_fields__})
    return Vocabulary(special, info["image_code_offset"], ids["codebook"], info["vocab_size"])
