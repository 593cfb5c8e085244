"""Where a student comes from, and its first weights: each source does what it says, or says why it cannot."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mtpd.cache
from mtpd.errors import InputError, UnavailableError
from mtpd_train.stage import Stage

BuildStage = Callable[..., Stage]


def backbone(stage: Stage) -> dict[str, Tensor]:
    return stage.student.module.get_submodule('backbone').state_dict()


def tensors(stage: Stage) -> dict[str, Tensor]:
    return stage.student.module.state_dict()


def test_a_random_student_depends_on_the_seed_alone(build_stage: BuildStage) -> None:
    first, again, other = (build_stage(seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(tensors(first)[name], value) for name, value in tensors(again).items())
    assert not torch.equal(backbone(first)['conv1.weight'], backbone(other)['conv1.weight'])
    assert first.origin == 'random weights (init.backbone: none)'


def test_the_heads_have_the_classes_of_the_data_set(build_stage: BuildStage) -> None:
    stage = build_stage(model={'bbox_head.num_classes': 80})
    assert stage.classes == ('circle', 'square', 'triangle', 'star', 'cross', 'ring')
    assert stage.student.module.get_parameter('bbox_head.retina_cls.weight').shape[0] == 2 * 6
    assert [(level.name, level.channels) for level in stage.student.levels] == [
        ('p2', 32), ('p3', 32), ('p4', 32), ('p5', 32)
    ]  # fmt: skip


def test_a_backbone_file(build_stage: BuildStage, tmp_path: Path) -> None:
    """As torchvision has it: the classifier's own layer is left out, counters may be missing."""
    source = {name: torch.randn_like(value) for name, value in backbone(build_stage()).items() if value.ndim}
    torch.save(source | {'fc.weight': torch.zeros(3)}, tmp_path / 'resnet.pth')
    stage = build_stage(init={'backbone': str(tmp_path / 'resnet.pth')})
    assert all(torch.equal(backbone(stage)[name], value) for name, value in source.items())
    assert stage.origin == f'backbone from {tmp_path / "resnet.pth"}, {len(source)} tensors'


def test_the_backbone_of_a_detectors_checkpoint(build_stage: BuildStage, teachers: dict[int, Path]) -> None:
    path = teachers[16] / 'student.pth'
    stage = build_stage(init={'backbone': str(path)})
    source = torch.load(path, weights_only=True)['state_dict']
    assert all(torch.equal(value, source[f'backbone.{name}']) for name, value in backbone(stage).items())


def test_a_backbone_file_of_another_network(build_stage: BuildStage, tmp_path: Path) -> None:
    source = backbone(build_stage())
    del source['layer1.0.conv1.weight']
    torch.save(source, tmp_path / 'resnet.pth')
    with pytest.raises(InputError, match=r'lacks 1 of \d+ tensors .* the first is layer1\.0\.conv1\.weight'):
        build_stage(init={'backbone': str(tmp_path / 'resnet.pth')})


def test_a_backbone_file_that_is_not_there(build_stage: BuildStage, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'init\.backbone: there is no file .*nowhere\.pth; give'):
        build_stage(init={'backbone': str(tmp_path / 'nowhere.pth')})


