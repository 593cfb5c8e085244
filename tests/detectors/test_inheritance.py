"""What a student inherits, decided from names and shapes alone."""

import torch

from mtpd.detectors.inheritance import Inheritance, inherited_tensors, plan_inheritance

CASCADE = {
    'backbone.conv1.weight': (8, 3, 7, 7),
    'neck.lateral_convs.0.conv.weight': (256, 192, 1, 1),
    'neck.lateral_convs.0.conv.bias': (256,),
    'rpn_head.rpn_reg.weight': (12, 256, 1, 1),
    **{f'roi_head.bbox_head.{stage}.fc_cls.weight': (81, 64) for stage in range(3)},
    **{f'roi_head.bbox_head.{stage}.fc_reg.weight': (4, 64) for stage in range(3)},
    **{f'roi_head.bbox_head.{stage}.fc_reg.bias': (4,) for stage in range(3)},
    'roi_head.semantic_head.conv_logits.weight': (183, 256, 1, 1),
}
SINGLE = {
    'backbone.conv1.weight': (8, 3, 7, 7),
    'neck.lateral_convs.0.conv.weight': (256, 512, 1, 1),
    'neck.lateral_convs.0.conv.bias': (256,),
    'neck.fpn_convs.4.conv.weight': (256, 256, 3, 3),
    'rpn_head.rpn_reg.weight': (12, 256, 1, 1),
    'roi_head.bbox_head.fc_cls.weight': (81, 64),
    'roi_head.bbox_head.fc_reg.weight': (320, 64),
    'roi_head.bbox_head.fc_reg.bias': (320,),
}
BOTH = ('neck', 'head')


def by_teacher(plan: tuple[Inheritance, ...]) -> dict[str, Inheritance]:
    return {entry.teacher: entry for entry in plan if entry.teacher}


def test_every_tensor_has_one_entry() -> None:
    plan = plan_inheritance(SINGLE, CASCADE, parts=BOTH)
    assert [entry.teacher for entry in plan if entry.teacher] == sorted(CASCADE)[1:]  # without the backbone
    students = [entry.student for entry in plan if entry.student]
    assert sorted(students) == sorted(one for one in SINGLE if not one.startswith('backbone.'))


def test_a_cascade_gives_its_first_stage_to_a_single_head() -> None:
    plan = by_teacher(plan_inheritance(SINGLE, CASCADE, parts=BOTH))
    assert plan['rpn_head.rpn_reg.weight'].outcome == 'inherited'
    first = plan['roi_head.bbox_head.0.fc_cls.weight']
    assert (first.outcome, first.student) == ('inherited', 'roi_head.bbox_head.fc_cls.weight')
    tiled = plan['roi_head.bbox_head.0.fc_reg.weight']
    assert (tiled.outcome, tiled.num_repeats, tiled.detail) == ('tiled', 80, '4x64 for each of 80 classes')
    for stage in (1, 2):
        later = plan[f'roi_head.bbox_head.{stage}.fc_cls.weight']
        assert (later.outcome, later.student) == ('skipped', None)
        assert later.reason.startswith('later cascade stage')
    assert plan['roi_head.semantic_head.conv_logits.weight'].reason == 'no counterpart in the student'


def test_other_shapes_are_skipped_and_named() -> None:
    plan = plan_inheritance(SINGLE, CASCADE, parts=BOTH)
    lateral = by_teacher(plan)['neck.lateral_convs.0.conv.weight']
    assert (lateral.outcome, lateral.shape) == ('skipped', (256, 512, 1, 1))
    assert (lateral.reason, lateral.detail) == ('another shape', "the teacher's is 256x192x1x1")
    # As in the released code, a bias comes over without its weight.
    assert by_teacher(plan)['neck.lateral_convs.0.conv.bias'].outcome == 'inherited'
    (fresh,) = (entry for entry in plan if entry.teacher is None)
    assert fresh.student == 'neck.fpn_convs.4.conv.weight'
    assert fresh.reason.startswith('not in the teacher')


