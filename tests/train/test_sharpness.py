"""Laws of sharpness: a flat picture has no edge, a blurred edge less than a sharp one, by the known factor."""

import numpy as np
import pytest

from mmada_lite.train.sharpness import edge_energy, sharpness


def edge(width: int) -> np.ndarray:
    """A rise from 0 to 240 over `width` steps, down the middle of [1, 8, 16, 3]."""
    row = np.clip((np.arange(16) - 4) * 240 // width, 0, 240).astype(np.uint8)
    return np.broadcast_to(row[None, None, :, None], (1, 8, 16, 3)).copy()


def test_a_flat_picture_has_no_edge_and_a_blurred_one_less() -> None:
    assert edge_energy(np.full((2, 4, 4, 3), 200, np.uint8)).tolist() == [0, 0]
    assert edge_energy(edge(1)).tolist() == [240.0**2 * 8 * 3]
    assert edge_energy(edge(4)) == pytest.approx(edge_energy(edge(1)) / 4)
    assert edge_energy(edge(3).transpose(0, 2, 1, 3)) == pytest.approx(edge_energy(edge(3)))


def test_sharpness_is_a_ratio_of_sums() -> None:
    sharp, soft = edge(1), edge(2)
    assert sharpness(sharp, sharp) == 1
    assert sharpness(soft, sharp) == pytest.approx(1 / 2)
    assert sharpness(np.concatenate([soft, sharp]), np.concatenate([sharp, sharp])) == pytest.approx(3 / 4)
    with pytest.raises(ValueError, match="no edge at all"):
        sharpness(sharp, np.zeros_like(sharp))
