"""What every epoch's batches have in common, whatever the images, sizes and seeds."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mtpd.geometry import Size
from mtpd_train.sampling import Request, evaluation_batches, training_batches

sizes_by_image = st.dictionaries(
    st.integers(0, 2**40), st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=60
)
batch_sizes = st.integers(1, 9)
seeds = st.tuples(st.integers(0, 2**40), st.integers(1, 4), st.integers(0, 300))


def is_portrait(size: Size) -> bool:
    return size[0] > size[1]


@given(sizes_by_image, batch_sizes, st.floats(0, 1), seeds)
def test_every_image_once_in_full_batches(
    sizes: dict[int, Size], batch_size: int, flip: float, seed: tuple[int, int, int]
) -> None:
    batches = training_batches(sizes, batch_size=batch_size, flip=flip, seed=seed)
    assert Counter(request.image_id for batch in batches for request in batch) == Counter(sizes.keys())
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert 1 <= len(batches[-1]) <= batch_size
    assert len(batches) == -(-len(sizes) // batch_size)


@given(sizes_by_image, batch_sizes, seeds)
def test_only_the_left_over_images_mix_portrait_and_landscape(
    sizes: dict[int, Size], batch_size: int, seed: tuple[int, int, int]
) -> None:
    batches = training_batches(sizes, batch_size=batch_size, flip=0.5, seed=seed)
    portraits = sum(map(is_portrait, sizes.values()))
    pure = portraits // batch_size + (len(sizes) - portraits) // batch_size
    for batch in batches[:pure]:
        assert len({is_portrait(sizes[request.image_id]) for request in batch}) == 1


@given(sizes_by_image, batch_sizes, seeds)
def test_views(sizes: dict[int, Size], batch_size: int, seed: tuple[int, int, int]) -> None:
    for flip, view in ((0.0, 'plain'), (1.0, 'flip')):
        batches = training_batches(sizes, batch_size=batch_size, flip=flip, seed=seed)
        assert {request.view for batch in batches for request in batch} == {view}


def test_the_rate_of_mirrored_images() -> None:
    sizes = dict.fromkeys(range(4000), (3, 4))
    batches = training_batches(sizes, batch_size=16, flip=0.3, seed=(0, 1, 0))
    mirrored = sum(request.view == 'flip' for batch in batches for request in batch)
    assert abs(mirrored / 4000 - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5


@given(sizes_by_image, batch_sizes, seeds)
def test_the_seed_decides(sizes: dict[int, Size], batch_size: int, seed: tuple[int, int, int]) -> None:
    reordered = dict(reversed(sizes.items()))
    first, second = (training_batches(one, batch_size=batch_size, flip=0.5, seed=seed) for one in (sizes, reordered))
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


@given(sizes_by_image, batch_sizes)
def test_evaluation_batches_share_one_size(sizes: dict[int, Size], batch_size: int) -> None:
    batches = evaluation_batches(sizes, batch_size=batch_size)
    assert Counter(request.image_id for batch in batches for request in batch) == Counter(sizes.keys())
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert len({sizes[request.image_id] for request in batch}) == 1
        assert all(request == Request(request.image_id, 'plain') for request in batch)
