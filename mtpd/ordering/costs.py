"""Adaptation costs between cached features. No teacher and no GPU is needed.

Letters: C channels, G groups of images, H W grid of a level, M models, R resamples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from mtpd.cache import CacheReader
from mtpd.cache.format.manifest import ViewName
from mtpd.errors import CacheMismatchError, InputError
from mtpd.geometry import Level
from mtpd.ordering.ridge import DEFAULT_RIDGE, GroupedMoments, cost_matrix

Name = TypeVar('Name', bound=str)
EXTRACT_AGAIN = 'extract both with the same settings'


@dataclass(frozen=True)
class Sampling:
    """What is looked at, and how closely.

    Attributes:
        num_cells: of each map at most this many cells, chosen at random; neighbours say nearly the same.
        num_groups: the images are dealt to this many groups, which the bootstrap draws from.
        num_resamples: bootstrap resamples; 0 for none.
        ridge: penalty on squared weights, see `mtpd.ordering.ridge`.
        seed: of the bootstrap.
    """

    num_cells: int = 2048
    num_groups: int = 16
    num_resamples: int = 100
    ridge: float = DEFAULT_RIDGE
    seed: int = 0


@dataclass(frozen=True)
class AdaptationCosts:
    """Costs between M models; [a, b] is that of adapting model a to model b, and the diagonal is zero.

    Attributes:
        costs: (M, M) float64, the mean over the levels.
        levels: level name -> (M, M).
        resampled: (R, M, M), the mean over the levels for each bootstrap resample of the images.
        num_cells: level name -> cells that the regressions saw.
        views: the views that were read.
    """

    costs: Tensor
    levels: Mapping[str, Tensor]
    resampled: Tensor
    num_cells: Mapping[str, int]
    views: tuple[ViewName, ...]

    @property
    def deviations(self) -> Tensor | None:
        """Bootstrap standard errors (M, M) of `costs`; None without resamples."""
        return self.resampled.std(0) if len(self.resampled) > 1 else None


def adaptation_costs(
    caches: Sequence[CacheReader],
    image_ids: Sequence[int],
    *,
    sampling: Sampling | None = None,
    advance: Callable[[], object] = lambda: None,
) -> AdaptationCosts:
    """Measures all costs between the models of some caches.

    The cost of A to B is what a linear map with bias (a 1x1 convolution) of A's features leaves unexplained of B's, as
    a share of the variance: mean over B's channels, then over the levels that all caches have. MTPD's paper trains
    such maps by gradient descent on the squared error; that channels are standardised here, so that those of large
    magnitude do not decide, is our choice (after PKD, Cao et al., NeurIPS 2022), and so is the closed form.

    Args:
        caches: of the same images at the same geometry.
        image_ids: the images to look at.
        sampling: how closely; None for the defaults.
        advance: called after each image of each level.

    Raises:
        CacheMismatchError: the caches differ in images, sizes or annotations.
        InputError: the caches share no level or no view.
        CacheDamagedError: a cache is not what was written.
    """
    _require_same_images(caches)
    sampling = sampling or Sampling()
    levels, views = shared_levels(caches), shared_views(caches)
    num_groups = min(sampling.num_groups, len(image_ids))
    # How often each group is drawn: once, and as in each resample.
    draws = torch.ones(1, num_groups, dtype=torch.float64)
    if num_groups > 1:
        generator = torch.Generator().manual_seed(sampling.seed)
        drawn = torch.randint(num_groups, (sampling.num_resamples, num_groups), generator=generator)
        draws = torch.cat([draws, torch.nn.functional.one_hot(drawn, num_groups).sum(1).double()])
    costs, num_cells = {}, {}
    # Level by level, so that only one level's moments are held at a time.
    for name in levels:
        num_channels = [_level(cache, name).channels for cache in caches]
        moments = GroupedMoments(num_groups, sum(num_channels))
        for number, image_id in enumerate(image_ids):
            for view in views:
                cells = image_cells(caches, image_id, view, name, num_cells=sampling.num_cells)
                moments.add(cells, group=number % num_groups)
            advance()
        costs[name] = torch.stack(
            [cost_matrix(*moments.correlation(draw), num_channels, ridge=sampling.ridge) for draw in draws]
        )
        num_cells[name] = int(moments.num_cells.sum())
    mean = torch.stack(list(costs.values())).mean(0)
    return AdaptationCosts(
        costs=mean[0],
        levels={name: one[0] for name, one in costs.items()},
        resampled=mean[1:],
        num_cells=num_cells,
        views=views,
    )


def shared_levels(caches: Sequence[CacheReader]) -> list[str]:
    """Names of the levels that all caches have; a level is named after its stride. There must be one."""
    names = [[level.name for level in cache.levels] for cache in caches]
    return _shared(caches, names, kind='level', advice='use caches with the same strides')


def shared_views(caches: Sequence[CacheReader]) -> tuple[ViewName, ...]:
    """The views that all caches have; there must be one."""
    views = _shared(caches, [cache.views for cache in caches], kind='view', advice='extract them with the same --views')
    return tuple(views)


def _shared(caches: Sequence[CacheReader], names: Sequence[Sequence[Name]], *, kind: str, advice: str) -> list[Name]:
    shared = [name for name in names[0] if all(name in some for some in names)]
    if not shared:
        listed = '; '.join(f'{cache.name}: {", ".join(some)}' for cache, some in zip(caches, names, strict=True))
        raise InputError(f'the caches have no common {kind} ({listed}); {advice}')
    return shared


def _level(cache: CacheReader, name: str) -> Level:
    return next(level for level in cache.levels if level.name == name)


def image_cells(caches: Sequence[CacheReader], image_id: int, view: ViewName, name: str, *, num_cells: int) -> Tensor:
    """Features of all models side by side (N, C1 + C2 + ...) at cells of one map that show the image."""
    rows, columns = _level(caches[0], name).grid(*caches[0].sizes(image_id).resized)
    maps = [cache.read(image_id, view, levels=[name])[name][:, :rows, :columns].flatten(1) for cache in caches]
    cells = torch.cat(maps).T
    if len(cells) > num_cells:
        # Not at equal distances: these would fall into few columns of the map.
        chosen = torch.randperm(len(cells), generator=torch.Generator().manual_seed(image_id))[:num_cells]
        cells = cells[chosen]
    return cells


def _require_same_images(caches: Sequence[CacheReader]) -> None:
    """Checks that a cell of a level means the same pixels of the same image in all caches.

    Padding may differ: it is at the right and the bottom and counts for nothing.
    """
    first = caches[0]
    for other in caches[1:]:
        missing = [image_id for image_id in first.image_ids if image_id not in other]
        extra = [image_id for image_id in other.image_ids if image_id not in first]
        if missing or extra:
            where, lacks = (first, other) if missing else (other, first)
            raise CacheMismatchError(
                f'{first.name} and {other.name} hold different images ({len(first)} and {len(other)}): image '
                f'{(missing or extra)[0]} is in {where.name} and not in {lacks.name}; {EXTRACT_AGAIN}'
            )
        here, there = _annotations(first), _annotations(other)
        if here != there:
            raise CacheMismatchError(
                f'{first.name} and {other.name} were extracted with different annotation files (sha256 '
                f'{str(here)[:12]} and {str(there)[:12]}); {EXTRACT_AGAIN}'
            )
        for image_id in first.image_ids:
            sizes, others = first.sizes(image_id), other.sizes(image_id)
            for kind in ('original', 'resized'):
                here, there = getattr(sizes, kind), getattr(others, kind)
                if here != there:
                    raise CacheMismatchError(
                        f'{first.name} and {other.name} hold image {image_id} at different sizes: {kind} '
                        f'{here[1]}x{here[0]} px and {there[1]}x{there[0]} px; {EXTRACT_AGAIN} (mtpd-extract --scale)'
                    )


def _annotations(cache: CacheReader) -> Any:
    data = cache.manifest.description.fingerprint.get('data')
    return data.get('annotations') if isinstance(data, dict) else None
