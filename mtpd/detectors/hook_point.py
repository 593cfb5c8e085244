"""Where in a detector its maps are taken, for teacher and student alike: after its neck, or before the neck's norms.

MTPD (Cao et al., ICML 2023; released code) hooks `neck.fpn_convs.i.conv`. In most pyramids nothing follows these
convolutions and that is the neck's output. Where a norm follows, as the GroupNorm of RepPoints does, the maps before it
still have the scale of each image and channel, which the norm takes away.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn

from mtpd.detectors.runtime import prepare
from mtpd.errors import InputError

# As the fingerprint of a cache has them.
NECK = 'neck'
BEFORE_NORM = 'neck.fpn_convs.conv'

# What a user can ask for; `auto` is as in MTPD.
HookChoice = Literal['auto', 'neck', 'before-norm']


def teacher_hook_point(model: nn.Module, choice: HookChoice, *, name: str) -> str:
    """Where the maps of a teacher are taken.

    Args:
        model: an mmdet detector.
        choice: the user's.
        name: the teacher's, for messages.

    Raises:
        InputError: `before-norm`, and there are no norms.
    """
    if choice == 'before-norm' and not has_output_norms(model):
        raise InputError(f'hook before-norm: the neck of {name} has no norms after its fpn_convs; remove this option')
    return NECK if choice == 'neck' or not has_output_norms(model) else BEFORE_NORM


def student_hook_point(model: nn.Module, teacher: str) -> str:
    """Where the maps of a student are taken: before its norms if those of the teacher are, else behind its neck.

    A student behind its norms could not reach the scale of maps from before the teacher's, nor the other way round. A
    student without norms has but one place, at which both points are.
    """
    return BEFORE_NORM if teacher == BEFORE_NORM and has_output_norms(model) else NECK


def choice_of(hook_point: str) -> HookChoice:
    """The `--hook` value that gives this hook point for any detector."""
    return 'before-norm' if hook_point == BEFORE_NORM else 'neck'


def has_output_norms(model: nn.Module) -> bool:
    """Whether the outputs of a detector's neck are those of convolutions with a norm behind each."""
    prepare()
    from mmdet.models.necks import FPN

    neck: Any = getattr(model, 'neck', None)
    # Other pyramids, PAFPN for one, are FPNs too but go on from `fpn_convs`.
    if not isinstance(neck, FPN) or type(neck).forward is not FPN.forward:
        return False
    return all(one.with_norm and one.order == ('conv', 'norm', 'act') for one in neck.fpn_convs)


def neck_of(model: nn.Module) -> nn.Module:
    """The module whose maps are distilled.

    Raises:
        InputError: the detector has no neck.
    """
    neck = getattr(model, 'neck', None)
    if not isinstance(neck, nn.Module):
        raise InputError(
            f'{type(model).__name__} has no neck, whose maps are distilled; choose a detector with a neck, such as '
            'faster-rcnn_r50_fpn_1x_coco, or train it without `distill`'
        )
    return neck


@contextmanager
def captured_maps(model: nn.Module, *, hook_point: str = NECK) -> Iterator[list[Tensor]]:
    """Collects the maps at a hook point during one forward pass: a list that holds a map per level afterwards.

    A level without a convolution of its own, such as the p6 that Mask R-CNN picks from its p5, is taken behind the
    neck.
    """
    neck = neck_of(model)
    maps: list[Tensor] = []
    before: list[Tensor] = []

    def keep_one(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        del module, inputs
        before.append(output)

    def keep_all(module: nn.Module, inputs: tuple[Any, ...], outputs: Sequence[Tensor]) -> None:
        del module, inputs
        maps[:] = [*before, *outputs[len(before) :]]
        before.clear()

    hooks = [neck.register_forward_hook(keep_all)]
    if hook_point == BEFORE_NORM:
        hooks += [one.conv.register_forward_hook(keep_one) for one in _output_convolutions(model)]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def neck_outputs(model: nn.Module, maps: Sequence[Tensor], *, hook_point: str) -> list[Tensor]:
    """What the neck hands to the heads, from all of its maps at a hook point."""
    if hook_point == NECK:
        return list(maps)
    convolutions = _output_convolutions(model)
    normed = [one.norm(values) for one, values in zip(convolutions, maps, strict=False)]
    activated = [
        one.activate(values) if one.with_activation else values
        for one, values in zip(convolutions, normed, strict=True)
    ]
    return [*activated, *maps[len(activated) :]]


def _output_convolutions(model: nn.Module) -> Any:
    """The neck's `ConvModule`s, in the order of its levels."""
    assert has_output_norms(model)
    neck: Any = model.neck
    return neck.fpn_convs
