"""The training recipe in a detector's config, as what a run has to give to train by it.

Students are trained by their stage files. What a config asks for beyond its network is found here, thing by thing. The
reading goes by what is known to be given: everything else is an ingredient by its name, so that nothing is left out.
"""

from collections.abc import Callable, Iterator
from typing import Any

from mtpd.detectors.ingredient import Ingredient
from mtpd.detectors.model_config import SYNCHRONISED_NORMS, config_dicts
from mtpd.detectors.train_pipeline import data_ingredients
from mtpd.detectors.type_names import type_name
from mtpd.detectors.weight_references import weight_references

# Hooks that change nothing in what is learned, or do what a run does anyway.
_PLAIN_HOOKS = {
    '', 'CheckInvalidLossHook', 'CheckpointHook', 'DetVisualizationHook', 'DistSamplerSeedHook', 'EmptyCacheHook',
    'GroundingVisualizationHook', 'IterTimerHook', 'LoggerHook', 'MemoryProfilerHook', 'NumClassCheckHook',
    'ParamSchedulerHook', 'RuntimeInfoHook', 'SyncBuffersHook', 'SyncNormHook', 'TrackVisualizationHook',
}  # fmt: skip
_PLAIN_LOOPS = {'', 'EpochBasedTrainLoop', 'IterBasedTrainLoop'}
_LOOP_KEYS = {'type', 'by_epoch', 'max_epochs', 'max_iters', 'val_begin', 'val_interval', 'dynamic_intervals'}
_PLAIN_WRAPPERS = {'', 'OptimWrapper', 'AmpOptimWrapper'}
_WRAPPER_KEYS = {
    'type', 'optimizer', 'clip_grad', 'paramwise_cfg', 'accumulative_counts', 'constructor', 'loss_scale', 'dtype'
}  # fmt: skip
# Whole sections of configs, of mmdet 2 too, whose meaning a run does not take.
_SECTIONS = (
    'compile', 'data', 'efficient_conv_bn_eval', 'fp16', 'lr_config', 'model_wrapper_cfg', 'momentum_config',
    'optimizer_config', 'resume', 'runner', 'runner_type', 'strategy', 'sync_bn', 'total_epochs',
)  # fmt: skip
WEIGHTS = 'init.fine_tune'


def recipe_ingredients(config: Any) -> tuple[Ingredient, ...]:
    """What a mmengine Config asks for in training, in the order of the text that people write; each thing once."""
    readers = {
        'optim_wrapper': _optimizer, 'param_scheduler': _schedule, 'custom_hooks': _hooks,
        'train_dataloader': data_ingredients, 'model': _model,
    }  # fmt: skip
    found = [one for section, read in readers.items() for one in _read(section, read, config)]
    found += [Ingredient(f'the section {key}') for key in _SECTIONS if config.get(key)]
    return tuple({str(one): one for one in found}.values())


def _read(section: str, read: Callable[[Any], Iterator[Ingredient]], config: Any) -> list[Ingredient]:
    try:
        return list(read(config))
    # Nothing else reads these sections, so errors in them must not stop the program.
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        return [Ingredient(f'{section}, which cannot be read ({type(error).__name__}: {error})')]


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
    multipliers = (wrapper.get('paramwise_cfg') or {}).items()
    groups = [key for key, value in multipliers if key != 'bypass_duplicate' and value not in (None, 1, {})]
    if groups:
        yield Ingredient(f'paramwise_cfg with {", ".join(groups)}')
    constructor = type_name(wrapper.get('constructor'))
    if constructor not in ('', 'DefaultOptimWrapperConstructor'):
        yield Ingredient(constructor)
    if wrapper.get('accumulative_counts', 1) != 1:
        counts = wrapper['accumulative_counts']
        yield Ingredient(f'accumulative_counts {counts}', 'optim.accumulate', (counts,))
    kind = type_name(wrapper)
    if kind == 'AmpOptimWrapper':
        yield Ingredient(kind, 'optim.precision', ('fp16', 'bf16'))
    elif kind not in _PLAIN_WRAPPERS:
        yield Ingredient(kind)
    yield from (Ingredient(f'optim_wrapper {key}') for key in wrapper if key not in _WRAPPER_KEYS)


def _schedule(config: Any) -> Iterator[Ingredient]:
    schedulers = config.get('param_scheduler') or []
    for one in schedulers if isinstance(schedulers, list | tuple) else [schedulers]:
        yield from _scheduler(type_name(one), one)
    loop = config.get('train_cfg') or {}
    if loop.get('max_epochs'):
        yield Ingredient(f'{loop["max_epochs"]} epochs', 'optim.epochs', (loop['max_epochs'],))
    if loop.get('max_iters'):
        yield Ingredient(f'{loop["max_iters"]} iterations', 'optim.epochs')
    if type_name(loop) not in _PLAIN_LOOPS:
        yield Ingredient(type_name(loop))
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
        name = type_name(hook)
        if name == 'EMAHook':
            yield Ingredient(name, 'optim.ema', None)
        elif name not in _PLAIN_HOOKS:
            yield Ingredient(name)


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
