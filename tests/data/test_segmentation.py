"""Masks that must not reach pycocotools unchecked."""

import contextlib
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as rle

from mtpd.data.segmentation import check_segmentation, decode_counts


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_decode_counts__as_pycocotools_encodes(height: int, width: int, seed: int, density: float) -> None:
    mask = (np.random.default_rng(seed).random((height, width)) < density).astype(np.uint8)
    encoded = rle.encode(np.asfortranarray(mask))
    counts = encoded['counts'].decode()

    runs = decode_counts(counts)
    column_major = np.repeat(np.arange(len(runs)) % 2, runs)
    np.testing.assert_array_equal(column_major.reshape(width, height).T, mask)
    segmentation = {'size': [height, width], 'counts': counts}
    assert check_segmentation(segmentation, height=height, width=width) == segmentation


def test_check_segmentation__all_short_texts() -> None:
    """Whatever passes the check can be decoded; pycocotools crashed on most of what does not."""
    alphabet = [chr(code) for code in range(ord('0') - 1, ord('0') + 65)]
    passed = []
    for counts in map(''.join, itertools.product(alphabet, repeat=2)):
        segmentation = {'size': [3, 5], 'counts': counts}
        with contextlib.suppress(ValueError):
            check_segmentation(segmentation, height=3, width=5)
            passed.append(counts)
    assert [rle.decode({'size': [3, 5], 'counts': counts}).shape for counts in passed] == [(3, 5)] * len(passed)
    # Two numbers that add up to 15, or one written in two characters.
    assert len(passed) == 16 + 1


@given(st.text(st.characters(min_codepoint=1, max_codepoint=127), max_size=30))
def test_check_segmentation__any_text(counts: str) -> None:
    with contextlib.suppress(ValueError):
        check_segmentation({'size': [30, 50], 'counts': counts}, height=30, width=50)


@pytest.mark.parametrize(
    ('segmentation', 'message'),
    [
        ({'size': [3, 5], 'counts': [5, 11]}, 'add up to 16'),
        ({'size': [3, 5], 'counts': [20, -5]}, 'whole numbers'),
        ({'size': [3, 5], 'counts': [7.5, 7.5]}, 'whole numbers'),
        ({'size': [3, 5], 'counts': 15}, 'whole numbers'),
        ({'size': [5, 3], 'counts': [15]}, r'size \[5, 3\]'),
        ({'size': [3, 5], 'counts': '_'}, 'end within'),
        ({'size': [3, 5], 'counts': '!'}, 'character'),
        ([[0, 0, 1e9, 0, 1, 1]], 'far outside'),
        ([[0, 0, float('nan'), 0, 1, 1]], 'not finite'),
        ('text', 'neither'),
        ([5, 6], 'neither'),
    ],
)
def test_check_segmentation__malformed(segmentation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_segmentation(segmentation, height=3, width=5)


def test_check_segmentation__without_mask() -> None:
    assert check_segmentation(None, height=3, width=5) is None
    assert check_segmentation([], height=3, width=5) is None
    assert check_segmentation([[1, 2, 3, 4]], height=3, width=5) is None
