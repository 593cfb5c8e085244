"""Costs from streamed moments are those of least squares over all cells."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mtpd.ordering.ridge import GroupedMoments, cost_matrix

CHANNELS = (5, 3, 7)


def features(num_cells: int, num_channels: int, *, seed: int = 0) -> Tensor:
    return torch.randn(num_cells, num_channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def related(num_cells: int = 331) -> list[Tensor]:
    """Features of three models that share some of what they say; magnitudes and means differ by channel."""
    common = features(num_cells, 4, seed=1)
    models = []
    for seed, count in enumerate(CHANNELS, start=2):
        mixed = common @ features(4, count, seed=10 * seed) + 0.8 * features(num_cells, count, seed=seed)
        models.append(mixed * torch.logspace(-2, 3, count) + torch.linspace(-50, 800, count))
    return models


def moments_of(models: list[Tensor], num_groups: int = 1) -> GroupedMoments:
    moments = GroupedMoments(num_groups, sum(one.shape[1] for one in models))
    moments.add(torch.cat(models, dim=1), group=0)
    return moments


def costs_of(models: list[Tensor], *, ridge: float = 1e-4) -> Tensor:
    return cost_matrix(*moments_of(models).correlation(), [one.shape[1] for one in models], ridge=ridge)


def reference_cost(source: Tensor, target: Tensor, *, ridge: float) -> float:
    """By numpy's least squares on the rows themselves; the penalty is rows of its own."""
    x, y = source.numpy(), target.numpy()
    x, y = x[:, np.ptp(x, axis=0) > 0], y[:, np.ptp(y, axis=0) > 0]
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean(0)) / y.std(0)
    penalty = np.sqrt(ridge * len(x)) * np.eye(x.shape[1])
    weights = np.linalg.lstsq(np.vstack([x, penalty]), np.vstack([y, np.zeros((x.shape[1], y.shape[1]))]), rcond=None)
    return float(((y - x @ weights[0]) ** 2).mean())


def assert_as_reference(models: list[Tensor], *, ridge: float) -> None:
    costs = costs_of(models, ridge=ridge)
    for row, source in enumerate(models):
        for column, target in enumerate(models):
            expected = 0.0 if row == column else reference_cost(source, target, ridge=ridge)
            assert costs[row, column].item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize('ridge', [1e-4, 0.1])
@pytest.mark.parametrize('num_cells', [331, 17])
def test_least_squares_gives_the_same(num_cells: int, ridge: float) -> None:
    assert_as_reference(related(num_cells), ridge=ridge)


def test_more_channels_than_cells() -> None:
    assert_as_reference([features(6, 11, seed=1), features(6, 9, seed=2)], ridge=1e-2)


def test_constant_channels_do_not_count() -> None:
    models = related()
    models[0][:, 1] = 4321.1
    models[1][:, 2] = 0
    assert_as_reference(models, ridge=1e-4)


def test_a_model_of_constants_alone() -> None:
    costs = costs_of([features(50, 3), torch.full((50, 2), 7.7)])
    # From constants nothing is learned; to constants there is nothing to learn.
    assert costs.tolist() == [[0, 0], [1, 0]]


def test_a_linear_map_costs_nothing_and_noise_everything() -> None:
    source = features(5000, 6)
    mapped = source @ features(6, 4, seed=3) * 1000 + 17
    noise = features(5000, 4, seed=4)
    costs = costs_of([source, mapped, noise])
    assert costs[0, 1] < 1e-6
    assert costs[0, 2] == pytest.approx(1, abs=0.01)
    # Four channels that six were mixed to cannot give the six back.
    assert costs[1, 0] > 0.1


def test_streaming_gives_what_all_at_once_gives() -> None:
    models = related()
    rows = torch.cat(models, dim=1)
    moments = GroupedMoments(3, rows.shape[1])
    for number, part in enumerate(torch.split(rows, [100, 1, 130, 60, 40])):
        moments.add(part, group=number % 3)
    torch.testing.assert_close(cost_matrix(*moments.correlation(), CHANNELS), costs_of(models), rtol=1e-9, atol=1e-12)
    assert moments.num_cells.tolist() == [160, 41, 130]


def test_weights_count_groups_as_often_as_they_say() -> None:
    models = related()
    rows = torch.cat(models, dim=1)
    moments = GroupedMoments(3, rows.shape[1])
    parts = torch.split(rows, [100, 131, 100])
    for number, part in enumerate(parts):
        moments.add(part, group=number)
    weighted = cost_matrix(*moments.correlation(torch.tensor([2.0, 0.0, 1.0])), CHANNELS)
    repeated = torch.split(torch.cat([parts[0], parts[0], parts[2]]), list(CHANNELS), dim=1)
    torch.testing.assert_close(weighted, costs_of(list(repeated)), rtol=1e-9, atol=1e-12)


def test_a_channel_that_is_dead_in_all_images_drawn() -> None:
    models = related()
    # Alive in the first group alone, whose mean is the origin of the moments.
    models[0][:, :2] = 0
    models[0][:100, :2] = features(100, 2, seed=9).relu() * 0.3 + 0.1
    rows = torch.cat(models, dim=1)
    moments = GroupedMoments(2, rows.shape[1])
    parts = torch.split(rows, [100, 231])
    for number, part in enumerate(parts):
        moments.add(part, group=number)
    correlation, varies = moments.correlation(torch.tensor([0.0, 2.0]))
    assert varies.tolist() == [False] * 2 + [True] * 13
    expected = costs_of(list(torch.split(parts[1], list(CHANNELS), dim=1)))
    torch.testing.assert_close(cost_matrix(correlation, varies, CHANNELS), expected, rtol=1e-9, atol=1e-12)


def test_a_matrix_that_rounding_has_spoiled() -> None:
    matrix = torch.ones(4, 4, dtype=torch.float64)
    matrix[0, 1] = matrix[1, 0] = 1 + 1e-6
    costs = cost_matrix(matrix, torch.ones(4, dtype=torch.bool), [3, 1], ridge=1e-8)
    assert costs[0, 1] == pytest.approx(0, abs=1e-5)


def test_magnitudes_do_not_decide() -> None:
    models = related()
    scaled = [one * torch.logspace(4, -4, one.shape[1]) for one in models]
    torch.testing.assert_close(costs_of(scaled), costs_of(models), rtol=1e-6, atol=1e-9)


def test_large_means_do_not_cancel() -> None:
    models = related()
    shifted = [one + 1e5 * one.std(0) for one in models]
    torch.testing.assert_close(costs_of(shifted), costs_of(models), rtol=1e-6, atol=1e-9)


def test_gradient_descent_finds_the_same() -> None:
    source, target, _ = related()
    adapter = torch.nn.Conv2d(source.shape[1], target.shape[1], 1, dtype=torch.float64)
    x, y = ((one - one.mean(0)) / one.std(0, correction=0) for one in (source, target))
    optimizer = torch.optim.LBFGS(adapter.parameters(), max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-14)

    def loss() -> Tensor:
        mapped: Tensor = adapter(x.T[None, :, :, None])[0, :, :, 0].T
        return (mapped - y).square().mean()

    def step() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return value.item()

    optimizer.step(step)  # type: ignore[no-untyped-call]
    found = costs_of([source, target], ridge=1e-8)[0, 1]
    assert found.item() == pytest.approx(loss().item(), rel=1e-4)
