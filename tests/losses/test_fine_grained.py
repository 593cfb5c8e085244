"""FGFI's mask and loss against the formula, one anchor and one box at a time in float64."""

import pytest
import torch
from torch import Tensor

from mtpd.cache.format.codecs import EncodedMaps
from mtpd.errors import InputError
from mtpd.kernels.weighted_mse import weighted_mses
from mtpd.losses.fine_grained import AnchorWeights, Reference
from mtpd.losses.maps import valid_cells
from mtpd.losses.masked_mse import squared_error
from mtpd.losses.objects import Objects

PADDED = (72, 104)
RESIZED = [(72, 104), (50, 61)]
# Anchors of two shapes around the first cell's corner, as mmdet has them, and off it.
ANCHORS = {
    8: torch.tensor([[-16.0, -16, 16, 16], [-22.6, -11.3, 22.6, 11.3]]),
    16: torch.tensor([[-32.0, -32, 32, 32], [-20.0, -40, 28, 41]]),
}
# Of the size of each level's anchors, one that leaves the image, one far smaller than any anchor, and one of nothing.
BOXES = [
    torch.tensor([[10.0, 4, 41, 36], [2, 1, 66, 66], [98, 66, 120, 80], [50, 20, 54, 23]]),
    torch.tensor([[5.0, 5, 5, 20], [0, 0, 30, 26]]),
]


def grid(stride: int) -> tuple[int, int]:
    return -(-PADDED[0] // stride), -(-PADDED[1] // stride)


def objects(boxes: list[Tensor] = BOXES) -> Objects:
    masks = {stride: valid_cells(RESIZED, stride=stride, grid=grid(stride)) for stride in ANCHORS}
    return Objects(boxes, masks)


def iou(one: list[float], other: list[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (one, other)]
    return shared / (sum(areas) - shared)


def best_of_cell(box: list[float], stride: int, row: int, column: int) -> float:
    moves = [column * stride, row * stride] * 2
    shifted = [[a + move for a, move in zip(one, moves, strict=True)] for one in ANCHORS[stride].double().tolist()]
    return max(iou(box, anchor) for anchor in shifted)


def reference(stride: int, threshold: float, over: Reference) -> Tensor:
    marked = torch.zeros(len(BOXES), 1, *grid(stride))
    masks = objects().masks
    for index, boxes in enumerate(BOXES):
        for box in boxes.double().tolist():
            strides = [stride] if over == 'level' else list(ANCHORS)
            greatest = max(
                best_of_cell(box, one, row, column)
                for one in strides
                for row, column in masks[one][index, 0].nonzero().tolist()
            )
            for row, column in masks[stride][index, 0].nonzero().tolist():
                if best_of_cell(box, stride, row, column) > threshold * greatest:
                    marked[index, 0, row, column] = 1
    return marked


def weigh(
    stride: int, *, target_stride: int | None = None, threshold: float = 0.5, over: Reference = 'level'
) -> Tensor:
    weights = AnchorWeights(
        ANCHORS, stride=stride, target_stride=target_stride or stride, threshold=threshold, reference=over
    )
    mask = valid_cells(RESIZED, stride=target_stride or stride, grid=grid(target_stride or stride))
    got = weights(objects(), mask)
    assert isinstance(got, Tensor)
    return got


@pytest.mark.parametrize('over', ['level', 'pyramid'])
@pytest.mark.parametrize('threshold', [0.0, 0.5, 0.8])
@pytest.mark.parametrize('stride', [8, 16])
def test_the_mask_against_the_formula(stride: int, threshold: float, over: Reference) -> None:
    got = weigh(stride, threshold=threshold, over=over)
    want = reference(stride, threshold, over)
    assert torch.equal(got, want)
    assert 0 < want.sum() < want.numel()


def test_the_pyramid_marks_fewer_cells() -> None:
    for stride in ANCHORS:
        level, pyramid = weigh(stride, over='level'), weigh(stride, over='pyramid')
        assert (pyramid <= level).all()
        assert pyramid.sum() < level.sum()


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16])
def test_the_loss_against_the_formula(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, *grid(8), generator=generator, dtype=torch.float64) for _ in range(2))
    student, teacher = student.to(dtype), teacher.to(dtype)
    total, count = 0.0, 0
    for index, _, row, column in reference(8, 0.5, 'level').nonzero().tolist():
        error = student[index, :, row, column].double() - teacher[index, :, row, column].double()
        total += error.square().sum().item()
        count += 1
    (loss,) = weighted_mses([squared_error(student, EncodedMaps(teacher), objects().masks[8], weights=weigh(8))])
    assert loss.item() == pytest.approx(total / (3 * count), rel=1e-5)


def test_gradcheck() -> None:
    student, teacher = (torch.randn(2, 2, *grid(16), dtype=torch.float64, requires_grad=True) for _ in range(2))
    mask, weights = objects().masks[16], weigh(16)
    assert torch.autograd.gradcheck(
        lambda a, b: weighted_mses([squared_error(a, EncodedMaps(b), mask, weights=weights)])[0], (student, teacher)
    )


def test_on_the_grid_of_another_stride() -> None:
    """Cells of stride 8 take the mark of the cell of stride 16 that they lie in, and the other way round."""
    coarse, fine = weigh(16), weigh(16, target_stride=8)
    rows, columns = torch.arange(9) // 2, torch.arange(13) // 2
    assert torch.equal(fine, coarse[:, :, rows][:, :, :, columns])
    shrunk = weigh(8, target_stride=16)
    assert shrunk.shape == (2, 1, 5, 7)
    # The centre of a cell of stride 16 is the corner of four of stride 8; the lower right one, if there is one.
    rows, columns = torch.tensor([1, 3, 5, 7, 8]), torch.tensor([1, 3, 5, 7, 9, 11, 12])
    assert torch.equal(shrunk, weigh(8)[:, :, rows][:, :, :, columns])


def test_the_grid_of_padding_does_not_matter() -> None:
    """An anchor that only padding has would fit the box at the right edge better."""
    boxes = [torch.tensor([[58.0, 8, 72, 24]])]
    results = []
    for columns in (9, 12):
        mask = valid_cells([(40, 72)], stride=8, grid=(5, columns))
        weights = AnchorWeights(ANCHORS, stride=8, target_stride=8, threshold=0.5, reference='level')
        results.append(weights(Objects(boxes, {8: mask}), mask))
    assert torch.equal(results[0], results[1][:, :, :, :9])
    assert not results[1][:, :, :, 9:].any()


def test_anchors_are_no_part_of_what_is_saved() -> None:
    weights = AnchorWeights(ANCHORS, stride=8, target_stride=8, threshold=0.5, reference='pyramid')
    assert not weights.state_dict()
    assert weights.to(torch.float64).get_buffer('anchors_16').dtype == torch.float64


def test_a_level_without_anchors() -> None:
    with pytest.raises(InputError, match='anchors of stride 8, 16 but not 4; remove this level'):
        AnchorWeights(ANCHORS, stride=4, target_stride=4, threshold=0.5, reference='level')
