"""The study's two-stage student: a Faster R-CNN of 0.24 M parameters on the backbone and levels of student.py."""

_base_ = 'faster_rcnn_tiny.py'

model = {
    'backbone': {'out_indices': (1, 2, 3)},
    'neck': {'in_channels': [16, 32, 64], 'out_channels': 32, 'num_outs': 3},
    'rpn_head': {
        'in_channels': 32,
        'feat_channels': 32,
        'anchor_generator': {
            '_delete_': True,
            'type': 'AnchorGenerator',
            'octave_base_scale': 3,
            'scales_per_octave': 2,
            'ratios': [1.0],
            'strides': [8, 16, 32],
        },
    },
    'roi_head': {
        # RoIs from 20 px on are of p4, from 40 px on of p5.
        'bbox_roi_extractor': {'out_channels': 32, 'featmap_strides': [8, 16, 32], 'finest_scale': 10},
        'bbox_head': {'in_channels': 32, 'fc_out_channels': 64},
    },
}
