"""An ordinary pytest file beside the experiment: is the data what the experiment takes it for?"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return load_digits().data


def test_a_picture_is_64_pixels_with_17_grey_levels(pictures: np.ndarray) -> None:
    assert pictures.shape == (1797, 64)
    assert (pictures.min(), pictures.max()) == (0, 16)


def test_the_ten_digits_are_balanced() -> None:
    counts = Counter(load_digits().target.tolist())
    assert sorted(counts) == list(range(10))
    assert max(counts.values()) < 1.1 * min(counts.values())


def test_no_picture_occurs_twice(pictures: np.ndarray) -> None:
    """A picture held out must not be one of those trained on."""
    assert len(np.unique(pictures, axis=0)) == len(pictures)


@pytest.mark.parametrize("ctx_len", [16, 32, 64])
def test_every_length_of_context_has_something_to_see(pictures: np.ndarray, ctx_len: int) -> None:
    seen = pictures[:, :ctx_len]
    assert (seen.sum(axis=1) > 0).all()
