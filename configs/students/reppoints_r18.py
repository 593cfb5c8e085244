"""RepPoints with ResNet-18, for whoever needs a faster student than ResNet-50."""

_base_ = 'mmdet::reppoints/reppoints-moment_r50_fpn-gn_head-gn_1x_coco.py'

model = {
    'backbone': {'depth': 18, 'init_cfg': {'type': 'Pretrained', 'checkpoint': 'torchvision://resnet18'}},
    'neck': {'in_channels': [64, 128, 256, 512]},
}
