"""Region pooling through mmcv.ops against loops written from the definitions; gradients against finite differences."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

# Batch index, x1, y1, x2, y2 in px; inside, across the edges, thin, inverted, outside.
ROIS = torch.tensor(
    [
        [0, 3.3, 2.1, 21.7, 17.9],
        [1, -6.2, -3.7, 9.1, 40.3],
        [0, 11.1, 5.2, 11.9, 30.6],
        [1, 20.3, 12.2, 14.4, 6.1],
        [1, 10.3, 12.2, 19.4, 6.1],
        [0, 90.2, 90.1, 99.7, 97.3],
    ],
    dtype=torch.float64,
)
SCALE = 0.25
BINS = (3, 2)


def maps(*, batch: int = 2, channels: int = 2, height: int = 7, width: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)


def bilinear(image: Tensor, y: float, x: float) -> float:
    """Linear between cell centres, constant up to a cell beyond the edge, zero further out."""
    height, width = image.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            weight = max(0.0, 1 - abs(y - row)) * max(0.0, 1 - abs(x - column))
            if weight:
                total += weight * float(image[row, column])
    return total


def average(image: Tensor, y: float, x: float, bin_height: float, bin_width: float, rows: int, columns: int) -> float:
    total = 0.0
    for i in range(rows):
        for j in range(columns):
            total += bilinear(image, y + (i + 0.5) * bin_height / rows, x + (j + 0.5) * bin_width / columns)
    return total / max(rows * columns, 1)


def expected_roi_align(images: Tensor, rois: Tensor, ratio: int, aligned: bool) -> Tensor:
    output = images.new_zeros(len(rois), images.shape[1], *BINS)
    for k, (index, *box) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (edge * SCALE - (0.5 if aligned else 0.0) for edge in box)
        height, width = y2 - y1, x2 - x1
        if not aligned:
            height, width = max(height, 1.0), max(width, 1.0)
        bin_height, bin_width = height / BINS[0], width / BINS[1]
        rows, columns = (ratio, ratio) if ratio else (max(math.ceil(bin_height), 0), max(math.ceil(bin_width), 0))
        for c in range(images.shape[1]):
            for i in range(BINS[0]):
                for j in range(BINS[1]):
                    corner = (y1 + i * bin_height, x1 + j * bin_width)
                    image = images[int(index), c]
                    output[k, c, i, j] = average(image, *corner, bin_height, bin_width, rows, columns)
    return output


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 1, 2])
def test_roi_align(ratio: int, aligned: bool) -> None:
    from mmcv.ops import roi_align

    pooled = roi_align(maps(), ROIS, BINS, SCALE, ratio, 'avg', aligned)
    torch.testing.assert_close(pooled, expected_roi_align(maps(), ROIS, ratio, aligned))


@pytest.mark.parametrize('ratio', [0, 2])
def test_gradient_of_roi_align(ratio: int) -> None:
    from mmcv.ops import roi_align

    inputs = maps().requires_grad_()
    assert gradcheck(lambda images: roi_align(images, ROIS, BINS, SCALE, ratio, 'avg', True), inputs, fast_mode=True)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_roi_align_rounds_once(dtype: torch.dtype) -> None:
    from mmcv.ops import roi_align

    images = maps().to(dtype).requires_grad_()
    pooled = roi_align(images, ROIS.to(dtype), BINS, SCALE, 2, 'avg', True)
    assert pooled.dtype == dtype
    assert torch.autograd.grad(pooled.sum(), images)[0].dtype == dtype
    exact = roi_align(images.detach().float(), ROIS.to(dtype).float(), BINS, SCALE, 2, 'avg', True)
    assert torch.equal(pooled, exact.to(dtype))


def test_roi_align_without_regions_or_images() -> None:
    from mmcv.ops import roi_align

    images = maps().requires_grad_()
    pooled = roi_align(images, ROIS[:0], BINS, SCALE, 0, 'avg', True)
    assert pooled.shape == (0, 2, *BINS)
    assert not torch.autograd.grad(pooled.sum(), images)[0].any()
    assert roi_align(maps(batch=0), ROIS[:0], BINS, SCALE, 0, 'avg', True).shape == (0, 2, *BINS)
    assert roi_align(maps(height=0), ROIS, BINS, SCALE, 0, 'avg', True).eq(0).all()


def test_roi_align_marks_regions_that_are_not_finite() -> None:
    from mmcv.ops import roi_align

    rois = ROIS.clone()
    rois[1, 3] = torch.nan
    rois[2, 2] = torch.inf
    pooled = roi_align(maps(), rois, BINS, SCALE, 2, 'avg', True)
    assert pooled[1:3].isnan().all()
    torch.testing.assert_close(pooled[[0, 3, 4, 5]], expected_roi_align(maps(), ROIS, 2, True)[[0, 3, 4, 5]])


def test_roi_align_refuses_max_pooling() -> None:
    from mmcv.ops import roi_align

    with pytest.raises(NotImplementedError, match=r"roi_align with pool_mode 'max' .* compiled mmcv"):
        roi_align(maps(), ROIS, BINS, SCALE, 2, 'max', True)


@pytest.mark.parametrize('index', [-1, 2])
def test_a_region_of_an_image_that_is_not_there(index: int) -> None:
    from mmcv.ops import deform_roi_pool, roi_align, roi_pool

    rois = ROIS.clone()
    rois[3, 0] = index
    with pytest.raises(IndexError, match='of a batch of 2'):
        roi_align(maps(), rois, BINS, SCALE, 2, 'avg', True)
    with pytest.raises(IndexError, match='of a batch of 2'):
        roi_pool(maps(), rois, BINS, SCALE)
    with pytest.raises(IndexError, match='of a batch of 2'):
        deform_roi_pool(maps(), rois, None, BINS, SCALE)


def expected_roi_pool(images: Tensor, rois: Tensor) -> Tensor:
    height, width = images.shape[2:]
    output = images.new_zeros(len(rois), images.shape[1], *BINS)
    for k, (index, x1, y1, x2, y2) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = x1 * SCALE, y1 * SCALE, (x2 + 1) * SCALE, (y2 + 1) * SCALE
        if x2 <= x1 or y2 <= y1:
            continue
        for i in range(BINS[0]):
            for j in range(BINS[1]):
                top = max(math.floor(y1 + i * (y2 - y1) / BINS[0]), 0)
                bottom = min(math.ceil(y1 + (i + 1) * (y2 - y1) / BINS[0]), height)
                left = max(math.floor(x1 + j * (x2 - x1) / BINS[1]), 0)
                right = min(math.ceil(x1 + (j + 1) * (x2 - x1) / BINS[1]), width)
                if top < bottom and left < right:
                    for c in range(images.shape[1]):
                        output[k, c, i, j] = images[int(index), c, top:bottom, left:right].max()
    return output


def test_roi_pool() -> None:
    from mmcv.ops import roi_pool

    assert torch.equal(roi_pool(maps(), ROIS, BINS, SCALE), expected_roi_pool(maps(), ROIS))
    assert roi_pool(maps(), ROIS[:0], BINS, SCALE).shape == (0, 2, *BINS)
    rois = ROIS.clone()
    rois[0, 1] = torch.nan
    assert not roi_pool(maps(), rois, BINS, SCALE)[0].any()


def test_gradient_of_roi_pool() -> None:
    from mmcv.ops import roi_pool

    assert gradcheck(lambda images: roi_pool(images, ROIS, BINS, SCALE), maps().requires_grad_(), fast_mode=True)


def expected_deform_roi_pool(images: Tensor, rois: Tensor, offset: Tensor | None, ratio: int, gamma: float) -> Tensor:
    output = images.new_zeros(len(rois), images.shape[1], *BINS)
    for k, (index, *box) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (edge * SCALE - 0.5 for edge in box)
        bin_height, bin_width = (y2 - y1) / BINS[0], (x2 - x1) / BINS[1]
        rows, columns = (ratio, ratio) if ratio else (max(math.ceil(bin_height), 0), max(math.ceil(bin_width), 0))
        for i in range(BINS[0]):
            for j in range(BINS[1]):
                shift_x, shift_y = (0.0, 0.0) if offset is None else offset[k, :, i, j].tolist()
                y = y1 + i * bin_height + gamma * (y2 - y1) * shift_y
                x = x1 + j * bin_width + gamma * (x2 - x1) * shift_x
                for c in range(images.shape[1]):
                    output[k, c, i, j] = average(images[int(index), c], y, x, bin_height, bin_width, rows, columns)
    return output


def shifts(seed: int = 1) -> Tensor:
    return torch.randn(len(ROIS), 2, *BINS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('with_offset', [True, False])
def test_deform_roi_pool(ratio: int, with_offset: bool) -> None:
    from mmcv.ops import deform_roi_pool

    offset = shifts() if with_offset else None
    pooled = deform_roi_pool(maps(), ROIS, offset, BINS, SCALE, ratio, 0.2)
    torch.testing.assert_close(pooled, expected_deform_roi_pool(maps(), ROIS, offset, ratio, 0.2))


@pytest.mark.parametrize('ratio', [0, 2])
def test_gradient_of_deform_roi_pool(ratio: int) -> None:
    from mmcv.ops import deform_roi_pool

    def pool(images: Tensor, offset: Tensor) -> Tensor:
        pooled: Tensor = deform_roi_pool(images, ROIS, offset, BINS, SCALE, ratio, 0.2)
        return pooled

    assert gradcheck(pool, (maps().requires_grad_(), shifts().requires_grad_()), fast_mode=True)


def test_deform_roi_pool_with_a_hostile_offset_or_no_region() -> None:
    from mmcv.ops import deform_roi_pool

    offset = shifts()
    offset[0, 0, 0, 0] = torch.nan
    offset[1, 1, 0, 0] = 1e30
    pooled = deform_roi_pool(maps(), ROIS, offset, BINS, SCALE, 2, 0.2)
    assert pooled[0, :, 0, 0].isnan().all()
    assert not pooled[1, :, 0, 0].any()
    assert pooled.isnan().sum() == 2
    assert deform_roi_pool(maps(), ROIS[:0], None, BINS, SCALE).shape == (0, 2, *BINS)
