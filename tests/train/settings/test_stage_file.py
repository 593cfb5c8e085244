"""Stage files: what loads, with which defaults and overrides."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from mtpd.errors import InputError
from mtpd.losses.mgd import MgdOptions
from mtpd_train.settings import stage_settings
from mtpd_train.settings.stage_file import dump_stage, load_stages
from mtpd_train.settings.stage_settings import FilesSettings, StageSettings

# The example of the contract with users; it must load as it is.
CONTRACT = """\
student: retinanet_r50_fpn_1x_coco       # zoo name or path to an mmdet config
cache: cache/r101                         # teacher's cache; geometry and views come from it
init: {checkpoint: null, inherit: [neck, head]}
distill:
  - {loss: mgd, levels: [p3, p4, p5, p6, p7], weight: 2.0e-5, mask_ratio: 0.65}
data: {coco: data/coco, train: train2017, val: val2017, batch_size: 16, workers: 4}
optim: {lr: 0.01, epochs: 12, milestones: [8, 11], warmup_iters: 500, grad_clip: 35}
"""
PLAIN = """\
student: retinanet_r50_fpn_1x_coco
optim:
  lr: 1e-3
  epochs: 12
"""
Load = Callable[..., StageSettings]


def test_the_contracts_example(load: Load) -> None:
    stage = load(CONTRACT)
    assert stage.student == 'retinanet_r50_fpn_1x_coco'
    assert stage.cache == Path('cache/r101')
    assert stage.init.checkpoint is None
    assert stage.init.inherit == ('neck', 'head')
    assert stage.distill == (MgdOptions(loss='mgd', levels=('p3', 'p4', 'p5', 'p6', 'p7')),)
    assert (stage.data.coco, stage.data.train, stage.data.val) == (Path('data/coco'), 'train2017', 'val2017')
    assert (stage.optim.type, stage.optim.lr, stage.optim.milestones) == ('sgd', 0.01, (8, 11))
    assert (stage.optim.warmup_iters, stage.optim.grad_clip) == (500, 35)


def test_plain_training_without_a_cache(load: Load) -> None:
    text = PLAIN + (
        'data:\n'
        '  train: {images: ~/a, annotations: a.json}\n'
        '  val: null\n'
        '  geometry: {scale: 416x320, keep_ratio: false, pad_size: [416, 416]}\n'
    )
    stage = load(text)
    assert stage.cache is None
    assert stage.distill == ()
    assert stage.optim.lr == 1e-3
    assert isinstance(stage.data.train, FilesSettings)
    assert stage.data.train.images == Path.home() / 'a'
    assert stage.data.val is None
    assert stage.data.geometry is not None
    assert stage.data.geometry.scale == (416, 320)
    assert stage.data.geometry.pad_size == (416, 416)


@pytest.mark.parametrize(
    'text',
    [
        CONTRACT,
        PLAIN + 'data: {geometry: {scale: [64, 48]}}\nmodel: {backbone.depth: 18}',
        PLAIN + 'cache: c\ndistill: [{loss: pkd, decay: {kind: step, at: [0.5, 0.8]}}]\n',
        PLAIN + 'cache: c\ndistill: [{loss: fgd, attention: 5e-4}, {loss: fine_grained, reference: pyramid}]',
        PLAIN + 'cache: c\ndistill: [{loss: tar_feature, spread: [1, 2]}]',
        PLAIN + 'cache: c\ndistill: [{loss: pkd, levels: [p3, p4], teacher_levels: [p2, p3], resize: student}]',
    ],
)
def test_what_is_printed_reads_as_the_same_stage(load: Load, text: str) -> None:
    stage = load(text)
    assert load(dump_stage(stage)) == stage


@pytest.mark.parametrize(
    ('override', 'path', 'value'),
    [
        ('optim.lr=2e-4', 'optim.lr', 2e-4),
        ('optim.milestones=[6]', 'optim.milestones', (6,)),
        ('distill.0.weight=3', 'distill.0.weight', 3.0),
        ('distill[0].weight=3', 'distill.0.weight', 3.0),
        ('distill=[]', 'distill', ()),
        ('data.train={images: a, annotations: b}', 'data.train.images', Path('a')),
        ('init.backbone=r18=x.pth', 'init.backbone', 'r18=x.pth'),
        ('model.neck.out_channels=64', 'model.neck.out_channels', 64),
        ('evaluate.every=3', 'evaluate.every', 3),
    ],
)
def test_overrides(load: Load, override: str, path: str, value: Any) -> None:
    found: Any = load(CONTRACT, override)
    for part in path.split('.'):
        if isinstance(found, tuple):
            found = found[int(part)]
        else:
            found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value


def test_overrides_reach_every_stage(tmp_path: Path) -> None:
    paths = [tmp_path / 'one.yaml', tmp_path / 'two.yaml']
    for path in paths:
        path.write_text(PLAIN)
    assert [stage.seed for stage in load_stages(paths, overrides=['seed=5'])] == [5, 5]
    with pytest.raises(InputError, match=r'^--set seed: expected key\.path=value$'):
        load_stages(paths, overrides=['seed'])


def test_dotted_and_nested_model_keys_and_overrides_are_one(load: Load) -> None:
    text = PLAIN + 'model: {backbone.depth: 18, backbone: {norm_eval: false}, neck.num_outs: 4}\n'
    stage = load(text, 'model.backbone.depth=34', 'model.bbox_head.stacked_convs=1')
    assert stage.model == {
        'backbone': {'depth': 34, 'norm_eval': False},
        'neck': {'num_outs': 4},
        'bbox_head': {'stacked_convs': 1},
    }


def test_an_explicit_empty_distill_trains_the_baseline(load: Load) -> None:
    assert load(PLAIN + 'cache: c\ndistill: []\n').distill == ()


def test_a_later_stage_must_not_inherit_over_what_was_learned(tmp_path: Path) -> None:
    paths = [tmp_path / 'one.yaml', tmp_path / 'two.yaml']
    for path in paths:
        path.write_text(CONTRACT)
    with pytest.raises(InputError, match=r'two\.yaml has 1 problem\n  line 3  init\.inherit  would overwrite'):
        load_stages(paths)
    # With a checkpoint of its own the stage starts anew, and may inherit.
    paths[1].write_text(CONTRACT.replace('checkpoint: null', 'checkpoint: a.pth'))
    assert len(load_stages(paths)) == 2


def test_a_teacher_in_the_loop(load: Load) -> None:
    text = PLAIN + 'teacher: r101\ncheckpoint: ~/r101.pth\ntrust_checkpoint: true\ndata: {geometry: {scale: 640x480}}\n'
    stage = load(text + 'init: {inherit: [neck]}\ndistill: [{loss: pkd}]\n')
    assert (stage.teacher, stage.checkpoint, stage.trust_checkpoint) == ('r101', Path.home() / 'r101.pth', True)
    assert stage.data.geometry is not None
    assert load(PLAIN + 'teacher: t\ndistill: []\n').distill == ()


def test_every_field_is_described() -> None:
    values = list(vars(stage_settings).values())
    sections = [value for value in values if isinstance(value, type) and issubclass(value, BaseModel)]
    assert len(sections) > 10
    for section in sections:
        for name, field in section.model_fields.items():
            assert field.description, f'{section.__name__}.{name}'
            assert '\n' not in field.description
