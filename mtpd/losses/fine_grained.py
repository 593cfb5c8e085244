"""FGFI, fine-grained feature imitation (Wang et al., CVPR 2019): the student follows the teacher near the objects,
where "near" is what the anchors of the student's own head say.

    I_bhw = 1 if some anchor k of the cell has IoU_nk > psi max IoU_n with some object n, else 0
    L = sum_bchw I_bhw (A(S)_bchw - T_bchw)^2 / (C sum_bhw I_bhw)

    published:   a / (2 N) sum_bchw I (A(S) - T)^2,   N = sum_bhw I          weight of this mean:   a C / 2

psi = 0.5 and the strict comparison are those of the released code, in which one map of 512 channels (VGG) has all
anchors; its weight a = 0.01 is 2.56 there, and with 256 channels 1.28, the default. It has a 3x3 adapter with ReLU
(weights of standard deviation 1e-4), no imitation in the first 400 steps, and clips gradients at 10; here the adapter
is a 1x1 convolution, and the rest is up to the recipe.

On a pyramid `level` takes the maximum over each level by itself, so that every object marks cells on all levels whose
anchors touch it; `pyramid`, as in both ports to pyramids that we know, over all levels of the student, so that an
object marks the levels whose anchors have its size. Each level has its own normaliser. Anchors of padding do not count.

Legend: B batch, C channels, H W grid of a level, N boxes of an image, A anchors of a cell.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from mtpd.errors import InputError
from mtpd.losses.masked_mse import MaskedMse
from mtpd.losses.match import LevelPair
from mtpd.losses.objects import Objects
from mtpd.losses.options import Adapter, LevelOptions, Scale

Reference = Literal['level', 'pyramid']


class FineGrainedOptions(LevelOptions):
    """Fine-grained feature imitation: squared error in cells where an anchor of the student is near an object."""

    looks_at_objects: ClassVar[bool] = True
    looks_at_anchors: ClassVar[bool] = True

    loss: Literal['fine_grained'] = 'fine_grained'
    """Name of the loss."""
    weight: NonNegativeFloat = 1.28
    """Loss weight; the loss is a mean over channels and marked cells. Default: the released 0.01 at 256 channels."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """An anchor marks its cell if its IoU with an object exceeds this fraction of the object's maximum IoU."""
    reference: Reference = 'level'
    """Anchors of the maximum IoU: those of the same `level`, or of the student's whole `pyramid`."""
    adapter: Adapter = 'always'
    """1x1 adapter of the student's map. `auto`: where the channels differ; `always`: on every level."""
    scale: Scale = 'none'
    """`teacher_std`: divide maps by the standard deviation of the teacher's level; `none`: use them unchanged."""

    def build(self, pair: LevelPair, anchors: Mapping[int, Tensor]) -> nn.Module:
        """See `LevelOptions`; the authors have an adapter everywhere."""
        near = AnchorWeights(
            anchors,
            stride=pair.student.stride,
            target_stride=pair.compared.stride,
            threshold=self.threshold,
            reference=self.reference,
        )
        return MaskedMse(pair.student.channels, pair.teacher.channels, weigh=near, adapter=self.adapter)


class AnchorWeights(nn.Module):
    """Marks the cells of a level whose anchors are near an object.

    `anchors` are, for the stride of each level, those of its first cell: (A, 4), absolute xyxy in px. Those of the
    student's level of `stride` mark cells; the maps are compared at `target_stride`.
    """

    def __init__(
        self, anchors: Mapping[int, Tensor], *, stride: int, target_stride: int, threshold: float, reference: Reference
    ) -> None:
        super().__init__()
        if stride not in anchors:
            found = ', '.join(map(str, anchors))
            raise InputError(
                f'fine_grained: the student has anchors of stride {found} but not {stride}; remove this level'
            )
        self._stride, self._target_stride = stride, target_stride
        self._threshold = threshold
        self._strides = tuple(anchors) if reference == 'pyramid' else (stride,)
        for one in self._strides:
            self.register_buffer(f'anchors_{one}', anchors[one], persistent=False)

    def forward(self, objects: Objects, mask: Tensor) -> Tensor:
        """What each cell weighs, float32 (B, 1, H, W), 0 or 1; of the mask (B, 1, H, W) only the shape counts."""
        # Image by image: the anchors of a fine level times the boxes of a batch would be gigabytes.
        marked = torch.stack([self._image(objects, index)[None] for index in range(len(objects.boxes))])
        if self._stride != self._target_stride:
            marked = _nearest(marked, mask, ratio=self._target_stride / self._stride)
        return marked.float()

    def _image(self, objects: Objects, index: int) -> Tensor:
        """Bool (H, W) of one image, on the grid of the student's level."""
        boxes = objects.boxes[index].float()
        overlaps = {
            stride: _overlaps(boxes, self.get_buffer(f'anchors_{stride}'), objects.masks[stride][index, 0], stride)
            for stride in self._strides
            if stride in objects.masks
        }
        greatest = torch.stack([one.amax((1, 2)) for one in overlaps.values()]).amax(0)
        return (overlaps[self._stride] > self._threshold * greatest[:, None, None]).any(0)


def _overlaps(boxes: Tensor, anchors: Tensor, valid: Tensor, stride: int) -> Tensor:
    """Each box's greatest IoU with the anchors of each cell, (N, H, W); 0 where `valid` (H, W) is False."""
    rows, columns = (torch.arange(cells, device=valid.device) * stride for cells in valid.shape)
    # Intersections are products of a part along y (N, A, H) and one along x (N, A, W).
    along_y = _shared(boxes[:, 1], boxes[:, 3], anchors[:, 1], anchors[:, 3], rows)
    along_x = _shared(boxes[:, 0], boxes[:, 2], anchors[:, 0], anchors[:, 2], columns)
    shared = along_y[:, :, :, None] * along_x[:, :, None, :]
    areas = _area(boxes)[:, None] + _area(anchors)[None, :]
    return torch.where(valid, (shared / (areas[:, :, None, None] - shared)).amax(1), 0.0)


def _shared(low: Tensor, high: Tensor, anchor_low: Tensor, anchor_high: Tensor, shifts: Tensor) -> Tensor:
    """Lengths (N, A, cells) that boxes (N,) and the shifted anchors (A,) have in common along one axis."""
    starts = torch.maximum(low[:, None, None], anchor_low[None, :, None] + shifts)
    ends = torch.minimum(high[:, None, None], anchor_high[None, :, None] + shifts)
    return (ends - starts).clamp(min=0)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]).clamp(min=0) * (boxes[:, 3] - boxes[:, 1]).clamp(min=0)


def _nearest(marked: Tensor, mask: Tensor, *, ratio: float) -> Tensor:
    """The cells (B, 1, h, w) that hold the centres of the cells of `mask` (B, 1, H, W); `ratio` is H's stride / h's."""
    rows, columns = (
        ((torch.arange(wanted, device=mask.device) + 0.5) * ratio).long().clamp(max=found - 1)
        for wanted, found in zip(mask.shape[2:], marked.shape[2:], strict=True)
    )
    return marked[:, :, rows][:, :, :, columns]
