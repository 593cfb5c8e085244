"""The training recipe in a detector's config, as what a run has to give to train by it.

Students are trained by their stage files. What a config requires beyond its network is found here, item by item. The
reading relies on a list of what is known to be given: everything else is an ingredient by its name, so that nothing is
left out.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mtpd.detectors.ingredients import GEOMETRY, PAD_DIVISOR, PAD_SIZE, WEIGHTS, Ingredient
from mtpd.detectors.of_mmdet.model_config import SYNCHRONISED_NORMS, config_dicts, type_name, weight_references

# Hooks that change nothing in what is learned, or do what a run does anyway.
_PLAIN_HOOKS = {
    'CheckInvalidLossHook', 'CheckpointHook', 'DetVisualizationHook', 'DistSamplerSeedHook', 'EMAHook',
    'EmptyCacheHook', 'GroundingVisualizationHook', 'IterTimerHook', 'LoggerHook', 'MemoryProfilerHook',
    'NumClassCheckHook', 'ParamSchedulerHook', 'RuntimeInfoHook', 'SyncBuffersHook', 'SyncNormHook',
    'TrackVisualizationHook',
}  # fmt: skip
_LOOP_KEYS = {'type', 'by_epoch', 'max_epochs', 'max_iters', 'val_begin', 'val_interval', 'dynamic_intervals'}
_WRAPPER_KEYS = {
    'type', 'optimizer', 'clip_grad', 'paramwise_cfg', 'accumulative_counts', 'constructor', 'loss_scale', 'dtype'
}  # fmt: skip
# Whole sections of configs, of mmdet 2 too, whose meaning a run does not take.
_SECTIONS = (
    'compile', 'data', 'efficient_conv_bn_eval', 'fp16', 'lr_config', 'model_wrapper_cfg', 'momentum_config',
    'optimizer_config', 'resume', 'runner', 'runner_type', 'strategy', 'sync_bn', 'total_epochs',
)  # fmt: skip

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
_PLAIN_SAMPLERS = {'AspectRatioBatchSampler', 'BatchSampler', 'DefaultSampler', 'InfiniteSampler'}
# Colours of another kind than those of `data.photometric`, which comes near.
_COLOURS = {'ColorTransform', 'RandAugment', 'YOLOXHSVRandomAug'}
PHOTOMETRIC = 'data.photometric'


def recipe_ingredients(config: Any) -> tuple[Ingredient, ...]:
    """What an mmengine Config requires for training, in the usual order of a config; each item once."""
    readers = {
        'optim_wrapper': _optimizer, 'param_scheduler': _schedule, 'custom_hooks': _hooks,
        'train_dataloader': _data, 'model': _model,
    }  # fmt: skip
    found: list[Ingredient] = []
    for section, read in readers.items():
        try:
            found += list(read(config))
        # Nothing else reads these sections, so errors in them must not stop the program.
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            found.append(Ingredient(f'{section}, which cannot be read ({type(error).__name__}: {error})'))
    found += [Ingredient(f'the section {key}') for key in _SECTIONS if config.get(key)]
    return tuple({str(one): one for one in found}.values())


def _optimizer(config: Any) -> Iterator[Ingredient]:
    wrapper = config.get('optim_wrapper') or {}
    optimizer, name = wrapper.get('optimizer') or {}, type_name(wrapper.get('optimizer'))
    if name:
        known = {'SGD': 'sgd', 'AdamW': 'adamw'}
        yield Ingredient(name, 'optim.type', (known[name],)) if name in known else Ingredient(name)
    for key, value in optimizer.items():
        if key in ('lr', 'momentum', 'weight_decay'):
            yield Ingredient(f'{key} {value}', f'optim.{key}', (value,))
        elif key == 'betas':
            yield Ingredient(f'betas {tuple(value)}', 'optim.momentum', (value[0],) if value[1] == 0.999 else ())
        elif key != 'type' and value:
            yield Ingredient(f'{name} {key}')
    clip = dict(wrapper.get('clip_grad') or {})
    if clip.get('type', 'norm') == 'norm' and clip.get('norm_type', 2) == 2 and 'max_norm' in clip:
        yield Ingredient(f'clip_grad {clip["max_norm"]}', 'optim.grad_clip', (clip['max_norm'],))
    elif clip:
        yield Ingredient('clip_grad', 'optim.grad_clip')
    yield from _parameter_groups(wrapper.get('paramwise_cfg') or {})
    yield from _unless_plain(wrapper.get('constructor'), {'DefaultOptimWrapperConstructor'})
    if wrapper.get('accumulative_counts', 1) != 1:
        counts = wrapper['accumulative_counts']
        yield Ingredient(f'accumulative_counts {counts}', 'optim.accumulate', (counts,))
    if type_name(wrapper) == 'AmpOptimWrapper':
        yield Ingredient('AmpOptimWrapper', 'optim.precision', ('fp16', 'bf16'))
    yield from _unless_plain(wrapper, {'OptimWrapper', 'AmpOptimWrapper'})
    yield from (Ingredient(f'optim_wrapper {key}') for key in wrapper if key not in _WRAPPER_KEYS)


def _parameter_groups(config: Any) -> Iterator[Ingredient]:
    others = []
    for key, value in config.items():
        if key in ('norm_decay_mult', 'bias_decay_mult') and value == 0:
            yield Ingredient(f'{key} 0', f'optim.{key.removesuffix("_mult")}', (False,))
        elif key == 'custom_keys' and value.keys() == {'backbone'} and value['backbone'].keys() == {'lr_mult'}:
            factor = value['backbone']['lr_mult']
            yield Ingredient(f'lr_mult {factor} of the backbone', 'optim.backbone_lr', (factor,))
        elif key != 'bypass_duplicate' and value not in (None, 1, {}):
            others.append(key)
    if others:
        yield Ingredient(f'paramwise_cfg with {", ".join(others)}')


def _unless_plain(node: Any, plain: set[str]) -> Iterator[Ingredient]:
    name = type_name(node)
    if name and name not in plain:
        yield Ingredient(name)


def _schedule(config: Any) -> Iterator[Ingredient]:
    schedulers = config.get('param_scheduler') or []
    for one in schedulers if isinstance(schedulers, list | tuple) else [schedulers]:
        yield from _scheduler(type_name(one), one)
    loop = config.get('train_cfg') or {}
    if loop.get('max_epochs'):
        yield Ingredient(f'{loop["max_epochs"]} epochs', 'optim.epochs', (loop['max_epochs'],))
    if loop.get('max_iters'):
        yield Ingredient(f'{loop["max_iters"]} iterations', 'optim.epochs')
    yield from _unless_plain(loop, {'EpochBasedTrainLoop', 'IterBasedTrainLoop'})
    yield from (Ingredient(f'train_cfg {key}') for key in loop if key not in _LOOP_KEYS)
    scaling = config.get('auto_scale_lr') or {}
    if scaling.get('enable'):
        yield Ingredient('auto_scale_lr', 'optim.lr')
    if scaling.get('base_batch_size'):
        size = scaling['base_batch_size']
        yield Ingredient(f'batch size {size}', 'data.batch_size', (size,))


def _scheduler(name: str, one: Any) -> Iterator[Ingredient]:
    begins, by_epoch = not one.get('begin', 0), one.get('by_epoch', True)
    if name == 'MultiStepLR':
        milestones = list(one.get('milestones', ()))
        exact = by_epoch and one.get('gamma', 0.1) == 0.1
        yield Ingredient(f'{name} {milestones}', 'optim.milestones', (milestones,) if exact else ())
    elif name == 'LinearLR' and one.get('end_factor', 1.0) == 1.0:
        steps, unit = one.get('end'), 'epochs' if by_epoch else 'iterations'
        exact = begins and not by_epoch
        yield Ingredient(f'{name} over {steps} {unit}', 'optim.warmup_iters', (steps,) if exact else ())
        start = one.get('start_factor', 1 / 3)
        yield Ingredient(f'{name} from {start:.4g}', 'optim.warmup_ratio', (start,))
    elif name == 'CosineAnnealingLR':
        yield Ingredient(name, 'optim.schedule', ('cosine',) if begins else ())
        if one.get('eta_min'):
            yield Ingredient(f'{name} to {one["eta_min"]:.4g}', 'optim.min_lr', (one['eta_min'],))
    elif name == 'OneCycleLR':
        yield Ingredient(name, 'optim.schedule', ('onecycle',))
    else:
        yield Ingredient(name, 'optim.schedule')


def _hooks(config: Any) -> Iterator[Ingredient]:
    for hook in [*(config.get('default_hooks') or {}).values(), *(config.get('custom_hooks') or [])]:
        if type_name(hook) == 'EMAHook':
            yield Ingredient('EMAHook', 'optim.ema', None)
        yield from _unless_plain(hook, _PLAIN_HOOKS)


def _model(config: Any) -> Iterator[Ingredient]:
    norms = {type_name(node) for node in config_dicts(config.model)} & SYNCHRONISED_NORMS
    yield from (Ingredient(f'{name}, which becomes BN') for name in sorted(norms))
    for place, _ in weight_references(config.model):
        part = place.rpartition('.')[0].removesuffix('.init_cfg')
        if part.split('.')[0] != 'backbone' and place != 'pretrained':
            yield Ingredient(f'weights of {part if part not in ("", "init_cfg") else "the model"}', WEIGHTS, None)
    if config.get('load_from'):
        yield Ingredient('load_from', WEIGHTS, None)
    randomness = config.get('randomness') or {}
    if randomness.get('deterministic'):
        yield Ingredient('deterministic')
    if randomness.get('seed') is not None:
        yield Ingredient(f'seed {randomness["seed"]}', 'seed', (randomness['seed'],))


def _data(config: Any) -> Iterator[Ingredient]:
    """What the training data of an mmengine Config requires."""
    loader = config.get('train_dataloader') or {}
    dataset = loader.get('dataset') or {'pipeline': config.get('train_pipeline') or []}
    yield from _dataset_ingredients(dataset)
    for sampler in (loader.get('sampler'), loader.get('batch_sampler')):
        yield from _unless_plain(sampler, _PLAIN_SAMPLERS)
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
    """What the steps of a training pipeline require."""
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
        yield Ingredient(f'Resize {_numbers(scale)}', GEOMETRY, tuple((*one, keep_ratio) for one in either))
        yield from _others(step, {'scale', 'keep_ratio'})
    elif name == 'RandomFlip' and isinstance(step.get('prob'), int | float):
        yield Ingredient(f'RandomFlip {step["prob"]}', 'data.flip', (step['prob'],))
        if step.get('direction', 'horizontal') != 'horizontal':
            yield Ingredient(f'RandomFlip {step["direction"]}')
        yield from _others(step, {'prob', 'direction'})
    elif name == 'Pad':
        if step.get('size_divisor'):
            yield Ingredient(f'Pad size_divisor {step["size_divisor"]}', PAD_DIVISOR, (step['size_divisor'],))
        elif step.get('size'):
            width, height = step['size']
            yield Ingredient(f'Pad {_numbers(step["size"])}', PAD_SIZE, ((height, width),))
        else:
            yield Ingredient('Pad', GEOMETRY)
    elif name == 'PhotoMetricDistortion':
        yield Ingredient(name, PHOTOMETRIC, None)
    elif name == 'FilterAnnotations':
        # Boxes thinner than a pixel are left out anyway.
        smallest = step.get('min_gt_bbox_wh', (1, 1))
        if max(smallest) > 1:
            yield Ingredient(f'FilterAnnotations {_numbers(smallest)}')
        yield from _others(step, {'min_gt_bbox_wh', 'keep_empty', 'by_box'})
    else:
        yield Ingredient(name, PHOTOMETRIC if name in _COLOURS else None)


def _others(step: Any, known: set[str]) -> Iterator[Ingredient]:
    for key, value in step.items():
        if key not in known | {'type', '_scope_'} and value not in (None, False):
            yield Ingredient(f'{type_name(step)} {key}')


def _numbers(values: Sequence[Any]) -> str:
    """Numbers as 1333x800."""
    return 'x'.join(map(str, values))
