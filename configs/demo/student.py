"""The student of the demo and the study: a RetinaNet of 0.23 M parameters for 128 x 128 px images, as an mmdet config.

Neck and head are those of its teachers (teachers/*.py), whose backbones are larger, as with the detectors of the zoo.
"""

default_scope = 'mmdet'

model = {
    'type': 'RetinaNet',
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
        'out_indices': (1, 2, 3),
        'norm_eval': False,
    },
    'neck': {'type': 'FPN', 'in_channels': [16, 32, 64], 'out_channels': 32, 'num_outs': 3},
    'bbox_head': {
        'type': 'RetinaHead',
        'num_classes': 6,
        'in_channels': 32,
        'feat_channels': 32,
        'stacked_convs': 1,
        'anchor_generator': {
            'type': 'AnchorGenerator',
            'octave_base_scale': 3,
            'scales_per_octave': 2,
            'ratios': [1.0],
            'strides': [8, 16, 32],
        },
        'bbox_coder': {'type': 'DeltaXYWHBBoxCoder'},
        'loss_cls': {'type': 'FocalLoss', 'use_sigmoid': True, 'gamma': 2.0, 'alpha': 0.25},
        'loss_bbox': {'type': 'L1Loss'},
    },
    'train_cfg': {
        'assigner': {'type': 'MaxIoUAssigner', 'pos_iou_thr': 0.5, 'neg_iou_thr': 0.4, 'min_pos_iou': 0},
        'sampler': {'type': 'PseudoSampler'},
        'allowed_border': -1,
        'pos_weight': -1,
        'debug': False,
    },
    'test_cfg': {
        'nms_pre': 300,
        'min_bbox_size': 0,
        'score_thr': 0.05,
        'nms': {'type': 'nms', 'iou_threshold': 0.5},
        'max_per_img': 50,
    },
}

test_pipeline = [
    {'type': 'LoadImageFromFile'},
    {'type': 'Resize', 'scale': (128, 128), 'keep_ratio': True},
    {'type': 'LoadAnnotations', 'with_bbox': True},
    {'type': 'PackDetInputs'},
]
