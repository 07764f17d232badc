"""Laws of padded rows beyond the recordings, which test_check compares id for id."""

from mmada_lite.train import prompting
from mmada_lite.vocabulary import SpecialTokens


def test_a_mask_can_be_longer_than_the_reference_expects() -> None:
    """The quirk kept in asking_prompts: a long picture leaves no zeros, and rows then differ in length."""
    special = SpecialTokens(*range(100, 112))
    header = [special.end_header]
    _, masks = prompting.asking_prompts([[1, *header, 2], [1]], [[5] * 9, [6] * 9], special, 8)
    assert [len(mask) for mask in masks] == [15, 12]
