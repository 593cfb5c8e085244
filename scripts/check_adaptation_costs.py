"""Compares the closed-form adaptation costs of `mtpd-cache order` with trained adapters.

    python scripts/check_adaptation_costs.py cache/weak cache/strong cache/student

For every pair of caches and every level a 1x1 convolution with bias is trained by Adam on the cached maps, with a loss
on standardised channels, and its final loss is compared with the ridge regression's. All cells that show
the image are used by both and are held in memory: use small caches. Last line: `same ranking: yes` when both put all
costs to each target in the same order.
"""

from collections.abc import Sequence
from itertools import permutations, product
from pathlib import Path

import torch
from torch import Tensor, nn

import mtpd.cache
from measuring import described_parser
from mtpd.cache import CacheReader
from mtpd.cache.format.manifest import ViewName
from mtpd.ordering import Sampling, adaptation_costs
from mtpd.ordering.costs import image_cells, shared_levels, shared_views

BATCH_CELLS = 4096
EVERY = 2**30  # cell of a map


def standardised_cells(cache: CacheReader, image_ids: Sequence[int], views: Sequence[ViewName], name: str) -> Tensor:
    """Cells of a level (N, C) that show an image; channels have mean 0 and deviation 1, constant ones are left out."""
    chosen = product(image_ids, views)
    cells = torch.cat([image_cells([cache], image_id, view, name, num_cells=EVERY) for image_id, view in chosen])
    deviation = cells.std(0, correction=0)
    return ((cells - cells.mean(0)) / deviation)[:, deviation > 0]


def trained_cost(source: Tensor, target: Tensor, *, num_steps: int) -> float:
    """Mean squared error (N, C) -> (N, D) of a convolution trained with a cosine schedule."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    adapter = nn.Conv2d(source.shape[1], target.shape[1], 1)
    optimizer = torch.optim.Adam(adapter.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)

    def error(inputs: Tensor, wanted: Tensor) -> Tensor:
        return nn.functional.mse_loss(adapter(inputs.T[None, :, :, None])[0, :, :, 0].T, wanted)

    for _ in range(num_steps):
        batch = torch.randint(len(source), (BATCH_CELLS,), generator=generator)
        optimizer.zero_grad()
        error(source[batch], target[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return error(source, target).item()


def main() -> None:
    parser = described_parser(__doc__)
    parser.add_argument('caches', nargs='+', type=Path)
    parser.add_argument('--num-images', type=int, default=100)
    parser.add_argument('--steps', type=int, default=500)
    arguments = parser.parse_args()
    caches = [mtpd.cache.open(path) for path in arguments.caches]
    image_ids = caches[0].image_ids[: arguments.num_images]
    levels, views = shared_levels(caches), shared_views(caches)
    solved = adaptation_costs(caches, image_ids, sampling=Sampling(num_cells=EVERY, num_resamples=0)).costs
    trained, pairs = torch.zeros_like(solved), list(permutations(range(len(caches)), 2))
    for name in levels:
        cells = [standardised_cells(cache, image_ids, views, name) for cache in caches]
        for row, column in pairs:
            cost = trained_cost(cells[row], cells[column], num_steps=arguments.steps)
            trained[row, column] += cost / len(levels)
    print(f'{"from":<24}{"to":<24}{"ridge":>10}{"trained":>10}')
    for row, column in pairs:
        costs = f'{solved[row, column]:>10.4f}{trained[row, column]:>10.4f}'
        print(f'{Path(caches[row].name).name:<24}{Path(caches[column].name).name:<24}{costs}')
    same = torch.equal(solved.argsort(0), trained.argsort(0))
    print(f'greatest difference {(solved - trained).abs().max():.4f}')
    print(f'same ranking: {"yes" if same else "no"}')


if __name__ == '__main__':
    main()
