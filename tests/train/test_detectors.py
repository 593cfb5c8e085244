"""Students of the kinds that people use, from the zoo, made tiny: they distil, are evaluated, and load in mmdet."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

# mmengine 0.10.7 on Python 3.12.
pytestmark = pytest.mark.filterwarnings("ignore:'pkgutil.find_loader' is deprecated:DeprecationWarning")

RESNET = {'backbone.depth': 18, 'backbone.base_channels': 8, 'neck.in_channels': [8, 16, 32, 64]}
TWO_STAGE = RESNET | {
    'neck.out_channels': 16,
    'rpn_head.in_channels': 16,
    'rpn_head.feat_channels': 16,
    'roi_head.bbox_roi_extractor.out_channels': 16,
    'roi_head.bbox_head.in_channels': 16,
    'roi_head.bbox_head.fc_out_channels': 32,
    'train_cfg.rpn_proposal.nms_pre': 100,
    'train_cfg.rpn_proposal.max_per_img': 50,
    'train_cfg.rcnn.sampler.num': 32,
    'test_cfg.rpn.nms_pre': 50,
    'test_cfg.rpn.max_per_img': 20,
    'test_cfg.rcnn.score_thr': 0.01,
}
MASKS = {
    'roi_head.mask_roi_extractor.out_channels': 16,
    'roi_head.mask_head.in_channels': 16,
    'roi_head.mask_head.conv_out_channels': 16,
    'roi_head.mask_head.num_convs': 1,
}
REPPOINTS = {
    'neck.out_channels': 16,
    'neck.norm_cfg.num_groups': 4,
    'bbox_head.norm_cfg.num_groups': 4,
    'bbox_head.in_channels': 16,
    'bbox_head.feat_channels': 16,
    'bbox_head.point_feat_channels': 16,
}
STUDENTS = {
    'retinanet_r18_fpn_1x_coco': RESNET
    | {'neck.out_channels': 16, 'bbox_head.in_channels': 16, 'bbox_head.feat_channels': 16},
    'reppoints-moment_r50_fpn-gn_head-gn_1x_coco': RESNET | REPPOINTS,
    'faster-rcnn_r50_fpn_1x_coco': TWO_STAGE,
    'mask-rcnn_r50_fpn_1x_coco': TWO_STAGE | MASKS,
}
BOX_LOSSES = {'loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox'}
LOSSES = {
    'retinanet_r18_fpn_1x_coco': {'loss_cls', 'loss_bbox'},
    'reppoints-moment_r50_fpn-gn_head-gn_1x_coco': {'loss_cls', 'loss_pts_init', 'loss_pts_refine'},
    'faster-rcnn_r50_fpn_1x_coco': BOX_LOSSES,
    'mask-rcnn_r50_fpn_1x_coco': BOX_LOSSES | {'loss_mask'},
}
# What both have: the teacher has p2 to p5.
LEVELS = {
    'retinanet_r18_fpn_1x_coco': {'p3', 'p4', 'p5'},
    'reppoints-moment_r50_fpn-gn_head-gn_1x_coco': {'p3', 'p4', 'p5'},
}


@pytest.mark.parametrize('name', STUDENTS)
def test_one_epoch(
    name: str,
    train: Callable[..., Any],
    write_stage: Callable[..., Path],
    records: Callable[..., list[dict[str, Any]]],
    caches: dict[int, Path],
    tmp_path: Path,
) -> None:
    stage = write_stage(
        tmp_path / 'stage.yaml',
        student=name,
        model=STUDENTS[name],
        cache=caches[24],
        distill=[{'loss': 'masked_mse'}, {'loss': 'mgd'}],
    )
    train(stage, '--out', tmp_path / 'run')
    trained, evaluated = records(tmp_path / 'run')
    levels = LEVELS.get(name, {'p2', 'p3', 'p4', 'p5'})
    distilled = {f'distill/{loss}/{level}' for loss in ('masked_mse', 'mgd') for level in levels}
    assert trained['losses'].keys() == LOSSES[name] | distilled | {'total'}
    assert 'not_finite' not in trained
    assert all(value >= 0 for value in trained['losses'].values())
    kinds = {metric.split('/')[0] for metric in evaluated['metrics']}
    assert kinds == ({'box', 'mask'} if name.startswith('mask') else {'box'})
    assert all(-1 <= value <= 1 for value in evaluated['metrics'].values())
    weights = torch.load(tmp_path / 'run' / 'student.pth', weights_only=True)['state_dict']
    classifier = [
        value
        for key, value in weights.items()
        if key.endswith(('retina_cls.bias', 'reppoints_cls_out.bias', 'fc_cls.bias'))
    ]
    outputs = {'retinanet': 6 * 9, 'reppoints': 6}  # and 6 classes and the background
    assert [len(value) for value in classifier] == [outputs.get(name.partition('_')[0].partition('-')[0], 6 + 1)]
    if name.startswith('mask'):
        assert weights['roi_head.mask_head.conv_logits.bias'].shape == (6,)
    assert_loads_in_mmdet(tmp_path / 'run')


def assert_loads_in_mmdet(run: Path) -> None:
    from mmdet.apis import init_detector
    from mmengine.runner import load_checkpoint

    model = init_detector(str(run / 'student_config.py'), str(run / 'student.pth'), device='cpu')
    load_checkpoint(model, str(run / 'student.pth'), strict=True)
