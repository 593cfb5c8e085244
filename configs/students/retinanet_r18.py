"""RetinaNet with ResNet-18: as mmdet's zoo has it, here beside the other light students."""

_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
