"""The training recipe in a config: what a run gives is told from what it does not, and nothing is left out."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpd.detectors.ingredients import Ingredient
from mtpd.detectors.of_mmdet.models import load_config
from mtpd.detectors.of_mmdet.recipe import recipe_ingredients, step_ingredients
from mtpd.detectors.of_mmdet.runtime import prepare

# What the 1x recipe of mmdet is in a stage file.
ONE_X = {
    'optim.type': 'sgd', 'optim.lr': 0.02, 'optim.momentum': 0.9, 'optim.weight_decay': 1e-4, 'optim.epochs': 12,
    'optim.schedule': 'multistep', 'optim.milestones': (8, 11), 'optim.warmup_iters': 500, 'optim.warmup_ratio': 0.001,
    'optim.grad_clip': None, 'optim.ema': None, 'optim.precision': 'fp32', 'data.batch_size': 16, 'data.flip': 0.5,
    'data.photometric': None, 'data.geometry': (1333, 800, True), 'data.geometry.pad_divisor': 32, 'seed': 0,
}  # fmt: skip


def config(**sections: Any) -> Any:
    prepare()
    from mmengine.config import ConfigDict

    return ConfigDict({'model': {'type': 'RetinaNet'}, **sections})


def missing(recipe: Any, **settings: Any) -> list[str]:
    given = {**ONE_X, **{key.replace('__', '.'): value for key, value in settings.items()}}
    return [str(one) for one in recipe_ingredients(recipe) if not one.is_given(given)]


@pytest.mark.parametrize(
    ('name', 'wanted'),
    [
        ('faster-rcnn_r50_fpn_1x_coco', set()),
        ('retinanet_r50_fpn_1x_coco', {'lr 0.01 (optim.lr)'}),
        (
            'yolox_tiny_8xb8-300e_coco',
            {'Mosaic', 'RandomAffine', 'YOLOXModeSwitchHook', 'BatchSyncRandomResize', 'EMAHook (optim.ema)',
             'SGD nesterov', '300 epochs (optim.epochs)', 'batch size 64 (data.batch_size)',
             'QuadraticWarmupLR (optim.schedule)', 'norm_decay_mult 0 (optim.norm_decay)',
             'bias_decay_mult 0 (optim.bias_decay)'},
        ),
        (
            'rtmdet_tiny_8xb32-300e_coco',
            {'AdamW (optim.type)', 'PipelineSwitchHook', 'CachedMosaic', 'CachedMixUp', 'RandomResize', 'RandomCrop',
             'SyncBN, which becomes BN', 'CosineAnnealingLR (optim.schedule)', 'EMAHook (optim.ema)'},
        ),
        ('ssd300_coco', {'Expand', 'MinIoURandomCrop', 'PhotoMetricDistortion (data.photometric)',
                         'RepeatDataset times 5 (optim.epochs)', 'Resize 300x300 (data.geometry)'}),
        ('mask-rcnn_r50_fpn_instaboost-4x_coco', {'InstaBoost'}),
        ('mask-rcnn_r50_fpn_8xb8-amp-lsj-200e_coco', {'AmpOptimWrapper (optim.precision)', 'RandomResize',
                                                      'BatchFixedSizePad (data.geometry.pad_size)'}),
        ('mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1', {'ClassBalancedDataset', 'RandomChoiceResize'}),
        ('detectors_cascade-rcnn_r50_1x_coco', {'weights of neck.rfp_backbone (init.fine_tune)'}),
    ],
)  # fmt: skip
def test_recipes_of_the_zoo(name: str, wanted: set[str]) -> None:
    found = missing(load_config(name))
    assert wanted <= set(found) if wanted else not found
    assert len(found) == len(set(found))


def test_what_the_stage_sets_is_not_missing() -> None:
    recipe = config(
        optim_wrapper={
            'type': 'AmpOptimWrapper', 'optimizer': {'type': 'AdamW', 'lr': 1e-4, 'betas': (0.8, 0.999)},
            'clip_grad': {'max_norm': 0.1, 'norm_type': 2}, 'accumulative_counts': 4,
        },
        custom_hooks=[{'type': 'EMAHook'}, {'type': 'NumClassCheckHook'}],
        train_cfg={'type': 'EpochBasedTrainLoop', 'max_epochs': 50},
        train_pipeline=[{'type': 'PhotoMetricDistortion'}, {'type': 'RandomFlip', 'prob': 0.25}],
        load_from='https://x/y.pth',
        randomness={'seed': 3},
    )  # fmt: skip
    assert len(missing(recipe)) == 12
    settings = {
        'optim__type': 'adamw', 'optim__lr': 1e-4, 'optim__momentum': 0.8, 'optim__grad_clip': 0.1,
        'optim__accumulate': 4, 'optim__precision': 'bf16', 'optim__ema': 0.999, 'optim__epochs': 50, 'seed': 3,
        'data__photometric': object(), 'data__flip': 0.25, 'init__fine_tune': 'retinanet',
    }  # fmt: skip
    assert not missing(recipe, **settings)


class Mosaic:
    """Stands for a class that a config in Python names itself."""


@given(name=st.from_regex(r'[A-Z][a-z]{1,8}', fullmatch=True).map('Own{}'.format), depth=st.integers(0, 3))
def test_a_step_of_any_name_is_told_wherever_it_is(name: str, depth: int) -> None:
    step: Any = {'type': f'mmdet.{name}', 'prob': 0.5}
    for _ in range(depth):
        step = {'type': 'RandomChoice', 'transforms': [[{'type': 'PackDetInputs'}], [step]]}
    assert [one.name for one in step_ingredients([step])][-1] == name


@pytest.mark.parametrize(
    ('step', 'name'),
    [
        ({'type': Mosaic}, 'Mosaic'),
        ({'type': 'mmdet.LoadAnnotations', 'with_bbox': True, 'with_seg': True}, 'LoadAnnotations with_seg'),
        ({'type': 'RandomFlip', 'prob': 0.5, 'direction': 'vertical'}, 'RandomFlip vertical'),
        ({'type': 'RandomFlip', 'prob': [0.3, 0.3]}, 'RandomFlip'),
        ({'type': 'Resize', 'scale': (1333, 800), 'keep_ratio': True, 'interpolation': 'nearest'}, 'Resize interpol'),
        ({'type': 'FilterAnnotations', 'min_gt_bbox_wh': (8, 8)}, 'FilterAnnotations 8x8'),
    ],
)
def test_arguments_of_known_steps_are_told_where_they_are_not_taken(step: dict[str, Any], name: str) -> None:
    found = [one for one in step_ingredients([step]) if not one.is_given(ONE_X)]
    assert [one.name.startswith(name) for one in found] == [True]


@pytest.mark.parametrize(
    'sections',
    [
        {'custom_hooks': [{'type': 'OwnHook'}]},
        {'default_hooks': {'own': {'type': 'OwnHook'}}},
        {'param_scheduler': {'type': 'OwnHook'}},
        {'optim_wrapper': {'type': 'OwnHook'}},
        {'optim_wrapper': {'constructor': 'OwnHook'}},
        {'optim_wrapper': {'OwnHook': 1}},
        {'train_cfg': {'type': 'OwnHook'}},
        {'train_dataloader': {'sampler': {'type': 'OwnHook'}}},
        {'train_dataloader': {'batch_sampler': {'type': 'OwnHook'}}},
        {'train_dataloader': {'dataset': {'type': 'OwnHook', 'dataset': {'pipeline': []}}}},
        {'train_dataloader': {'dataset': {'type': 'MultiImageMixDataset', 'pipeline': [{'type': 'OwnHook'}]}}},
        {'model': {'data_preprocessor': {'batch_augments': [{'type': 'OwnHook'}]}}},
        {'train_pipeline': 'OwnHook'},
    ],
)
def test_unknown_parts_of_every_section_are_told(sections: dict[str, Any]) -> None:
    """Those of the wrong kind too: nothing else reads them."""
    (found,) = missing(config(**sections))
    assert 'OwnHook' in found or 'cannot be read' in found


def test_numbers_of_a_setting_need_not_be_of_one_kind() -> None:
    assert Ingredient('x', 'k', ([8, 11],)).is_given({'k': (8.0, 11)})
    assert not Ingredient('x', 'k', ([8, 11],)).is_given({'k': (8,)})
    assert not Ingredient('x', 'k', (0.5,)).is_given({})
