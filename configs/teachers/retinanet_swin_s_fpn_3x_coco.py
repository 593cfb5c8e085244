"""RetinaNet-Swin-S, which mmdet's zoo does not have, in the 3x recipe of mmdet's Mask R-CNN-Swin."""

_base_ = './retinanet_swin_t_fpn_3x_coco.py'

WEIGHTS = 'https://github.com/SwinTransformer/storage/releases/download/v1.0.0'

model = {
    'backbone': {
        'depths': [2, 2, 18, 2],
        'init_cfg': {'checkpoint': f'{WEIGHTS}/swin_small_patch4_window7_224.pth'},
    },
}
