"""The feature pyramid that an mmdet detector hands to its heads: where its maps are taken, the maps, and its levels.

B batch, C channels, H W input px, h w grid of a level.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mtpd.detectors.hook_points import BEFORE_NORM, NECK_MAPS, HookChoice
from mtpd.detectors.levels import DEFAULT_INPUT, levels_of
from mtpd.detectors.of_mmdet.runtime import prepare
from mtpd.errors import InputError
from mtpd.geometry import Level, Size

# Required by NAS-FPN and FPG, whose levels are added after resizing by factors of two.
LARGE_DIVISORS = (64, 128, 256)


def teacher_hook_point(model: nn.Module, choice: HookChoice, *, name: str) -> str:
    """Where the maps of an mmdet teacher are taken. InputError for `before-norm` where there are no norms."""
    has_norms = has_output_norms(model)
    if choice == 'before-norm' and not has_norms:
        raise InputError(f'hook before-norm: the neck of {name} has no norms after its fpn_convs; remove this option')
    return BEFORE_NORM if choice != 'neck' and has_norms else NECK_MAPS


def has_output_norms(model: nn.Module) -> bool:
    """Whether the outputs of a detector's neck are those of convolutions followed by a norm."""
    prepare()
    from mmdet.models.necks import FPN

    neck: Any = getattr(model, 'neck', None)
    # Other pyramids, such as PAFPN, are FPNs too but have further layers after `fpn_convs`.
    if not isinstance(neck, FPN) or type(neck).forward is not FPN.forward:
        return False
    return all(one.with_norm and one.order == ('conv', 'norm', 'act') for one in neck.fpn_convs)


def neck_of(model: nn.Module) -> nn.Module:
    """The module whose maps are distilled. InputError for a detector without a neck."""
    neck = getattr(model, 'neck', None)
    if not isinstance(neck, nn.Module):
        raise InputError(
            f'{type(model).__name__} has no neck, whose maps are distilled; choose a detector with a neck, such as '
            'faster-rcnn_r50_fpn_1x_coco, or train it without `distill`'
        )
    return neck


@contextmanager
def captured_maps(model: nn.Module, *, hook_point: str = NECK_MAPS) -> Iterator[list[Tensor]]:
    """Collects the maps at a hook point during one forward pass: a list that holds a map per level afterwards."""
    maps: list[Tensor] = []
    before: list[Tensor] = []

    def keep_one(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        before.append(output)

    def keep_all(module: nn.Module, inputs: tuple[Any, ...], outputs: Sequence[Tensor]) -> None:
        # Levels without a convolution, such as the p6 that Mask R-CNN picks from its p5.
        maps[:] = [*before, *outputs[len(before) :]]
        before.clear()

    with ExitStack() as hooks:
        hooks.enter_context(neck_of(model).register_forward_hook(keep_all))
        for one in _normed_convolutions(model, hook_point):
            hooks.enter_context(one.conv.register_forward_hook(keep_one))
        yield maps


def neck_outputs(model: nn.Module, maps: Sequence[Tensor], *, hook_point: str) -> list[Tensor]:
    """What the neck hands to the heads, from all of its maps at a hook point."""
    outputs = list(maps)
    for level, one in enumerate(_normed_convolutions(model, hook_point)):
        normed = one.norm(maps[level])
        outputs[level] = one.activate(normed) if one.with_activation else normed
    return outputs


def _normed_convolutions(model: Any, hook_point: str) -> Sequence[Any]:
    """The neck's `ConvModule`s, in the order of its levels, whose norms follow the hook point."""
    assert hook_point == NECK_MAPS or has_output_norms(model)
    return () if hook_point == NECK_MAPS else tuple(model.neck.fpn_convs)


def neck_features(model: nn.Module, images: Tensor, *, hook_point: str = NECK_MAPS) -> tuple[Tensor, ...]:
    """Maps (B, C, h, w) of normalised images (B, 3, H, W), of a detector's neck or, where it has none, its backbone."""
    extract: Any = getattr(model, 'extract_feat', None)
    if extract is None:
        raise InputError(f'{type(model).__name__} returns no features (it has no extract_feat): use a detector')
    if hook_point == NECK_MAPS:  # also of detectors that have no neck
        return tuple(_maps(extract(images), type(model).__name__))
    with captured_maps(model, hook_point=hook_point) as maps:
        extract(images)
    return tuple(maps)


def _maps(output: Any, owner: str) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, list | tuple):
        for item in output:
            yield from _maps(item, owner)
    else:
        raise InputError(f'{owner} returns a {type(output).__name__} as features, expected tensors')


def probe_levels(model: nn.Module, *, input_size: Size = DEFAULT_INPUT) -> tuple[Level, ...]:
    """Levels of an mmdet detector, by `levels_of` in eval mode; where it fails, the error names sizes that work."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        return levels_of(lambda images: neck_features(model, images), input_size=input_size, device=device)
    except (InputError, torch.OutOfMemoryError):
        raise
    # A network that cannot add the maps of its levels may raise any error.
    except Exception as error:
        raise InputError(
            f'{type(model).__name__} fails on an input of {input_size[0]} x {input_size[1]} px (height x width): '
            f'{" ".join(str(error).split())[:200]}{_sizes_taken(model, device)}'
        ) from error
    finally:
        model.train(training)


def _sizes_taken(model: nn.Module, device: torch.device) -> str:
    """What to do about a network, in eval mode, that takes some sizes only."""
    for divisor in LARGE_DIVISORS:
        try:
            with torch.no_grad():
                neck_features(model, torch.zeros(1, 3, 2 * divisor, 3 * divisor, device=device))
        # As above.
        except Exception:
            continue
        return (
            f'; its input sides must be multiples of {divisor} px: set data.geometry.pad_divisor to {divisor}, or use '
            'a teacher with that padding'
        )
    return '; correct its config, use another input size (data.geometry), or choose another detector'
