"""A Faster R-CNN of 0.2 M parameters for 128 x 128 px images, as an mmdet config: no part of the demo, but a two-stage
detector to try things with, as the tests do, and the base of faster_student.py.
"""

default_scope = 'mmdet'

_assigner = {'type': 'MaxIoUAssigner', 'pos_iou_thr': 0.5, 'neg_iou_thr': 0.5, 'min_pos_iou': 0.5}
_sampler = {'type': 'RandomSampler', 'num': 32, 'pos_fraction': 0.25, 'neg_pos_ub': -1, 'add_gt_as_proposals': True}
_coder = {'type': 'DeltaXYWHBBoxCoder', 'target_means': [0.0] * 4}

model = {
    'type': 'FasterRCNN',
    'data_preprocessor': {
        'type': 'DetDataPreprocessor',
        'mean': [127.5, 127.5, 127.5],
        'std': [50.0, 50.0, 50.0],
        'bgr_to_rgb': True,
        'pad_size_divisor': 32,
    },
    'backbone': {
        'type': 'ResNet',
        'depth': 18,
        'base_channels': 8,
        'num_stages': 4,
        'out_indices': (0, 1, 2, 3),
        'norm_eval': False,
    },
    'neck': {'type': 'FPN', 'in_channels': [8, 16, 32, 64], 'out_channels': 16, 'num_outs': 5},
    'rpn_head': {
        'type': 'RPNHead',
        'in_channels': 16,
        'feat_channels': 16,
        'anchor_generator': {
            'type': 'AnchorGenerator',
            'scales': [4],
            'ratios': [0.5, 1.0, 2.0],
            'strides': [4, 8, 16, 32, 64],
        },
        'bbox_coder': _coder | {'target_stds': [1.0] * 4},
        'loss_cls': {'type': 'CrossEntropyLoss', 'use_sigmoid': True},
        'loss_bbox': {'type': 'L1Loss'},
    },
    'roi_head': {
        'type': 'StandardRoIHead',
        'bbox_roi_extractor': {
            'type': 'SingleRoIExtractor',
            'roi_layer': {'type': 'RoIAlign', 'output_size': 5, 'sampling_ratio': 0},
            'out_channels': 16,
            'featmap_strides': [4, 8, 16, 32],
            'finest_scale': 14,
        },
        'bbox_head': {
            'type': 'Shared2FCBBoxHead',
            'in_channels': 16,
            'fc_out_channels': 48,
            'roi_feat_size': 5,
            'num_classes': 6,
            'bbox_coder': _coder | {'target_stds': [0.1, 0.1, 0.2, 0.2]},
            'reg_class_agnostic': False,
            'loss_cls': {'type': 'CrossEntropyLoss', 'use_sigmoid': False},
            'loss_bbox': {'type': 'L1Loss'},
        },
    },
    'train_cfg': {
        'rpn': {
            'assigner': _assigner | {'pos_iou_thr': 0.7, 'neg_iou_thr': 0.3, 'min_pos_iou': 0.3},
            'sampler': _sampler | {'num': 64, 'pos_fraction': 0.5, 'add_gt_as_proposals': False},
            'allowed_border': -1,
            'pos_weight': -1,
            'debug': False,
        },
        'rpn_proposal': {
            'nms_pre': 200,
            'max_per_img': 100,
            'nms': {'type': 'nms', 'iou_threshold': 0.7},
            'min_bbox_size': 0,
        },
        'rcnn': {'assigner': _assigner, 'sampler': _sampler, 'pos_weight': -1, 'debug': False},
    },
    'test_cfg': {
        'rpn': {
            'nms_pre': 200,
            'max_per_img': 100,
            'nms': {'type': 'nms', 'iou_threshold': 0.7},
            'min_bbox_size': 0,
        },
        'rcnn': {'score_thr': 0.05, 'nms': {'type': 'nms', 'iou_threshold': 0.5}, 'max_per_img': 50},
    },
}

test_pipeline = [
    {'type': 'LoadImageFromFile'},
    {'type': 'Resize', 'scale': (128, 128), 'keep_ratio': True},
    {'type': 'LoadAnnotations', 'with_bbox': True},
    {'type': 'PackDetInputs'},
]
