"""What a config's training data asks for: its pipeline, the wrappers around its data set, its samplers, its batches."""

from collections.abc import Iterable, Iterator
from typing import Any

from mtpd.detectors.ingredient import Ingredient, numbers
from mtpd.detectors.type_names import type_name

# The arguments of steps that training does as well, or that change nothing in it. What else a step has is named.
_PLAIN_STEPS = {
    'LoadImageFromFile': {'backend_args', 'file_client_args'},
    'LoadAnnotations': {'backend_args', 'file_client_args', 'poly2mask', 'with_bbox', 'with_label', 'with_mask'},
    'Normalize': {'mean', 'std', 'to_rgb'},
    'PackDetInputs': {'meta_keys'},
}
# They hold steps of their own. Of those in the first set each step is always taken.
_PLAIN_CONTAINERS = {'Compose', 'ProposalBroadcaster', 'TransformBroadcaster'}
_CONTAINERS = _PLAIN_CONTAINERS | {'RandomApply', 'RandomChoice', 'RandomOrder'}
_PLAIN_SAMPLERS = {'', 'AspectRatioBatchSampler', 'BatchSampler', 'DefaultSampler', 'InfiniteSampler'}
# Colours of another kind than those of `data.photometric`, which comes near.
_COLOURS = {'ColorTransform', 'RandAugment', 'YOLOXHSVRandomAug'}
GEOMETRY, PAD_SIZE, PAD_DIVISOR = 'data.geometry', 'data.geometry.pad_size', 'data.geometry.pad_divisor'
PHOTOMETRIC = 'data.photometric'


def data_ingredients(config: Any) -> Iterator[Ingredient]:
    """What the training data of a mmengine Config asks for."""
    loader = config.get('train_dataloader') or {}
    dataset = loader.get('dataset') or {'pipeline': config.get('train_pipeline') or []}
    yield from _dataset_ingredients(dataset)
    for sampler in (loader.get('sampler'), loader.get('batch_sampler')):
        if type_name(sampler) not in _PLAIN_SAMPLERS:
            yield Ingredient(type_name(sampler))
    preprocessor = config.model.get('data_preprocessor') or config.get('data_preprocessor') or {}
    for augment in (preprocessor.get('data_preprocessor') or preprocessor).get('batch_augments') or []:
        name, size = type_name(augment), augment.get('size')
        yield Ingredient(name, PAD_SIZE, (tuple(size),)) if name == 'BatchFixedSizePad' and size else Ingredient(name)


def _dataset_ingredients(dataset: Any) -> Iterator[Ingredient]:
    name, inner = type_name(dataset), dataset.get('dataset')
    several = dataset.get('datasets') or []
    if name == 'RepeatDataset':
        yield Ingredient(f'RepeatDataset times {dataset.get("times")}', 'optim.epochs')
    elif several:
        yield Ingredient(name, 'data.train')
    # It does nothing but the steps of its pipeline.
    elif inner is not None and name != 'MultiImageMixDataset':
        yield Ingredient(name)
    if (dataset.get('filter_cfg') or {}).get('filter_empty_gt') is False:
        yield Ingredient('filter_empty_gt False')
    for key in ('indices', 'proposal_file'):
        if dataset.get(key):
            yield Ingredient(f'{key} of {name}')
    for one in [*several, *([] if inner is None else [inner])]:
        yield from _dataset_ingredients(one)
    yield from step_ingredients(dataset.get('pipeline') or [])


def step_ingredients(steps: Iterable[Any]) -> Iterator[Ingredient]:
    """What the steps of a training pipeline ask for."""
    for step in steps:
        # Choices are lists of steps.
        if isinstance(step, list | tuple):
            yield from step_ingredients(step)
            continue
        if not isinstance(step, dict):
            raise TypeError(f'a step is {step!r}')
        name = type_name(step)
        if name in _CONTAINERS:
            if name not in _PLAIN_CONTAINERS:
                yield Ingredient(name)
            yield from step_ingredients(step.get('transforms') or [])
        elif name in _PLAIN_STEPS:
            yield from _others(step, _PLAIN_STEPS[name])
        else:
            yield from _step(name, step)


def _step(name: str, step: Any) -> Iterator[Ingredient]:
    if name == 'Resize' and step.get('scale'):
        scale, keep_ratio = tuple(step['scale']), bool(step.get('keep_ratio', False))
        either = (scale, scale[::-1]) if keep_ratio else (scale,)
        yield Ingredient(f'Resize {numbers(scale)}', GEOMETRY, tuple((*one, keep_ratio) for one in either))
        yield from _others(step, {'scale', 'keep_ratio'})
    elif name == 'RandomFlip' and isinstance(step.get('prob'), int | float):
        yield Ingredient(f'RandomFlip {step["prob"]}', 'data.flip', (step['prob'],))
        if step.get('direction', 'horizontal') != 'horizontal':
            yield Ingredient(f'RandomFlip {step["direction"]}')
        yield from _others(step, {'prob', 'direction'})
    elif name == 'Pad':
        yield from _pad(step)
    elif name == 'PhotoMetricDistortion':
        yield Ingredient(name, PHOTOMETRIC, None)
    elif name == 'FilterAnnotations':
        # Boxes thinner than a pixel are left out anyway.
        smallest = step.get('min_gt_bbox_wh', (1, 1))
        if max(smallest) > 1:
            yield Ingredient(f'FilterAnnotations {numbers(smallest)}')
        yield from _others(step, {'min_gt_bbox_wh', 'keep_empty', 'by_box'})
    else:
        yield Ingredient(name, PHOTOMETRIC if name in _COLOURS else None)


def _pad(step: Any) -> Iterator[Ingredient]:
    if step.get('size_divisor'):
        yield Ingredient(f'Pad size_divisor {step["size_divisor"]}', PAD_DIVISOR, (step['size_divisor'],))
    elif step.get('size'):
        width, height = step['size']
        yield Ingredient(f'Pad {numbers(step["size"])}', PAD_SIZE, ((height, width),))
    else:
        yield Ingredient('Pad', GEOMETRY)


def _others(step: Any, known: set[str]) -> Iterator[Ingredient]:
    for key, value in step.items():
        if key not in known | {'type', '_scope_'} and value not in (None, False):
            yield Ingredient(f'{type_name(step)} {key}')
