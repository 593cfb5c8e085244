"""RoI heads of teachers: the record that a cache keeps of one, and the head in plain PyTorch.

The same numbers as mmdet's `StandardRoIHead._bbox_forward` (of a cascade: as its first stage) at inference: RoIAlign on
the pyramid, shared layers, class logits and box deltas. Nothing in a record is executed: it makes a head or is refused.

Letters: B images, C channels, H W grid of a level, K RoIs.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from torch import Tensor, nn

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
        sampling_ratio: samples a cell and axis; 0: as many as the RoI has cells there.
        aligned: whether sampling is shifted by half a cell.
        num_convs, conv_channels, num_groups: shared 3x3 convolutions; groups of their GroupNorm, 0 without norm.
        num_classes: object classes; the background is one more.
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
    with torch.device('meta'):
        return {name: tuple(value.shape) for name, value in _layers(record).state_dict().items()}


def head_tensors(record: RoiHeadRecord, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The head's tensors among the teacher's, by their names below the record's prefix. ValueError if they differ."""
    if record.num_groups and record.conv_channels % record.num_groups:
        raise ValueError(f'{record.num_groups} groups do not divide {record.conv_channels} channels')
    if list(record.strides) != sorted(set(record.strides)):
        raise ValueError(f'strides {list(record.strides)} must increase')
    wanted = tensor_shapes(record)
    prefix = record.prefix
    found = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    for name in wanted | found:
        shape = tuple(found[name].shape) if name in found else 'missing'
        if shape != wanted.get(name, 'unknown'):
            raise ValueError(f'{record.prefix}{name} is {shape}, expected {wanted.get(name, "unknown")}')
    for name, value in found.items():
        if not value.is_floating_point() or not math.isfinite(value.double().abs().sum().item()):
            raise ValueError(f'{record.prefix}{name} holds values that are not finite numbers')
    return found


class RoiPredictions(NamedTuple):
    """Predictions of a RoI head for RoIs."""

    logits: Tensor  # (K, classes + 1), the background last
    deltas: Tensor  # (K, 4), or (K, 4 * classes), in units of its box coder


class RoiHead(nn.Module):
    """A frozen box head in float32 and eval mode. Gradients end here: no input gets one."""

    shared_convs: nn.ModuleList
    shared_fcs: nn.ModuleList
    fc_cls: nn.Linear
    fc_reg: nn.Linear

    def __init__(self, record: RoiHeadRecord, weights: Mapping[str, Tensor]) -> None:
        """Builds the head and gives it its weights; arguments and errors are those of `head_tensors`."""
        super().__init__()
        self.record = record
        tensors = head_tensors(record, weights)
        # Without memory of their own: the weights take their place.
        with torch.device('meta'):
            for name, layer in _layers(record).items():
                self.add_module(name, layer)
        self.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> 'RoiHead':
        """Stays in eval mode: a teacher is not trained."""
        return self

    @torch.no_grad()
    def forward(self, maps: Sequence[Tensor], rois: Tensor) -> RoiPredictions:
        """Runs the head on the maps (B, C, H, W) of the levels that the record names, in order.

        `rois` are (K, 5): image in the batch, then absolute xyxy in px of the padded input.
        """
        with torch.autocast(rois.device.type, enabled=False):
            features = self._features([one.float() for one in maps], rois.float())
            for conv in self.shared_convs:
                features = conv(features)
            features = features.flatten(1)
            for layer in self.shared_fcs:
                features = layer(features).relu()
            return RoiPredictions(self.fc_cls(features), self.fc_reg(features))

    def _features(self, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
        """RoIAlign (K, C, size, size), each RoI from the level that suits its size."""
        # Not at the top: importing it takes longer than torch itself, and readers of caches rarely need it.
        from torchvision.ops import roi_align

        record = self.record
        size, options = record.output_size, {'sampling_ratio': record.sampling_ratio, 'aligned': record.aligned}
        features = rois.new_zeros(len(rois), record.in_channels, size, size)
        levels = roi_levels(rois, num_levels=len(record.strides), finest_scale=record.finest_scale)
        for level, (values, stride) in enumerate(zip(maps, record.strides, strict=True)):
            here = (levels == level).nonzero()[:, 0]
            features[here] = roi_align(values, rois[here], size, spatial_scale=1 / stride, **options)
        return features


def roi_levels(rois: Tensor, *, num_levels: int, finest_scale: float) -> Tensor:
    """Which level (K,) each RoI (K, 5) is taken from: one up for each doubling of its scale, the root of its area."""
    width, height = rois[:, 3] - rois[:, 1], rois[:, 4] - rois[:, 2]
    scale = (width * height).clamp(min=0).sqrt()
    return (scale / finest_scale + 1e-6).log2().floor().clamp(0, num_levels - 1).long()


def _layers(record: RoiHeadRecord) -> nn.ModuleDict:
    """The layers under their names in mmdet."""
    channels = [record.in_channels, *[record.conv_channels] * record.num_convs]
    features = [channels[-1] * record.output_size**2, *[record.fc_channels] * record.num_fcs]
    num_boxes = 1 if record.class_agnostic else record.num_classes
    return nn.ModuleDict(
        {
            'shared_convs': nn.ModuleList(_conv_layer(*pair, record.num_groups) for pair in pairwise(channels)),
            'shared_fcs': nn.ModuleList(nn.Linear(*pair) for pair in pairwise(features)),
            'fc_cls': nn.Linear(features[-1], record.num_classes + 1),
            'fc_reg': nn.Linear(features[-1], 4 * num_boxes),
        }
    )


def _conv_layer(in_channels: int, channels: int, num_groups: int) -> nn.Module:
    # The names are those of mmcv's ConvModule.
    norm = {'gn': nn.GroupNorm(num_groups, channels)} if num_groups else {}
    conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=not norm)
    return nn.Sequential(OrderedDict(conv=conv, **norm, relu=nn.ReLU()))
