"""Mask R-CNN with ResNet-18, for whoever needs a faster student than ResNet-50."""

_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'

model = {
    'backbone': {'depth': 18, 'init_cfg': {'type': 'Pretrained', 'checkpoint': 'torchvision://resnet18'}},
    'neck': {'in_channels': [64, 128, 256, 512]},
}
