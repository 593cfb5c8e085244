"""Numbers and names for people."""

import pytest

from mtpd.system.text import format_bytes, format_duration, listed


@pytest.mark.parametrize(
    ('seconds', 'text'), [(3.14, '3.1 s'), (89, '89.0 s'), (90, '1.5 min'), (5399, '90.0 min'), (9000, '2.5 h')]
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ('num_bytes', 'text'), [(0, '0 B'), (999, '999 B'), (1000, '1.00 kB'), (2.5e6, '2.50 MB'), (1.234e9, '1.23 GB')]
)
def test_bytes(num_bytes: float, text: str) -> None:
    assert format_bytes(num_bytes) == text


def test_names_are_cut_and_cannot_control_the_terminal() -> None:
    assert listed(['a', 'b', 'c', 'd']) == 'a, b, c, ...'
    assert listed(['\x1b[2Jlong'], length=6) == '?[2Jlo'
    assert listed([]) == ''