def test_pretrained_without_a_network(build_stage: BuildStage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError('Network is unreachable')

    monkeypatch.setattr('socket.socket.connect', refuse)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    with pytest.raises(UnavailableError) as caught:
        build_stage(student='retinanet_r18_fpn_1x_coco', init={'backbone': 'pretrained'})
    assert 'https://download.pytorch.org/models/resnet18-f37072fd.pth' in str(caught.value)
    assert 'init.backbone' in str(caught.value)
    assert '\n' not in str(caught.value)


def test_pretrained_where_the_config_names_none(build_stage: BuildStage) -> None:
    with pytest.raises(InputError, match=r"init\.backbone is pretrained, but the student's config has no"):
        build_stage(init={'backbone': 'pretrained'})


@pytest.mark.parametrize('parts', [['neck'], ['head'], ['neck', 'head']])
def test_inheritance(parts: list[str], build_stage: BuildStage, caches: dict[int, Path]) -> None:
    """A student with the teacher's neck takes its tensors over; the 6 classes are the same too."""
    widths = dict.fromkeys(('neck.out_channels', 'bbox_head.in_channels', 'bbox_head.feat_channels'), 16)
    shared = {'cache': caches[16], 'model': widths, 'distill': []}
    fresh, stage = build_stage(**shared), build_stage(**shared, init={'inherit': parts})
    teacher = mtpd.cache.open(caches[16]).teacher_weights()
    for name, value in tensors(stage).items():
        part = {'neck': 'neck', 'bbox_head': 'head'}.get(name.split('.')[0], '')
        want = teacher[name] if part in parts else tensors(fresh)[name]
        assert torch.equal(value, want), name
    count = sum(('neck' if name.startswith('neck.') else 'head') in parts for name in teacher)
    assert [entry.outcome for entry in stage.inheritance].count('inherited') == count
    assert not fresh.inheritance


def test_inheritance_skips_other_shapes(build_stage: BuildStage, caches: dict[int, Path]) -> None:
    stage = build_stage(cache=caches[16], distill=[], init={'inherit': ['neck', 'head']})
    teacher = mtpd.cache.open(caches[16]).teacher_weights()
    # 32 channels against 16: only the biases of the two last layers have the same shape.
    same = [name for name, value in tensors(stage).items() if name in teacher and value.shape == teacher[name].shape]
    assert same == ['bbox_head.retina_cls.bias', 'bbox_head.retina_reg.bias']
    assert all(torch.equal(tensors(stage)[name], teacher[name]) for name in same)
    assert len(stage.inheritance) == len(teacher)
    assert {entry.reason for entry in stage.inheritance} == {'', 'another shape'}


def test_inheritance_of_nothing_is_an_error(build_stage: BuildStage, caches: dict[int, Path]) -> None:
    with pytest.raises(InputError, match=r"none of the teacher's \d+ neck and head tensors has a counterpart"):
        build_stage(cache=caches[16], distill=[], init={'inherit': ['neck']})


def test_a_checkpoint(build_stage: BuildStage, teachers: dict[int, Path], tmp_path: Path) -> None:
    widths = dict.fromkeys(('neck.out_channels', 'bbox_head.in_channels', 'bbox_head.feat_channels'), 16)
    path = teachers[16] / 'student.pth'
    stage = build_stage(model=widths, init={'checkpoint': str(path)})
    source = torch.load(path, weights_only=True)['state_dict']
    assert all(torch.equal(value, source[name]) for name, value in tensors(stage).items())
    assert stage.origin == f'student from {path}'
    with pytest.raises(InputError, match=r'init\.checkpoint .*student\.pth: .*another shape'):
        build_stage(init={'checkpoint': str(path)})


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'student': 'retinanet_r5'}, 'retinanet_r5'),
        ({'student': 'nowhere.py'}, r'nowhere\.py: there is no such file'),
        ({'model': {'backbone.deep': 18}}, r"cannot be built: .*unexpected keyword argument 'deep'"),
        ({'model': {'backbone.depth': 19}}, r'cannot be built: .*invalid depth 19'),
        ({'model': {'backbone.depth.x': 19}}, r'model: its changes do not fit the config'),
        ({'model': {'neck.in_channels': [8, 16, 32, 65]}}, r'RetinaNet fails on an input of 256 x 320 px'),
        ({'student': 'ld_r18-gflv1-r101_fpn_1x_coco', 'model': {'teacher_ckpt': None}}, r'gfl_r50_fpn_1x_coco'),
        ({'student': 'crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman'}, r'has 6 classes'),
    ],
)
def test_students_that_cannot_be_built(changes: dict[str, Any], message: str, build_stage: BuildStage) -> None:
    with pytest.raises(InputError, match=message):
        build_stage(**changes)
