"""The table of `scripts/student_sweep.py`, and how it counts; the sweep itself is no test."""

from pathlib import Path

import pytest

from mtpd.detectors.zoo import find_model

SCRIPTS = Path(__file__).resolve().parent.parent / 'scripts'


@pytest.fixture
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)


@pytest.mark.usefixtures('_scripts')
def test_every_family_is_in_the_zoo_and_tried_once() -> None:
    from student_families import FAMILIES

    assert len(FAMILIES) == len({family.config for family in FAMILIES.values()}) == 96
    assert [name for name, family in FAMILIES.items() if find_model(family.config) is None] == []


@pytest.mark.usefixtures('_scripts')
def test_the_last_line() -> None:
    from student_sweep import Outcome, summary

    outcomes = [Outcome('works', ''), Outcome('works', ''), Outcome('refused', 'x'), Outcome('wrong', 'y')]
    assert summary(outcomes) == 'students 2 of 4, refused 1, unclear 0, wrong 1'
