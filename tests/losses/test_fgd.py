"""FGD against the paper's sums, computed with loops in float64."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtpd.cache.format.codecs import EncodedMaps
from mtpd.geometry import Level
from mtpd.losses.distiller import Distiller
from mtpd.losses.fgd import FgdOptions, FgdWeights, FocalGlobalDistillation, GcBlock
from mtpd.losses.maps import valid_cells
from mtpd.losses.objects import Objects

Array = NDArray[np.float64]
STRIDE = 8
ONES = FgdWeights(1.0, 1.0, 1.0, 1.0, 1.0)
PARTS = ('foreground', 'background', 'spatial_attention', 'channel_attention', 'relation')


def softmax(values: Array) -> Array:
    shifted = np.exp(values - values.max())
    return np.asarray(shifted / shifted.sum())


def dense(layer: nn.Module, values: Array) -> Array:
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    return np.asarray(
        layer.weight.detach().double().numpy()[:, :, 0, 0] @ values + layer.bias.detach().double().numpy()[:, None]
    )


def context(block: GcBlock, values: Array) -> Array:
    """What the block adds to every cell of (C, cells)."""
    gathered = values @ softmax(dense(block.attend, values)[0])[:, None]
    hidden = dense(block.transform[0], gathered)
    norm = block.transform[1]
    assert isinstance(norm, nn.LayerNorm)
    weight, bias = (one.detach().double().numpy().reshape(-1, 1) for one in (norm.weight, norm.bias))
    hidden = (hidden - hidden.mean()) / np.sqrt(hidden.var() + norm.eps) * weight + bias
    return dense(block.transform[3], np.maximum(hidden, 0))


def reference(
    loss: FocalGlobalDistillation, student: Tensor, teacher: Tensor, mask: Tensor, boxes: list[Tensor], tau: float
) -> dict[str, float]:
    """The published sums of each part, by image, over B; only valid cells exist. Means are made of them below."""
    sums = dict.fromkeys(PARTS, 0.0)
    for index in range(len(student)):
        cells = mask[index, 0].nonzero().tolist()
        pick = mask[index, 0].numpy()
        s, t = (one[index].double().numpy()[:, pick] for one in (student, teacher))
        if loss.align is not None:
            s = dense(loss.align, s)
        channels = len(t)
        spatial = [len(cells) * softmax(np.abs(one).mean(0) / tau) for one in (s, t)]
        channel = [channels * softmax(np.abs(one).mean(1) / tau) for one in (s, t)]
        covers: list[list[float]] = [[] for _ in cells]
        for x1, y1, x2, y2 in boxes[index].double().tolist():
            left, top = math.floor(x1 / STRIDE), math.floor(y1 / STRIDE)
            right, bottom = math.ceil(x2 / STRIDE), math.ceil(y2 / STRIDE)
            for number, (row, column) in enumerate(cells):
                if x2 > x1 and y2 > y1 and top <= row <= bottom and left <= column <= right:
                    covers[number].append(1 / ((bottom - top + 1) * (right - left + 1)))
        num_background = sum(not one for one in covers)
        for number, one in enumerate(covers):
            for k in range(channels):
                error = spatial[1][number] * channel[1][k] * (s[k, number] - t[k, number]) ** 2
                if one:
                    sums['foreground'] += max(one) * error
                else:
                    sums['background'] += error / num_background
        sums['spatial_attention'] += float(np.abs(spatial[0] - spatial[1]).sum())
        sums['channel_attention'] += float(np.abs(channel[0] - channel[1]).sum())
        related = s + context(loss.student_relation, s) - t - context(loss.teacher_relation, t)
        sums['relation'] += float((related**2).sum())
    return {name: value / len(student) for name, value in sums.items()}


def random_case(channels: tuple[int, int], grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(3)
    student = torch.randn(2, channels[0], *grid, generator=generator)
    teacher = torch.randn(2, channels[1], *grid, generator=generator)
    # Channels and cells of unequal magnitude, or the attentions would be flat.
    teacher = teacher * torch.linspace(0.3, 2, channels[1])[:, None, None] + torch.linspace(-1, 2, grid[1])
    mask = valid_cells([(grid[0] * 8, grid[1] * 8), (grid[0] * 8 - 11, grid[1] * 4)], stride=8, grid=grid)
    height, width = 8.0 * grid[0], 8.0 * grid[1]
    boxes = [
        torch.tensor([[1.0, 2, 17, 14], [9, 0, 0.6 * width, 0.7 * height], [width - 9, height - 4, width + 3, height]]),
        torch.tensor([[4.0, 4, 4, 9], [0, 0, 0.3 * width, 7]]),
    ]
    return student, teacher, mask, boxes


def build(channels: tuple[int, int], weights: FgdWeights = ONES, *, tau: float = 0.5) -> FocalGlobalDistillation:
    """With relations that have learnt something: they start as nothing."""
    torch.manual_seed(1)
    loss = FocalGlobalDistillation(*channels, stride=STRIDE, weights=weights, temperature=tau)
    for block in (loss.student_relation, loss.teacher_relation):
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=0.5)
    return loss


def only(part: str) -> FgdWeights:
    return FgdWeights(**{name: float(name == part) for name in PARTS})


@pytest.mark.parametrize('tau', [0.5, 2.0])
@pytest.mark.parametrize(('channels', 'grid'), [((4, 4), (5, 7)), ((3, 6), (4, 9)), ((1, 2), (4, 4))])
@pytest.mark.parametrize('part', PARTS)
def test_each_part_against_the_formula(part: str, channels: tuple[int, int], grid: tuple[int, int], tau: float) -> None:
    loss = build(channels, only(part), tau=tau)
    student, teacher, mask, boxes = random_case(channels, grid)
    num_cells, num_images = int(mask.sum()), len(mask)
    if part == 'spatial_attention':
        # A mean over the cells of each image: one by one.
        rows = range(num_images)
        wants = [
            reference(loss, student[i : i + 1], teacher[i : i + 1], mask[i : i + 1], boxes[i : i + 1], tau)[part]
            / int(mask[i].sum())
            for i in rows
        ]
        want = sum(wants) / num_images
    else:
        elements = {'relation': channels[1] * num_cells / num_images}.get(part, channels[1])
        want = reference(loss, student, teacher, mask, boxes, tau)[part] / elements
    assert want > 0
    got = loss(student, EncodedMaps(teacher), mask, objects=Objects(boxes, {}))
    assert got.item() == pytest.approx(want, rel=2e-5)


def test_default_weights_give_the_published_sums_at_the_published_input() -> None:
    """At 800x1088 px without padding, with the paper's alpha, beta, gamma and lambda of RetinaNet."""
    level = Level('p7', 128, 4)
    torch.manual_seed(2)
    distiller = Distiller([FgdOptions()], student=[level], teacher=[level])
    module = distiller.losses['fgd/p7']
    assert isinstance(module, FocalGlobalDistillation)
    student, teacher, _, boxes = random_case((4, 4), (7, 9))
    mask = torch.ones(2, 1, 7, 9, dtype=torch.bool)
    sums = reference(module, student, teacher, mask, boxes, 0.5)
    weights = (1e-3, 5e-4, 1e-3, 1e-3, 5e-6)
    want = sum(weight * sums[part] for part, weight in zip(PARTS, weights, strict=True))
    got = distiller({'p7': student}, {'p7': teacher}, {'p7': mask}, boxes=[16 * one for one in boxes])
    assert got['distill/fgd/p7'].item() == pytest.approx(want, rel=2e-5)
    assert sum(parameter.abs().sum() for parameter in module.student_relation.transform[3].parameters()) == 0


