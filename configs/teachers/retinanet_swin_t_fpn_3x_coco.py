"""RetinaNet-Swin-T in the 3x recipe of mmdet's Mask R-CNN-Swin: AdamW, 36 epochs, many scales, crops."""

_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

WEIGHTS = 'https://github.com/SwinTransformer/storage/releases/download/v1.0.0'

model = {
    'backbone': {
        '_delete_': True,
        'type': 'SwinTransformer',
        'embed_dims': 96,
        'depths': [2, 2, 6, 2],
        'num_heads': [3, 6, 12, 24],
        'window_size': 7,
        'drop_path_rate': 0.2,
        'out_indices': (1, 2, 3),
        'convert_weights': True,
        'init_cfg': {'type': 'Pretrained', 'checkpoint': f'{WEIGHTS}/swin_tiny_patch4_window7_224.pth'},
    },
    'neck': {'in_channels': [192, 384, 768], 'start_level': 0},
}

# What follows is for mmdet's own trainer; mtpd-train takes its recipe from a stage file.
SCALES = [(short, 1333) for short in range(480, 801, 32)]
train_pipeline = [
    {'type': 'LoadImageFromFile'},
    {'type': 'LoadAnnotations', 'with_bbox': True},
    {'type': 'RandomFlip', 'prob': 0.5},
    {
        'type': 'RandomChoice',
        'transforms': [
            [{'type': 'RandomChoiceResize', 'scales': SCALES, 'keep_ratio': True}],
            [
                {'type': 'RandomChoiceResize', 'scales': [(400, 1333), (500, 1333), (600, 1333)], 'keep_ratio': True},
                {
                    'type': 'RandomCrop',
                    'crop_type': 'absolute_range',
                    'crop_size': (384, 600),
                    'allow_negative_crop': True,
                },
                {'type': 'RandomChoiceResize', 'scales': SCALES, 'keep_ratio': True},
            ],
        ],
    },
    {'type': 'PackDetInputs'},
]
train_dataloader = {'dataset': {'pipeline': train_pipeline}}
train_cfg = {'max_epochs': 36}
param_scheduler = [
    {'type': 'LinearLR', 'start_factor': 0.001, 'by_epoch': False, 'begin': 0, 'end': 1000},
    {'type': 'MultiStepLR', 'begin': 0, 'end': 36, 'by_epoch': True, 'milestones': [27, 33], 'gamma': 0.1},
]
NO_DECAY = {'decay_mult': 0.0}
optim_wrapper = {
    'paramwise_cfg': {
        'custom_keys': {'absolute_pos_embed': NO_DECAY, 'relative_position_bias_table': NO_DECAY, 'norm': NO_DECAY}
    },
    'optimizer': {'_delete_': True, 'type': 'AdamW', 'lr': 1e-4, 'betas': (0.9, 0.999), 'weight_decay': 0.05},
}
