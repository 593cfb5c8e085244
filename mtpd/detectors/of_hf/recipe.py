"""What the authors train these detectors with: the configs of lyuwenyu/RT-DETR and Peterande/D-FINE on GitHub."""

from typing import Any

from mtpd.detectors.ingredients import Ingredient

# The same for all sizes of all three.
_SHARED = (
    Ingredient('AdamW', 'optim.type', ('adamw',)),
    Ingredient('betas (0.9, 0.999)', 'optim.momentum', (0.9,)),
    Ingredient('no weight decay of norms', 'optim.norm_decay', (False,)),
    Ingredient('clip_max_norm 0.1', 'optim.grad_clip', (0.1,)),
    Ingredient('ModelEMA 0.9999', 'optim.ema', (0.9999,)),
    Ingredient('a constant learning rate', 'optim.milestones', ((),)),
    Ingredient('RandomHorizontalFlip 0.5', 'data.flip', (0.5,)),
    Ingredient('RandomPhotometricDistort', 'data.photometric', None),
    Ingredient('RandomZoomOut'),
    Ingredient('RandomIoUCrop'),
    Ingredient('inputs of 480 to 800 px by turns'),
)
_RT_DETR = (
    Ingredient('lr 0.0001', 'optim.lr', (0.0001,)),
    Ingredient('weight_decay 0.0001', 'optim.weight_decay', (0.0001,)),
    Ingredient('LinearWarmup over 2000 iterations', 'optim.warmup_iters', (2000,)),
    Ingredient('batch size 16', 'data.batch_size', (16,)),
)
# Those of ResNet-18 and -34 differ, from each other too.
_DEEP = (
    Ingredient('lr 0.1 of the backbone', 'optim.backbone_lr', (0.1,)),
    Ingredient('72 epochs', 'optim.epochs', (72,)),
)
_MIXED = Ingredient('mixed precision', 'optim.precision', ('fp16', 'bf16'))


def recipe_of(config: Any) -> tuple[Ingredient, ...]:
    """The recipe of a network; learning rates and epochs of D-FINE differ with its size, and are left out."""
    if config.model_type == 'd_fine':
        return (*_SHARED, _MIXED, Ingredient('LinearWarmup over 500 iterations', 'optim.warmup_iters', (500,)))
    deep = _DEEP if getattr(config.backbone_config, 'layer_type', None) == 'bottleneck' else ()
    mixed = (_MIXED,) if config.model_type == 'rt_detr_v2' else ()
    return (*_RT_DETR, *deep, *mixed, *_SHARED)