def test_as_means() -> None:
    channels, grid = (4, 4), (5, 7)
    student, teacher, mask, boxes = random_case(channels, grid)
    level = Level('p3', STRIDE, 4)
    term = FgdOptions(weight=3.0, foreground=2.0, background=0.0, attention=0.0, relation=0.0, normalize='mean')
    distiller = Distiller([term], student=[level], teacher=[level])
    want = build(channels, only('foreground'))(student, EncodedMaps(teacher), mask, objects=Objects(boxes, {}))
    got = distiller({'p3': student}, {'p3': teacher}, {'p3': mask}, boxes=boxes)
    assert got['distill/fgd/p3'].item() == pytest.approx(6 * want.item(), rel=1e-5)


def test_an_image_without_objects_is_all_background() -> None:
    student, teacher, mask, _ = random_case((4, 4), (5, 7))
    nothing = Objects([torch.zeros(0, 4)] * 2, {})
    assert build((4, 4), only('foreground'))(student, EncodedMaps(teacher), mask, objects=nothing).item() == 0
    assert build((4, 4), only('background'))(student, EncodedMaps(teacher), mask, objects=nothing).item() > 0
    everything = Objects([torch.tensor([[0.0, 0, 60, 50]])] * 2, {})
    assert build((4, 4), only('background'))(student, EncodedMaps(teacher), mask, objects=everything).item() == 0


def test_an_image_without_valid_cells_is_not_there() -> None:
    student, teacher, mask, boxes = random_case((4, 4), (5, 7))
    loss = build((4, 4))
    want = loss(student[:1], EncodedMaps(teacher[:1]), mask[:1], objects=Objects(boxes[:1], {}))
    mask = torch.cat([mask[:1], torch.zeros_like(mask[1:])])
    assert loss(student, EncodedMaps(teacher), mask, objects=Objects(boxes, {})).item() == pytest.approx(
        want.item(), rel=1e-6
    )


def test_resolution_changes_no_mean() -> None:
    """Each cell four times: background, attention and relation stay."""
    student, teacher, mask, _ = random_case((4, 4), (5, 7))
    nothing = Objects([torch.zeros(0, 4)] * 2, {})
    loss = build((4, 4))
    want = loss(student, EncodedMaps(teacher), mask, objects=nothing)
    student, teacher, mask = (one.repeat_interleave(2, 2).repeat_interleave(2, 3) for one in (student, teacher, mask))
    assert loss(student, EncodedMaps(teacher), mask, objects=nothing).item() == pytest.approx(want.item(), rel=1e-5)


def test_all_layers_and_the_student_learn() -> None:
    student, teacher, mask, boxes = random_case((3, 8), (5, 7))
    loss = build((3, 8))
    student.requires_grad_()
    loss(student, EncodedMaps(teacher), mask, objects=Objects(boxes, {})).backward()
    assert all(
        parameter.grad is not None and parameter.grad.any() for parameter in loss.parameters() if parameter.ndim > 1
    )
    assert student.grad is not None
    assert student.grad.any()


def test_gradcheck() -> None:
    loss = build((2, 3)).double()
    student, teacher, mask, boxes = random_case((2, 3), (3, 4))
    objects = Objects(boxes, {})
    # gradcheck nudges the parameters in place, so they are inputs without being arguments.
    assert torch.autograd.gradcheck(
        lambda values, *_: loss(values, EncodedMaps(teacher.double()), mask, objects=objects),
        [student.double().requires_grad_(), *loss.parameters()],
        fast_mode=True,
    )
