"""Laws of the row that is written: the row without a prompt follows it, and a hole ends where its stop token says."""

import numpy as np
import pytest

from mmada_lite import Error
from mmada_lite.decoding.canvas import Canvas, among, image_canvas, text_canvas
from mmada_lite.vocabulary import SpecialTokens, Vocabulary

SPECIAL = SpecialTokens(*range(100, 112))
VOCABULARY = Vocabulary(SPECIAL, image_code_offset=112, codebook_size=32, size=144)
MASK = SPECIAL.mask


def picture() -> Canvas:
    """Two rows of a prompt of five ids, two without it of two, and of four codes the second and the third unknown."""
    unknown = [[False, True, True, False]] * 2
    return image_canvas([[1, 2, 3, 4, 5]] * 2, [[7, 7, 7, 7]] * 2, unknown, VOCABULARY, unconditional_prompt=[1, 5])


def test_what_is_written_stands_without_the_prompt_too() -> None:
    text = text_canvas([[1, MASK, 3]] * 2, [MASK, 9, MASK], MASK, guided=True)
    assert text.shared is not None
    assert text.shared.tolist() == [1, 3, 4, 5]
    for canvas, place in ((text, 1), (text, 5), (picture(), 7)):
        where = np.zeros(canvas.tokens.shape, dtype=bool)
        where[1, place] = True
        assert canvas.unconditional is not None
        before = canvas.unconditional.copy()
        canvas.write(where, np.full(canvas.tokens.shape, 8))
        before[1, place + canvas.shift] = 8
        assert canvas.unconditional.tolist() == before.tolist()
    canvas = picture()
    canvas.put(np.array([1]), np.array([7]), np.array([8]))
    assert canvas.unconditional is not None
    assert canvas.unconditional[:, 2:].tolist() == canvas.tokens[:, 5:].tolist()
    plain = text_canvas([1], 2, MASK)
    plain.write(plain.editable, np.full(plain.tokens.shape, 8))
    assert plain.tokens.tolist() == [[1, 8, 8]]
    assert plain.unconditional is None


def test_an_answer_of_no_tokens_is_refused() -> None:
    for answer in (0, -3, []):
        with pytest.raises(Error, match="an answer of no tokens without a mask"):
            text_canvas([1], answer, MASK)


def test_guided_prompts_are_masked_at_the_same_places() -> None:
    with pytest.raises(Error, match="guidance needs prompts that are masked at the same places"):
        text_canvas([[1, MASK], [MASK, 1]], 2, MASK, guided=True)


def test_one_of_a_few() -> None:
    assert among(np.array([[1, 2, 3]]), np.array([1, 3])).tolist() == [[True, False, True]]
