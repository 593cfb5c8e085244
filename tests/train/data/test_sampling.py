"""What every epoch's batches have in common, whatever the images, sizes and seeds."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpd.geometry import Size
from mtpd_train.data.sampling import WINDOW, Request, evaluation_batches, num_batches, share_of, training_batches

sizes_by_image = st.dictionaries(
    st.integers(0, 2**40), st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=60
)
batch_sizes = st.integers(1, 9)
# Images to a shard; 0: all images are shuffled together.
shard_sizes = st.integers(0, 4)
seeds = st.tuples(st.integers(0, 2**40), st.integers(1, 4), st.integers(0, 300))


def shards_of(sizes: dict[int, Size], images_per_shard: int) -> dict[int, tuple[bool, int]] | None:
    """As in a cache: images of one shape, in their order; None for no images to a shard."""
    if not images_per_shard:
        return None
    groups: dict[bool, list[int]] = {False: [], True: []}
    for image_id, size in sizes.items():
        groups[is_portrait(size)].append(image_id)
    return {
        one: (portrait, place // images_per_shard)
        for portrait, group in groups.items()
        for place, one in enumerate(group)
    }


def is_portrait(size: Size) -> bool:
    return size[0] > size[1]


@given(sizes_by_image, batch_sizes, st.floats(0, 1), seeds, shard_sizes)
def test_every_image_once_in_full_batches(
    sizes: dict[int, Size], batch_size: int, flip: float, seed: tuple[int, int, int], images_per_shard: int
) -> None:
    shards = shards_of(sizes, images_per_shard)
    batches = training_batches(sizes, batch_size=batch_size, flip=flip, seed=seed, shards=shards)
    assert Counter(request.image_id for batch in batches for request in batch) == Counter(sizes.keys())
    assert len(batches) == num_batches(len(sizes), batch_size) == -(-len(sizes) // batch_size)
    assert sum(len(batch) < batch_size for batch in batches) <= 1
    assert all(batches)


@given(sizes_by_image, batch_sizes, seeds)
def test_a_batch_mixes_sizes_only_where_one_ends(
    sizes: dict[int, Size], batch_size: int, seed: tuple[int, int, int]
) -> None:
    batches = training_batches(sizes, batch_size=batch_size, flip=0.5, seed=seed)
    of_batches = [{sizes[request.image_id] for request in batch} for batch in batches]
    assert sum(len(one) - 1 for one in of_batches) <= len(set(sizes.values())) - 1
    assert sum(len({is_portrait(size) for size in one}) == 2 for one in of_batches) <= 1
    by_ratio = sorted(set(sizes.values()), key=lambda size: (size[0] / size[1], size[0]))
    for one in of_batches:  # neighbours only
        places = sorted(map(by_ratio.index, one))
        assert places == list(range(places[0], places[-1] + 1))


def test_images_of_a_size_meet_each_other_and_the_smaller_batch_equally_often() -> None:
    sizes: dict[int, Size] = {one: ((3, 4), (4, 4), (4, 3))[one % 3] for one in range(54)}
    together, in_smaller, num_epochs = np.zeros((54, 54)), np.zeros(54), 1500
    for epoch in range(num_epochs):
        for batch in training_batches(sizes, batch_size=4, flip=0.5, seed=(0, 1, epoch)):
            images = [request.image_id for request in batch]
            together[np.ix_(images, images)] += 1
            in_smaller[images] += len(batch) < 4
    for size in set(sizes.values()):
        images = [one for one in sizes if sizes[one] == size]
        rates = together[np.ix_(images, images)][~np.eye(18, dtype=bool)] / num_epochs
        assert abs(rates - rates.mean()).max() < 5 * (rates.mean() / num_epochs) ** 0.5
    # Of 14 batches some cross the border of two sizes, so the sizes themselves are not quite equal.
    rate = 2 / 54
    assert abs(in_smaller / num_epochs - rate).max() < 5 * (rate / num_epochs) ** 0.5 + rate / 5


@given(sizes_by_image, batch_sizes, seeds)
def test_views(sizes: dict[int, Size], batch_size: int, seed: tuple[int, int, int]) -> None:
    for flip, view in ((0.0, 'plain'), (1.0, 'flip')):
        batches = training_batches(sizes, batch_size=batch_size, flip=flip, seed=seed)
        assert {request.view for batch in batches for request in batch} == {view}


@pytest.mark.parametrize('images_per_shard', [0, 20])
def test_the_rate_of_mirrored_images(images_per_shard: int) -> None:
    sizes = dict.fromkeys(range(4000), (3, 4))
    shards = shards_of(sizes, images_per_shard)
    batches = training_batches(sizes, batch_size=16, flip=0.3, seed=(0, 1, 0), shards=shards)
    mirrored = sum(request.view == 'flip' for batch in batches for request in batch)
    assert abs(mirrored / 4000 - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5


@given(sizes_by_image, batch_sizes, seeds, shard_sizes)
def test_the_seed_decides(
    sizes: dict[int, Size], batch_size: int, seed: tuple[int, int, int], images_per_shard: int
) -> None:
    reordered, shards = dict(reversed(sizes.items())), shards_of(sizes, images_per_shard)
    first, second = (
        training_batches(one, batch_size=batch_size, flip=0.5, seed=seed, shards=shards) for one in (sizes, reordered)
    )
    assert first == second


def test_seeds_stages_and_epochs_differ() -> None:
    sizes = dict.fromkeys(range(40), (3, 4))
    orders = {
        tuple(
            request
            for batch in training_batches(sizes, batch_size=4, flip=0.5, seed=(seed, stage, epoch))
            for request in batch
        )
        for seed in (0, 1)
        for stage in (1, 2)
        for epoch in range(5)
    }
    assert len(orders) == 20


NUM_SHARDS, PER_SHARD = 32, 6


def order(epoch: int, *, by_shard: bool = True) -> list[int]:
    """The images of an epoch in the order of their use; those of shard k are 6k to 6k + 5, the last shards portrait."""
    sizes = {one: (3, 4) if one < 150 else (4, 3) for one in range(NUM_SHARDS * PER_SHARD)}
    shards = {one: one // PER_SHARD for one in sizes} if by_shard else None
    batches = training_batches(sizes, batch_size=4, flip=0.5, seed=(7, 1, epoch), shards=shards)
    return [request.image_id for batch in batches for request in batch]


def test_few_shards_are_read_at_a_time() -> None:
    """Those of two windows, where one ends, and of the images that waited for others of their orientation."""
    for epoch in range(20):
        images = order(epoch)
        for start in range(0, len(images) - 24, 24):
            shards = {one // PER_SHARD for one in images[start : start + 24]}
            assert len(shards) <= 2 * WINDOW
        first_uses = {one // PER_SHARD: place for place, one in reversed(list(enumerate(images)))}
        last_uses = {one // PER_SHARD: place for place, one in enumerate(images)}
        spans = [last_uses[one] - first_uses[one] for one in first_uses]
        # The images of four batches at most wait for the next window.
        assert np.median(spans) <= WINDOW * PER_SHARD + 16
    assert len({one // PER_SHARD for one in order(0, by_shard=False)[:48]}) > WINDOW


def test_windows_change_between_epochs_without_preference() -> None:
    """Any two shards share a window as often as any others, and no image has a favourite place in an epoch."""
    num_epochs, together = 600, np.zeros((NUM_SHARDS, NUM_SHARDS))
    places = np.zeros((num_epochs, NUM_SHARDS * PER_SHARD))
    for epoch in range(num_epochs):
        images = order(epoch)
        places[epoch, images] = np.arange(len(images))
    # The batches of portrait images are the last of a window; the shards of landscape ones tell the windows.
    landscape = range(25)
    for epoch in range(num_epochs):
        starts = np.array([places[epoch, PER_SHARD * one : PER_SHARD * (one + 1)].mean() for one in landscape])
        near = np.abs(starts[:, None] - starts) < PER_SHARD * WINDOW / 2
        together[:25, :25] += near
    rates = together[:25, :25][~np.eye(25, dtype=bool)] / num_epochs
    mean = rates.mean()
    assert abs(rates - mean).max() < 5 * (mean * (1 - mean) / num_epochs) ** 0.5
    deviation = np.sqrt(((NUM_SHARDS * PER_SHARD) ** 2 - 1) / 12 / num_epochs)
    # Portrait images, of which there are fewer, wait longer; so do they without shards.
    assert abs(places[:, :150].mean(0) - places[:, :150].mean()).max() < 5 * deviation
    assert abs(places[:, 150:].mean(0) - places[:, 150:].mean()).max() < 5 * deviation


def test_images_of_a_shard_meet_in_many_ways() -> None:
    """Shuffled within a window: neighbours in the cache follow one another no more often than others of it."""
    followed = sum(abs(two - one) == 1 for epoch in range(50) for one, two in pairwise(order(epoch)))
    pairs = 50 * NUM_SHARDS * PER_SHARD
    # Of 47 others in a window at most two are neighbours.
    assert followed / pairs < 3 / (WINDOW * PER_SHARD - 1)


@given(st.integers(1, 40), st.integers(1, 9))
def test_processes_share_a_batch(num_images: int, num_processes: int) -> None:
    batch = [Request(image_id, 'plain') for image_id in range(num_images)]
    shares = [share_of(batch, rank=rank, size=num_processes) for rank in range(num_processes)]
    weighty = [share for share in shares if share.weight]
    assert sorted(request for share in weighty for request in share.requests) == batch
    assert all(share.weight == len(share.requests) / num_images for share in weighty)
    assert max(len(share.requests) for share in shares) - min(len(share.requests) for share in weighty) <= 1
    # Process 0, whose batch statistics count, is never idle; who is has something to compute with.
    assert shares[0].weight
    assert all(len(share.requests) == 1 and share.requests[0] in batch for share in shares if not share.weight)


@given(sizes_by_image, batch_sizes)
def test_evaluation_batches_share_one_size(sizes: dict[int, Size], batch_size: int) -> None:
    batches = evaluation_batches(sizes, batch_size=batch_size)
    assert Counter(request.image_id for batch in batches for request in batch) == Counter(sizes.keys())
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert len({sizes[request.image_id] for request in batch}) == 1
        assert all(request == Request(request.image_id, 'plain') for request in batch)
