"""Focal losses through mmcv.ops against the formulas of Lin et al. 2017 and their derivatives by autograd."""

from typing import Any

import pytest
import torch
from torch import Tensor

GAMMA, ALPHA = 1.7, 0.3
NUM_CLASSES = 5


def sample(number: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(number, NUM_CLASSES, generator=generator, dtype=torch.float64) * 3
    target = torch.randint(0, NUM_CLASSES, (number,), generator=generator)
    return logits, target, torch.rand(NUM_CLASSES, generator=generator, dtype=torch.float64)


def expected_sigmoid(logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    rows = []
    for n, label in enumerate(target.tolist()):
        for c in range(logits.shape[1]):
            p = 1 / (1 + torch.exp(-logits[n, c]))
            p_t, alpha_t = (p, ALPHA) if c == label else (1 - p, 1 - ALPHA)
            loss = -alpha_t * (1 - p_t) ** GAMMA * torch.log(p_t)
            rows.append(loss if weight is None else loss * weight[label])
    return torch.stack(rows).view_as(logits)


def expected_softmax(logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    rows = []
    for n, label in enumerate(target.tolist()):
        if label < 0:
            rows.append(logits[n, 0] * 0)
            continue
        p = torch.exp(logits[n, label]) / torch.exp(logits[n]).sum()
        loss = -ALPHA * (1 - p) ** GAMMA * torch.log(p)
        rows.append(loss if weight is None else loss * weight[label])
    return torch.stack(rows)


def operators(form: str) -> tuple[Any, Any]:
    import mmcv.ops

    if form == 'sigmoid':
        return mmcv.ops.sigmoid_focal_loss, expected_sigmoid
    return mmcv.ops.softmax_focal_loss, expected_softmax


@pytest.mark.parametrize('weighted', [True, False])
@pytest.mark.parametrize('form', ['sigmoid', 'softmax'])
def test_loss_and_gradient(form: str, weighted: bool) -> None:
    focal_loss, expected = operators(form)
    logits, target, weight = sample()
    given = weight if weighted else None
    ours, reference = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    wanted = expected(reference, target, given)
    torch.testing.assert_close(focal_loss(ours, target, GAMMA, ALPHA, given, 'none'), wanted)
    # mmcv's own Python side cannot differentiate the softmax form without a reduction.
    (gradient,) = torch.autograd.grad(focal_loss(ours, target, GAMMA, ALPHA, given, 'sum'), ours)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted.sum(), reference)[0])


@pytest.mark.parametrize('form', ['sigmoid', 'softmax'])
@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_reductions(form: str, reduction: str) -> None:
    focal_loss, expected = operators(form)
    logits, target, _ = sample()
    logits = logits.requires_grad_()
    loss = focal_loss(logits, target, GAMMA, ALPHA, None, reduction)
    total = expected(logits, target, None).sum()
    wanted = total / len(logits) if reduction == 'mean' else total
    torch.testing.assert_close(loss, wanted)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted, logits)[0])


def test_background_and_ignored_targets() -> None:
    sigmoid, expected = operators('sigmoid')
    logits, target, _ = sample()
    target[:3] = NUM_CLASSES
    torch.testing.assert_close(sigmoid(logits, target, GAMMA, ALPHA, None, 'none'), expected(logits, target, None))
    softmax, expected = operators('softmax')
    target[:3] = -1
    ours = logits.requires_grad_()
    torch.testing.assert_close(softmax(ours, target, GAMMA, ALPHA, None, 'none'), expected(logits, target, None))
    loss = softmax(ours, target, GAMMA, ALPHA, None, 'sum')
    assert not torch.autograd.grad(loss, ours)[0][:3].any()


def test_targets_out_of_range_are_errors_where_they_index() -> None:
    logits, target, weight = sample()
    target[2] = NUM_CLASSES
    with pytest.raises(IndexError):
        operators('sigmoid')[0](logits, target, GAMMA, ALPHA, weight, 'none')
    with pytest.raises((IndexError, RuntimeError)):
        operators('softmax')[0](logits, target, GAMMA, ALPHA, None, 'none')


@pytest.mark.parametrize('form', ['sigmoid', 'softmax'])
@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_extreme_logits_stay_finite(form: str, gamma: float, dtype: torch.dtype) -> None:
    focal_loss, _ = operators(form)
    logits = torch.tensor([[60.0, -60.0], [-60.0, 60.0], [0.0, 0.0]], dtype=dtype, requires_grad=True)
    loss = focal_loss(logits, torch.tensor([0, 0, 1]), gamma, 0.25, None, 'sum')
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.dtype == gradient.dtype == dtype
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_no_samples() -> None:
    for form in ('sigmoid', 'softmax'):
        logits = torch.zeros(0, NUM_CLASSES, requires_grad=True)
        loss = operators(form)[0](logits, torch.zeros(0, dtype=torch.long), GAMMA, ALPHA, None, 'sum')
        assert loss == 0
        assert torch.autograd.grad(loss, logits)[0].shape == logits.shape
