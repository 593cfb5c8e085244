"""The anchors of an mmdet detector's dense head."""

from typing import Any

import torch
from torch import Tensor, nn

from mtpd.detectors.runtime import prepare
from mtpd.errors import InputError


def base_anchors(model: nn.Module) -> dict[int, Tensor]:
    """Stride of each level that has anchors -> the anchors (A, 4) of its first cell, absolute xyxy in px.

    Those of the cell in column x and row y lie x strides to the right and y strides below.

    Args:
        model: an mmdet detector: a one-stage detector with anchors, or a two-stage one with a region proposal network.

    Raises:
        InputError: the detector has no anchors, or strides that differ along x and y.
    """
    prepare()
    from mmdet.models.task_modules.prior_generators import AnchorGenerator

    heads: list[Any] = [getattr(model, name, None) for name in ('bbox_head', 'rpn_head')]
    generators = [getattr(head, 'prior_generator', None) for head in heads]
    for generator in generators:
        if isinstance(generator, AnchorGenerator):
            if any(width != height for width, height in generator.strides):
                raise InputError(f'the anchors of {type(model).__name__} have different strides along x and y')
            pairs = zip(generator.strides, generator.base_anchors, strict=True)
            return {int(stride): torch.as_tensor(anchors).float() for (stride, _), anchors in pairs}
    raise InputError(
        f'fine_grained needs the anchors of the student, and {type(model).__name__} has none; '
        'use tar_feature or fgd, which need only boxes'
    )