def test_another_number_of_classes_leaves_the_rest_of_the_head() -> None:
    six = SINGLE | {
        'roi_head.bbox_head.fc_cls.weight': (7, 64),
        'roi_head.bbox_head.fc_reg.weight': (24, 64),
        'roi_head.bbox_head.fc_reg.bias': (24,),
    }
    plan = by_teacher(plan_inheritance(six, CASCADE, parts=BOTH))
    assert plan['roi_head.bbox_head.0.fc_cls.weight'].reason == 'another number of classes'
    assert plan['roi_head.bbox_head.0.fc_cls.weight'].detail == "the teacher's is 81x64"
    assert plan['roi_head.bbox_head.0.fc_reg.weight'].num_repeats == 6
    assert plan['rpn_head.rpn_reg.weight'].outcome == 'inherited'
    # From 80 boxes to 6 there is no way; another width of the layer before is no matter of classes.
    single = by_teacher(plan_inheritance(six, SINGLE, parts=BOTH))
    assert single['roi_head.bbox_head.fc_reg.weight'].reason == 'another number of classes'
    wide = SINGLE | {'roi_head.bbox_head.fc_reg.weight': (320, 128)}
    reason = by_teacher(plan_inheritance(wide, CASCADE, parts=BOTH))['roi_head.bbox_head.0.fc_reg.weight'].reason
    assert reason == 'another shape'


def test_only_the_parts_that_were_asked_for() -> None:
    plan = plan_inheritance(SINGLE, CASCADE, parts=['neck'])
    heads = [entry for entry in plan if entry.teacher and not entry.teacher.startswith('neck.')]
    assert {entry.reason for entry in heads} == {'head not asked for'}
    assert {entry.student for entry in plan if entry.student} == {one for one in SINGLE if one.startswith('neck.')}
    assert {entry.reason for entry in by_teacher(plan_inheritance(SINGLE, CASCADE, parts=['head'])).values()} >= {
        'neck not asked for'
    }


def test_from_cascade_to_cascade_every_stage_comes_over() -> None:
    plan = plan_inheritance(CASCADE, CASCADE, parts=BOTH)
    assert {entry.outcome for entry in plan} == {'inherited'}
    assert all(entry.student == entry.teacher for entry in plan)


def test_a_class_agnostic_student_gets_a_copy() -> None:
    agnostic = SINGLE | {'roi_head.bbox_head.fc_reg.weight': (4, 64), 'roi_head.bbox_head.fc_reg.bias': (4,)}
    plan = by_teacher(plan_inheritance(agnostic, CASCADE, parts=BOTH))
    assert plan['roi_head.bbox_head.0.fc_reg.weight'].outcome == 'inherited'


def test_tiled_tensors() -> None:
    student = {'roi_head.bbox_head.fc_reg.weight': (12, 2), 'roi_head.bbox_head.fc_reg.bias': (12,), 'norm.count': ()}
    teacher = {
        'roi_head.bbox_head.0.fc_reg.weight': torch.arange(8.0).view(4, 2),
        'roi_head.bbox_head.0.fc_reg.bias': torch.arange(4.0),
        'norm.count': torch.tensor(7),
    }
    plan = plan_inheritance(student, {name: tuple(value.shape) for name, value in teacher.items()}, parts=BOTH)
    tensors = inherited_tensors(plan, teacher)
    assert {name: tuple(value.shape) for name, value in tensors.items()} == student
    assert tensors['norm.count'] == 7
    for number in range(3):
        rows = slice(4 * number, 4 * number + 4)
        weight, bias = (tensors[f'roi_head.bbox_head.fc_reg.{one}'] for one in ('weight', 'bias'))
        assert torch.equal(weight[rows], teacher['roi_head.bbox_head.0.fc_reg.weight'])
        assert torch.equal(bias[rows], teacher['roi_head.bbox_head.0.fc_reg.bias'])
