"""What the small model is taught, as its bundle says it (`knows` of bundle.json): from its sentences. Knows nothing of tokens,
pixels or models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from mmada_lite.train.data import arithmetic, scenes, texts, turns
from mmada_lite.train.data.concepts import COLOURS, CONCEPT_NAMES
from mmada_lite.train.data.layouts import Layout
from mmada_lite.train.data.pictures import RESOLUTION


def knows() -> dict[str, Any]:
    """Two turns, in lower case to which the runtime brings capitals, the things by name, and every word of a sentence that is
    asked, said or filled."""
    return {
        "turns": 2,
        "case": "lower",
        "things": list(CONCEPT_NAMES),
        "words": sorted({word for sentence in _sentences() for word in re.findall(r"[^\W\d_]+", sentence)}),
        "languages": ["en"],
        "picture_size": RESOLUTION,
    }


def _sentences() -> Iterator[str]:
    yield from texts.corpus()
    yield from scenes.corpus()
    yield from (sentence for pair in texts.fact_wordings(held_out=False) for sentence in pair)
    yield from turns.corpus()
    yield from arithmetic.QUESTIONS
    yield scenes.drawing_thought(Layout(1, 1, CONCEPT_NAMES[:1]), COLOURS[0])
