"""Backward greedy selection on matrices made by hand."""

from mtpd.ordering import backward_greedy

TEACHERS = ('weak', 'middle', 'strong')
COSTS = {
    ('student', 'weak'): 0.2,
    ('student', 'middle'): 0.5,
    ('student', 'strong'): 0.8,
    ('weak', 'middle'): 0.3,
    ('weak', 'strong'): 0.6,
    ('middle', 'strong'): 0.4,
    ('middle', 'weak'): 0.1,
    ('strong', 'weak'): 0.1,
    ('strong', 'middle'): 0.1,
}


def test_each_teacher_is_the_closest_to_its_successor() -> None:
    selection = backward_greedy(COSTS, TEACHERS, last='strong', student='student')
    assert selection.teachers == TEACHERS
    assert selection.reasons[1] == 'middle comes before strong: lowest cost, 0.400; weak 0.600'


def test_without_a_student_all_are_ordered() -> None:
    assert backward_greedy(COSTS, TEACHERS, last='strong').teachers == TEACHERS
    assert backward_greedy(COSTS, TEACHERS, last='weak').teachers == ('strong', 'middle', 'weak')


def test_a_detour_is_left_out() -> None:
    costs = COSTS | {('weak', 'middle'): 0.55}
    selection = backward_greedy(costs, TEACHERS, last='strong', student='student')
    assert selection.teachers == ('middle', 'strong')
    assert 'weak (0.550), is no closer to it than the student (0.500)' in selection.reasons[-1]
    assert backward_greedy(costs, TEACHERS, last='strong', student='student', rule='all').teachers == TEACHERS


def test_a_teacher_that_is_hard_to_reach_is_no_candidate() -> None:
    costs = COSTS | {('student', 'middle'): 0.9}
    selection = backward_greedy(costs, TEACHERS, last='strong', student='student')
    assert selection.teachers == ('weak', 'strong')
    assert selection.reasons[1].startswith('middle is not a candidate before strong')


def test_a_limit() -> None:
    selection = backward_greedy(COSTS, TEACHERS, last='strong', student='student', max_teachers=2)
    assert selection.teachers == ('middle', 'strong')
    assert selection.reasons[-1] == 'weak: omitted, the order has at most 2 teachers'


def test_one_teacher() -> None:
    assert backward_greedy({('student', 'strong'): 0.8}, ['strong'], last='strong', student='student').teachers == (
        'strong',
    )


def test_accuracies_rise_along_the_order() -> None:
    accuracies = {'student': 30.0, 'weak': 36.0, 'middle': 45.0, 'strong': 42.0}
    selection = backward_greedy(COSTS, TEACHERS, last='strong', accuracies=accuracies)
    assert selection.teachers == ('weak', 'strong')
    assert selection.reasons[1] == 'middle is not a candidate before strong: its AP of 45 is not below 42'
    accuracies = {'student': 37.0, 'weak': 36.0, 'strong': 42.0}
    selection = backward_greedy(COSTS, TEACHERS, last='strong', student='student', accuracies=accuracies)
    assert selection.teachers == ('middle', 'strong')
    assert selection.reasons[-2:] == (
        "weak is not a candidate before middle: its AP of 36 is not above the student's 37",
        'no teacher before middle: there is no candidate',
    )
