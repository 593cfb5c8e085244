"""The transformer teacher: the student with a small PVTv2 (Wang et al. 2022) as its backbone."""

_base_ = '../student.py'

model = {
    'backbone': {
        '_delete_': True,
        'type': 'PyramidVisionTransformerV2',
        'embed_dims': 24,
        'num_layers': [2, 2, 2, 2],
        'num_heads': [1, 2, 4, 8],
        'sr_ratios': [4, 2, 1, 1],
        'mlp_ratios': [4, 4, 4, 4],
        'out_indices': (1, 2, 3),
        'drop_path_rate': 0.1,
    },
    'neck': {'in_channels': [48, 96, 192]},
}
