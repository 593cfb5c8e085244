"""The linear map from a student's maps to its teacher's."""

import pytest
import torch

from mtpd_train.report.feature_maps import fit_adapter


def maps(channels: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(channels, *grid, generator=generator) for grid in ((9, 7), (6, 8), (12, 5))]


def test_what_is_linear_is_found() -> None:
    weights = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    student = maps(5, 1)
    teacher = [torch.einsum('sc,shw->chw', weights, one) + 2 for one in student]
    adapter, explained = fit_adapter(list(zip(teacher, student, strict=True)))
    assert explained == pytest.approx(1, abs=1e-4)
    for one, other in zip(student, teacher, strict=True):
        torch.testing.assert_close(adapter(one), other, rtol=0, atol=0.02)


def test_what_is_unrelated_is_not() -> None:
    _, explained = fit_adapter(list(zip(maps(3, 2), maps(2, 1), strict=True)))
    assert explained < 0.1


def test_maps_that_are_constant() -> None:
    """Dead channels have no variance to divide by."""
    _, explained = fit_adapter([(torch.randn(2, 3, 3), torch.zeros(4, 3, 3))])
    assert explained == pytest.approx(0, abs=1e-6)
    adapter, _ = fit_adapter([(torch.ones(2, 3, 3), torch.randn(4, 3, 3))])
    torch.testing.assert_close(adapter(torch.randn(4, 3, 3)), torch.ones(2, 3, 3))
