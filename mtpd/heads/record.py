"""How a teacher's RoI head is built, as plain numbers: what a cache says about it beside its tensors.

Nothing in a record is executed; what it makes of a head is `mtpd.heads.roi_head.RoiHead` or a refusal.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from torch import Tensor

Shape = tuple[int, ...]

# No head is near these; a record beyond them is an attempt to make a reader allocate or compute without end.
Channels = Annotated[int, Field(gt=0, le=2**14)]
Scale = Annotated[FiniteFloat, Field(gt=0, le=2.0**16)]


class RoiHeadRecord(BaseModel):
    """A box head of mmdet's `ConvFCBBoxHead` with shared layers only, after RoIAlign on a pyramid.

    Attributes:
        prefix: what the names of its tensors begin with in the teacher; of a cascade, the first stage.
        strides: of the levels that RoIs are taken from, px a cell, in order.
        finest_scale: RoIs smaller than twice this, in px, are taken from the first level.
        output_size: rows and columns that a RoI is sampled to.
        sampling_ratio: samples a cell and axis; 0: as many as the RoI has cells there.
        aligned: whether sampling is shifted by half a cell.
        in_channels: of the levels.
        num_convs, conv_channels, num_groups: shared 3x3 convolutions; groups of their GroupNorm, 0 without norm.
        num_fcs, fc_channels: shared fully connected layers.
        num_classes: object classes; the background is one more.
        class_agnostic: whether there is one box for all classes.
        means, stds: of the box deltas dx, dy, dw, dh.
    """

    model_config = ConfigDict(extra='forbid', frozen=True, strict=True)

    prefix: Literal['roi_head.bbox_head.', 'roi_head.bbox_head.0.']
    strides: tuple[Annotated[int, Field(gt=0, le=2**12)], ...] = Field(strict=False, min_length=1, max_length=8)
    finest_scale: Scale
    output_size: Annotated[int, Field(gt=0, le=64)]
    sampling_ratio: Annotated[int, Field(ge=0, le=16)]
    aligned: bool
    in_channels: Channels
    num_convs: Annotated[int, Field(ge=0, le=16)]
    conv_channels: Channels
    num_groups: Annotated[int, Field(ge=0, le=2**14)]
    num_fcs: Annotated[int, Field(ge=0, le=16)]
    fc_channels: Channels
    num_classes: Channels
    class_agnostic: bool
    means: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat] = Field(strict=False)
    stds: tuple[Scale, Scale, Scale, Scale] = Field(strict=False)


def tensor_shapes(record: RoiHeadRecord) -> dict[str, Shape]:
    """Names, below the record's prefix, and shapes of the tensors that such a head has."""
    shapes: dict[str, Shape] = {}
    channels = record.in_channels
    for number in range(record.num_convs):
        name = f'shared_convs.{number}'
        shapes[f'{name}.conv.weight'] = (record.conv_channels, channels, 3, 3)
        # mmcv leaves the bias to the norm.
        biased = 'gn' if record.num_groups else 'conv'
        shapes |= {f'{name}.gn.weight': (record.conv_channels,)} if record.num_groups else {}
        shapes[f'{name}.{biased}.bias'] = (record.conv_channels,)
        channels = record.conv_channels
    features = channels * record.output_size**2
    for number in range(record.num_fcs):
        shapes[f'shared_fcs.{number}.weight'] = (record.fc_channels, features)
        shapes[f'shared_fcs.{number}.bias'] = (record.fc_channels,)
        features = record.fc_channels
    num_boxes = 1 if record.class_agnostic else record.num_classes
    for name, num_outputs in (('fc_cls', record.num_classes + 1), ('fc_reg', 4 * num_boxes)):
        shapes[f'{name}.weight'] = (num_outputs, features)
        shapes[f'{name}.bias'] = (num_outputs,)
    return shapes


def head_tensors(record: RoiHeadRecord, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The head's tensors by their names below the record's prefix.

    Args:
        record: how the head is built.
        weights: the teacher's tensors by their names in it.

    Raises:
        ValueError: the record contradicts itself or the tensors; names what is wrong.
    """
    if record.num_groups and record.conv_channels % record.num_groups:
        raise ValueError(f'{record.num_groups} groups do not divide {record.conv_channels} channels')
    if list(record.strides) != sorted(set(record.strides)):
        raise ValueError(f'strides {list(record.strides)} must increase')
    wanted = tensor_shapes(record)
    found = {
        name.removeprefix(record.prefix): value for name, value in weights.items() if name.startswith(record.prefix)
    }
    for name in wanted | found:
        shape = tuple(found[name].shape) if name in found else 'missing'
        if shape != wanted.get(name, 'unknown'):
            raise ValueError(f'{record.prefix}{name} is {shape}, expected {wanted.get(name, "unknown")}')
    for name, value in found.items():
        if not value.is_floating_point() or not math.isfinite(value.double().abs().sum().item()):
            raise ValueError(f'{record.prefix}{name} holds values that are not finite numbers')
    return found
