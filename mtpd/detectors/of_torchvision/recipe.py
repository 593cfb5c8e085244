"""What torchvision's reference training (`references/detection/train.py`) trains its detectors with.

The numbers are those of its README, with the batch of all GPUs together. Of the second versions it states none.
"""

from collections.abc import Sequence
from typing import Any

from mtpd.detectors.ingredients import Ingredient
from mtpd.detectors.of_torchvision.networks import SSD300, SSDLITE, STUDENTS

_NOT_STATED = {name for name in STUDENTS if name.endswith('_v2')}
_WITH_LOW_RATE = ('retinanet_resnet50_fpn', 'fcos_resnet50_fpn')
_SSD_STEPS = ('RandomPhotometricDistort', 'RandomZoomOut', 'RandomIoUCrop')


def recipe_ingredients(network: str) -> tuple[Ingredient, ...]:
    """What the training of a published detector requires, in the order of its command; empty where it is not stated."""
    if network in _NOT_STATED:
        return ()
    if network == SSDLITE:
        schedule = [_one('cosine schedule', 'optim.schedule', 'cosine')]
        return _ingredients(660, schedule, lr=0.15, batch_size=192, weight_decay=4e-5, steps=('RandomIoUCrop',))
    if network == SSD300:
        return _ingredients(120, _milestones(80, 110), lr=0.002, batch_size=32, weight_decay=5e-4, steps=_SSD_STEPS)
    lr = 0.01 if network in _WITH_LOW_RATE else 0.02
    return _ingredients(26, _milestones(16, 22), lr=lr, batch_size=16, weight_decay=1e-4)


def _ingredients(
    epochs: int,
    schedule: list[Ingredient],
    *,
    lr: float,
    batch_size: int,
    weight_decay: float,
    steps: Sequence[str] = (),
) -> tuple[Ingredient, ...]:
    return (
        _one('SGD', 'optim.type', 'sgd'),
        _one(f'lr {lr}', 'optim.lr', lr),
        _one('momentum 0.9', 'optim.momentum', 0.9),
        _one(f'weight_decay {weight_decay}', 'optim.weight_decay', weight_decay),
        _one(f'{epochs} epochs', 'optim.epochs', epochs),
        *schedule,
        _one('warm-up over 1000 iterations', 'optim.warmup_iters', 1000),
        _one('warm-up from 0.001', 'optim.warmup_ratio', 0.001),
        _one(f'batch size {batch_size}', 'data.batch_size', batch_size),
        *map(Ingredient, steps),
        _one('RandomHorizontalFlip 0.5', 'data.flip', 0.5),
    )


def _milestones(*epochs: int) -> list[Ingredient]:
    return [_one(f'milestones {list(epochs)}', 'optim.milestones', list(epochs))]


def _one(name: str, key: str, value: Any) -> Ingredient:
    return Ingredient(name, key, (value,))
