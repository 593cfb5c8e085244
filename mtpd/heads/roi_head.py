"""A teacher's RoI head in plain PyTorch: RoIAlign on the pyramid, shared layers, class logits and box deltas.

The same numbers as mmdet's `StandardRoIHead._bbox_forward` (of a cascade: as its first stage) at inference.

Letters: B images, C channels, H W grid of a level, K RoIs.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtpd.heads.record import RoiHeadRecord, head_tensors


class RoiPredictions(NamedTuple):
    """What a RoI head says about RoIs.

    Attributes:
        logits: (K, classes + 1), the background last.
        deltas: (K, 4), or (K, 4 * classes), in units of its box coder.
    """

    logits: Tensor
    deltas: Tensor


class RoiHead(nn.Module):
    """A frozen box head in float32 and eval mode. Gradients end here: no input gets one.

    Attributes:
        record: how it is built.
    """

    def __init__(self, record: RoiHeadRecord, weights: Mapping[str, Tensor]) -> None:
        """Builds the head and gives it its weights.

        Args:
            record: how the head is built.
            weights: the teacher's tensors by their names in it.

        Raises:
            ValueError: they contradict each other.
        """
        super().__init__()
        self.record = record
        tensors = head_tensors(record, weights)
        # Shapes agree with tensors that exist, so nothing larger than these is allocated.
        with torch.device('meta'):
            self.shared_convs = nn.ModuleList(
                _conv_layer(
                    record.conv_channels if number else record.in_channels, record.conv_channels, record.num_groups
                )
                for number in range(record.num_convs)
            )
            sizes = {name: tensor.shape[::-1] for name, tensor in tensors.items() if tensor.dim() == 2}
            self.shared_fcs = nn.ModuleList(
                nn.Linear(*sizes[f'shared_fcs.{number}.weight']) for number in range(record.num_fcs)
            )
            self.fc_cls, self.fc_reg = nn.Linear(*sizes['fc_cls.weight']), nn.Linear(*sizes['fc_reg.weight'])
        self.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> 'RoiHead':
        """Stays in eval mode: a teacher is not trained."""
        del mode
        return self

    @torch.no_grad()
    def forward(self, maps: Sequence[Tensor], rois: Tensor) -> RoiPredictions:
        """Runs the head.

        Args:
            maps: (B, C, H, W) of the levels that the record names, in order.
            rois: (K, 5): image in the batch, then absolute xyxy in px of the padded input.
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
        # Not at the top: it takes longer than torch itself, and who opens a cache mostly has no use for it.
        from torchvision.ops import roi_align

        record = self.record
        size = record.output_size
        features = rois.new_zeros(len(rois), record.in_channels, size, size)
        levels = roi_levels(rois, num_levels=len(record.strides), finest_scale=record.finest_scale)
        for level, (values, stride) in enumerate(zip(maps, record.strides, strict=True)):
            here = (levels == level).nonzero()[:, 0]
            features[here] = roi_align(
                values,
                rois[here],
                size,
                spatial_scale=1 / stride,
                sampling_ratio=record.sampling_ratio,
                aligned=record.aligned,
            )
        return features


def roi_levels(rois: Tensor, *, num_levels: int, finest_scale: float) -> Tensor:
    """Which level (K,) each RoI (K, 5) is taken from: one up for each doubling of its scale, the root of its area."""
    width, height = rois[:, 3] - rois[:, 1], rois[:, 4] - rois[:, 2]
    scale = (width * height).clamp(min=0).sqrt()
    return (scale / finest_scale + 1e-6).log2().floor().clamp(0, num_levels - 1).long()


def _conv_layer(in_channels: int, channels: int, num_groups: int) -> nn.Module:
    # The names are those of mmcv's ConvModule.
    layers: dict[str, nn.Module] = {'conv': nn.Conv2d(in_channels, channels, 3, padding=1, bias=num_groups == 0)}
    if num_groups:
        layers['gn'] = nn.GroupNorm(num_groups, channels)
    sequence = nn.Sequential()
    for name, layer in (layers | {'relu': nn.ReLU()}).items():
        sequence.add_module(name, layer)
    return sequence
