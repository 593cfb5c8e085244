"""Levels are paired by stride."""

import pytest

from mtpd.errors import InputError
from mtpd.geometry import Level, level_name
from mtpd.losses.match import LevelPair, match_levels


def levels(*strides: int, channels: int = 8) -> list[Level]:
    return [Level(level_name(stride), stride, channels) for stride in strides]


RETINANET, MASK_RCNN = levels(8, 16, 32, 64, 128), levels(4, 8, 16, 32, channels=256)


def test_all_shared_levels_whatever_their_index() -> None:
    pairs = match_levels(RETINANET, MASK_RCNN)
    assert [pair.name for pair in pairs] == ['p3', 'p4', 'p5']
    assert pairs[0] == LevelPair(student=RETINANET[0], teacher=MASK_RCNN[1])


def test_wanted_levels_in_the_order_asked_for() -> None:
    assert [pair.name for pair in match_levels(RETINANET, MASK_RCNN, levels=['p5', 'p3'])] == ['p5', 'p3']


def test_strides_that_are_no_power_of_two() -> None:
    assert [pair.name for pair in match_levels(levels(14, 28), levels(28))] == ['s28']


@pytest.mark.parametrize('missing', ['p2', 'p7', 'p9'])
def test_a_level_that_one_side_lacks(missing: str) -> None:
    with pytest.raises(InputError) as caught:
        match_levels(RETINANET, MASK_RCNN, levels=['p3', missing])
    message = str(caught.value)
    assert message == (
        f'cannot distil {missing}: the student has p3, p4, p5, p6, p7, the teacher p2, p3, p4, p5; '
        f'choose levels from p3, p4, p5'
    )


def test_nothing_shared() -> None:
    with pytest.raises(InputError, match='share no level to distil: the student has p3, the teacher p4, p5;'):
        match_levels(levels(8), levels(16, 32))


def test_pairs_as_asked() -> None:
    pairs = match_levels(
        RETINANET, MASK_RCNN, levels=['p3', 'p4', 'p5'], teacher_levels=['p2', 'p4', 'p3'], resize='student'
    )
    assert [pair.name for pair in pairs] == ['p3-p2', 'p4', 'p5-p3']
    assert [pair.resize for pair in pairs] == ['student', 'none', 'student']
    assert pairs[0].compared == Level('p2', 4, 256)
    (pair,) = match_levels(RETINANET, MASK_RCNN, levels=['p3'], teacher_levels=['p2'], resize='teacher')
    assert (pair.name, pair.compared) == ('p3-p2', Level('p3', 8, 256))


def test_other_strides_without_a_resize() -> None:
    with pytest.raises(InputError) as caught:
        match_levels(RETINANET, MASK_RCNN, levels=['p4', 'p3'], teacher_levels=['p4', 'p2'])
    assert str(caught.value) == (
        'cannot distil p3 of the student (stride 8) from p2 of the teacher (stride 4): their grids differ; '
        'set resize to student or teacher, or pair levels of one stride'
    )


@pytest.mark.parametrize('teacher_wanted', [None, ['p3', 'p4']])
def test_a_resize_without_other_strides(teacher_wanted: list[str] | None) -> None:
    with pytest.raises(InputError, match=r'resize is student, but .* have the same strides on p3, p4; remove it'):
        match_levels(RETINANET, MASK_RCNN, levels=['p3', 'p4'], teacher_levels=teacher_wanted, resize='student')


@pytest.mark.parametrize(
    ('wanted', 'teacher_wanted', 'message'),
    [
        (['p3'], ['p2', 'p3'], 'one level for each of levels p3; give both'),
        (None, ['p2'], r'one level for each of levels \(not given\); give both'),
        (['p2'], ['p2'], 'cannot distil p2: the student has p3, p4, p5, p6, p7; choose one of these'),
        (['p3'], ['p6'], 'cannot distil p6: the teacher has p2, p3, p4, p5; choose one of these'),
    ],
)
def test_lists_that_do_not_fit(wanted: list[str] | None, teacher_wanted: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        match_levels(RETINANET, MASK_RCNN, levels=wanted, teacher_levels=teacher_wanted, resize='student')


HOURGLASS = (Level('p4', 16, 8), Level('p5', 32, 8), Level('p5_2', 32, 4))


def test_of_several_maps_of_one_stride_the_first_has_the_name() -> None:
    """No level learns from another one in silence: what it learns from has its name, or was named."""
    student = (Level('p4', 16, 3), Level('p5', 32, 3))
    assert [pair.teacher.name for pair in match_levels(student, HOURGLASS)] == ['p4', 'p5']
    assert [pair.teacher.name for pair in match_levels(HOURGLASS, HOURGLASS)] == ['p4', 'p5', 'p5_2']
    assert [pair.student.name for pair in match_levels(HOURGLASS, student)] == ['p4', 'p5']
    (pair,) = match_levels(student, HOURGLASS, levels=['p5'], teacher_levels=['p5_2'])
    assert (pair.teacher, pair.name, pair.resize) == (HOURGLASS[2], 'p5-p5_2', 'none')
    with pytest.raises(InputError, match='cannot distil p5_2: the student has p4, p5'):
        match_levels(student, HOURGLASS, levels=['p5_2'])
