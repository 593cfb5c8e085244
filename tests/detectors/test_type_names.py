"""A type has one name, however a config writes it."""

from typing import Any

import pytest

from mtpd.detectors.model_config import type_name


class Own:
    """A class that a config of pure Python refers to."""


@pytest.mark.parametrize(
    ('kind', 'name'),
    [('Own', 'Own'), ('mmdet.Own', 'Own'), ('a.b.Own', 'Own'), (Own, 'Own'), (None, '')],
    ids=repr,
)
def test_the_bare_name(kind: Any, name: str) -> None:
    assert type_name({'type': kind}) == name


def test_no_type() -> None:
    assert type_name({}) == ''
