"""TAR's feature loss against its formula, computed with loops in float64."""

import math

import pytest
import torch
from torch import Tensor

from mtpd.cache.format.codecs import EncodedMaps
from mtpd.kernels.weighted_mse import weighted_mses
from mtpd.losses.masked_mse import squared_error
from mtpd.losses.objects import Objects
from mtpd.losses.tar_feature import gaussian_weights

STRIDE = 8
GRIDS = [(5, 7), (1, 13), (25, 34)]


def random_maps(grid: tuple[int, int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(grid))
    student, teacher = (torch.randn(3, 4, *grid, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    mask = torch.ones(3, 1, *grid, dtype=torch.bool)
    mask[1, :, :, grid[1] // 2 + 1 :] = False
    return student, teacher, mask


def random_boxes(grid: tuple[int, int]) -> list[Tensor]:
    """Overlapping ones, some that leave the image, one without area, and an image without any."""
    height, width = grid[0] * STRIDE, grid[1] * STRIDE
    first = [[2.5, 1.0, 0.8 * width, 7.5], [0.3 * width, 0.0, width, height], [-9.0, -7.0, 6.0, 30.0]]
    # The second image ends in the middle of the grid, and so of its box.
    return [torch.tensor(first), torch.tensor([[5.0, 3, 5, 20], [4.0, 0, width, height]]), torch.zeros(0, 4)]


def reference_weight(boxes: Tensor, row: int, column: int, spread: tuple[float, float]) -> float:
    x, y = (column + 0.5) * STRIDE, (row + 0.5) * STRIDE
    best = 0.0
    for x1, y1, x2, y2 in boxes.double().tolist():
        if x1 <= x <= x2 and y1 <= y <= y2 and x2 > x1 and y2 > y1:
            along_x = (x - (x1 + x2) / 2) / (spread[0] * (x2 - x1) / 2)
            along_y = (y - (y1 + y2) / 2) / (spread[1] * (y2 - y1) / 2)
            best = max(best, math.exp(-(along_x**2) - along_y**2))
    return best


def reference(
    student: Tensor, teacher: Tensor, mask: Tensor, boxes: list[Tensor], spread: tuple[float, float]
) -> float:
    total, weights = 0.0, 0.0
    for index in range(len(student)):
        for row, column in mask[index, 0].nonzero().tolist():
            weight = reference_weight(boxes[index], row, column, spread)
            error = student[index, :, row, column].double() - teacher[index, :, row, column].double()
            total += weight * error.square().sum().item()
            weights += weight
    return total / (student.shape[1] * weights)


def tar_feature(maps: tuple[Tensor, Tensor, Tensor], boxes: list[Tensor], spread: tuple[float, float]) -> Tensor:
    student, teacher, mask = maps
    weights = gaussian_weights(Objects(boxes, {}), mask, stride=STRIDE, spread=spread)
    return weighted_mses([squared_error(student, EncodedMaps(teacher), mask, weights=weights)])[0]


@pytest.mark.parametrize('spread', [(2.0, 2.0), (0.7, 1.3)])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('grid', GRIDS)
def test_against_the_formula(grid: tuple[int, int], dtype: torch.dtype, spread: tuple[float, float]) -> None:
    maps, boxes = random_maps(grid, dtype), random_boxes(grid)
    loss = tar_feature(maps, boxes, spread)
    # The maps are rounded before both, so half precision must cost nothing.
    assert loss.item() == pytest.approx(reference(*maps, boxes, spread), rel=1e-5)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_the_mask_is_one_at_a_centre_and_falls_to_the_edges() -> None:
    mask = torch.ones(1, 1, 9, 9, dtype=torch.bool)
    box = torch.tensor([[8.0, 16.0, 64.0, 56.0]])  # 7 by 5 cells around the cell in the middle
    weights = gaussian_weights(Objects([box], {}), mask, stride=STRIDE, spread=(2.0, 2.0))[0, 0]
    assert weights[4, 4] == 1
    assert weights.count_nonzero() == 35
    assert torch.equal(weights, weights.flip(0))
    assert torch.equal(weights, weights.flip(1))
    # Three of three and a half half-widths from the centre, at a spread of two.
    assert weights[4, 1].item() == pytest.approx(math.exp(-((3 / 3.5 / 2) ** 2)), rel=1e-6)


def test_a_mirrored_view_has_a_mirrored_mask() -> None:
    mask = torch.ones(1, 1, 5, 7, dtype=torch.bool)
    boxes = random_boxes((5, 7))[0]
    mirrored = torch.stack([56 - boxes[:, 2], boxes[:, 1], 56 - boxes[:, 0], boxes[:, 3]], 1)
    one, other = (
        gaussian_weights(Objects([each], {}), mask, stride=STRIDE, spread=(2.0, 2.0)) for each in (boxes, mirrored)
    )
    torch.testing.assert_close(one.flip(3), other)


def test_a_batch_without_objects_costs_nothing() -> None:
    student, teacher, mask = random_maps((5, 7))
    student.requires_grad_()
    loss = tar_feature((student, teacher, mask), [torch.zeros(0, 4)] * 3, (2.0, 2.0))
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


def test_gradcheck() -> None:
    student, teacher, mask = random_maps((4, 5), torch.float64)
    boxes = random_boxes((4, 5))
    inputs = student.requires_grad_(), teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: tar_feature((a, b, mask), boxes, (2.0, 2.0)), inputs)
