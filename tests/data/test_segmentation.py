"""Masks that must not reach pycocotools unchecked."""

import contextlib
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as rle

from mtpd.data.segmentation import box_outline, check_segmentation, decode_counts, mask_area


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_decode_counts__as_pycocotools_encodes(height: int, width: int, seed: int, density: float) -> None:
    mask = (np.random.default_rng(seed).random((height, width)) < density).astype(np.uint8)
    encoded = rle.encode(np.asfortranarray(mask))
    counts = encoded['counts'].decode()

    runs = decode_counts(counts)
    column_major = np.repeat(np.arange(len(runs)) % 2, runs)
    np.testing.assert_array_equal(column_major.reshape(width, height).T, mask)
    segmentation = {'size': [height, width], 'counts': counts}
    assert check_segmentation(segmentation, height=height, width=width) == (segmentation, 0)
    assert mask_area(segmentation, height=height, width=width) == mask.sum()
    assert mask_area({**segmentation, 'counts': runs}, height=height, width=width) == mask.sum()


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


MALFORMED: list[tuple[Any, str]] = [
    ({'size': [3, 5], 'counts': [5, 11]}, 'counts .* add up to 16'),
    ({'size': [3, 5], 'counts': [20, -5]}, 'counts is .*-5.* whole numbers'),
    ({'size': [3, 5], 'counts': [7.5, 7.5]}, 'counts is .*7.5.* whole numbers'),
    ({'size': [3, 5], 'counts': [True, 14]}, 'counts is .*True.* whole numbers'),
    ({'size': [3, 5], 'counts': 15}, 'counts is 15.* whole numbers'),
    ({'size': [3, 5]}, "'counts' is missing"),
    ({'counts': [15]}, "'size' is missing"),
    ({'size': [5, 3], 'counts': [15]}, r'size is \[5, 3\]'),
    ({'size': '3x5', 'counts': [15]}, r"size is '3x5'"),
    ({'size': [3, 5], 'counts': '_'}, 'counts ends within'),
    ({'size': [3, 5], 'counts': '!'}, 'character'),
    ({'size': [3, 5], 'counts': 'o' * 10**5}, 'counts has a number'),
    ([[0, 0, 1e9, 0, 1, 1]], r'\[0\]\[2\] is 1000000000.0.* far outside'),
    ([[0, 0, 1, 1, 2, 2], [0, 0, float('nan'), 0, 1, 1]], r'\[1\]\[2\] is nan.* not finite'),
    ([[0, 0, 10**400, 0, 1, 1]], r'\[0\]\[2\] is 1000.* far outside'),
    ([[0, 0, 1, '7', 1, 1]], r"\[0\]\[3\] is '7', expected polygons \[\[x, y, x, y, ...\], ...\] of numbers"),
    ([[0, 0, None]], r'\[0\]\[2\] is None'),
    ([[0, True]], r'\[0\]\[1\] is True'),
    ([[[0, 0], [5, 0], [5, 5]]], r'\[0\]\[0\] is \[0, 0\]'),
    ([[0, 0], [5, 0], [5, 5]], r'a list of points \[x, y\]'),
    ([0, 0, 5, 0, 5, 5], r'\[0\] is 0, expected polygons'),
    ([[0, 0, 5, 0, 5, 5], {'size': [3, 5], 'counts': [15]}], r'\[1\] is \{'),
    ('text', "is 'text', expected polygons"),
    (0, 'is 0, expected polygons'),
    (False, 'is False, expected polygons'),
]


@pytest.mark.parametrize(('segmentation', 'message'), MALFORMED)
def test_check_segmentation__malformed(segmentation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f'segmentation.*{message}'):
        check_segmentation(segmentation, height=3, width=5)


def test_check_segmentation__without_mask() -> None:
    nothings: list[Any] = [None, [], {}, '']
    for nothing in nothings:
        assert check_segmentation(nothing, height=3, width=5) == (None, 0)
    assert check_segmentation([[1, 2, 3, 4], [], [0, 0, 1, 1, 2]], height=3, width=5) == (None, 3)
    triangle = [0, 0, 5, 0, 5, 3]
    assert check_segmentation([[1, 2, 3, 4], triangle], height=3, width=5) == ([triangle], 1)


def test_box_outline__of_any_box_is_in_the_image() -> None:
    """What pycocotools draws, which a point far outside would end the process of."""
    for box, area in {(1, 1, 4, 3): 6, (-1e9, -1e9, 1e9, 1e9): 15, (7, 1, 9, 2): 0, (3, 2, 3, 2): 0}.items():
        outline = box_outline(box, height=3, width=5)
        assert mask_area(outline, height=3, width=5) == area
