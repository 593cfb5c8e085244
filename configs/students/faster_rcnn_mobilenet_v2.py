"""Faster R-CNN with MobileNetV2, whose statistics stay those of ImageNet, as in mmdet's ResNet recipes."""

_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'

model = {
    'backbone': {
        '_delete_': True,
        'type': 'MobileNetV2',
        'out_indices': (1, 2, 4, 6),  # strides 4, 8, 16, 32
        'norm_eval': True,
        'init_cfg': {'type': 'Pretrained', 'checkpoint': 'open-mmlab://mmdet/mobilenet_v2'},
    },
    'neck': {'in_channels': [24, 32, 96, 320]},
}
