"""What was written comes back: every image, level and view, in any order, for zarr-python too."""

import random
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
import zarr

import mtpd.cache
from mtpd.cache.format.codecs import CodecName, encode
from mtpd.cache.format.manifest import ViewName
from mtpd.errors import CacheIncompleteError, CacheMismatchError, InputError


@pytest.mark.parametrize('codec', ['int8', 'fp16', 'lean'])
@pytest.mark.parametrize('views', [('plain',), ('plain', 'flip')])
def test_reads_equal_the_encoded_maps_in_shuffled_order(
    tmp_path: Path, make_recipe: Callable[..., Any], codec: CodecName, views: tuple[ViewName, ...]
) -> None:
    recipe = make_recipe(codec=codec, views=views)
    recipe.write(tmp_path / 'cache')
    cache = mtpd.cache.open(tmp_path / 'cache')
    assert sorted(cache.image_ids) == sorted(image.image_id for image in recipe.images)
    order = [(image, view) for image in recipe.images for view in views]
    random.Random(0).shuffle(order)
    for image, view in order:
        found = cache.read(image.image_id, view)
        for name, maps in recipe.maps(image, view).items():
            assert found[name].dtype == torch.float32
            encoded = encode(maps[None], codec, basis=cache.bases.get(name))
            # One image or several at once: the sums of a rotation may come in another order.
            torch.testing.assert_close(found[name], encoded.values()[0], rtol=0, atol=1e-6 if codec == 'lean' else 0)
            assert encoded.error is not None
            assert cache.errors(image.image_id, view)[name] == pytest.approx(encoded.error.item(), rel=1e-5)


def test_levels_can_be_chosen(cache_root: Path) -> None:
    cache = mtpd.cache.open(cache_root)
    assert list(cache.read(100, levels=['p4'])) == ['p4']
    with pytest.raises(CacheMismatchError, match='p3, p4, not p9'):
        cache.read(100, levels=['p9'])


def test_sizes_and_teacher_weights(cache_root: Path) -> None:
    cache = mtpd.cache.open(cache_root)
    assert cache.sizes(99) == ((64, 96), (64, 96), (64, 96))
    assert cache.sizes(100) == ((96, 64), (96, 64), (96, 64))
    assert torch.equal(cache.teacher_weights()['neck.weight'], torch.arange(3.0))


def test_unknown_image_and_view(tmp_path: Path, make_recipe: Callable[..., Any]) -> None:
    make_recipe(views=('plain',)).write(tmp_path / 'cache')
    cache = mtpd.cache.open(tmp_path / 'cache')
    with pytest.raises(CacheMismatchError, match='image 7 is not among its 11 images'):
        cache.read(7)
    with pytest.raises(CacheMismatchError, match='views plain, not flip'):
        cache.read(100, 'flip')


def test_zarr_python_opens_the_cache(cache_root: Path) -> None:
    group: Any = zarr.open_group(cache_root, mode='r')
    cache = mtpd.cache.open(cache_root)
    for bucket in ('64x96', '96x64'):
        for view in cache.views:
            image_ids = group[f'{bucket}/{view}/image_id'][:]
            for name in ('p3', 'p4'):
                codes, scales = group[f'{bucket}/{view}/{name}'][:], group[f'{bucket}/{view}/{name}.scale'][:]
                maps = codes * scales[:, 0, :, None, None] + scales[:, 1, :, None, None]
                for row, image_id in enumerate(image_ids):
                    np.testing.assert_allclose(cache.read(int(image_id), view)[name], maps[row], rtol=1e-5, atol=1e-6)
    assert sorted(group['index/image_id'][:]) == sorted(cache.image_ids)


def test_zarr_python_reads_a_lean_cache_with_its_basis(tmp_path: Path, make_recipe: Callable[..., Any]) -> None:
    make_recipe(codec='lean').write(tmp_path / 'cache')
    group: Any = zarr.open_group(tmp_path / 'cache', mode='r')
    cache = mtpd.cache.open(tmp_path / 'cache')
    bases = safetensors.numpy.load_file(tmp_path / 'cache' / 'basis.safetensors')
    codes, scales = group['64x96/flip/p4'][:], group['64x96/flip/p4.scale'][:].astype('float32')
    rotated = codes * scales[:, 0, :, None, None] + scales[:, 1, :, None, None]
    values = np.einsum('ck,nkhw->nchw', bases['p4'], rotated)
    for row, image_id in enumerate(group['64x96/flip/image_id'][:]):
        np.testing.assert_allclose(cache.read(int(image_id), 'flip')['p4'], values[row], rtol=1e-4, atol=1e-5)
        assert cache.errors(int(image_id), 'flip')['p4'] == group['64x96/flip/error'][row, 1]


def test_a_folder_without_a_cache(tmp_path: Path) -> None:
    with pytest.raises(CacheIncompleteError, match='no cache here'):
        mtpd.cache.open(tmp_path / 'nowhere')


def test_an_unfinished_cache_does_not_open(tmp_path: Path, make_recipe: Callable[..., Any]) -> None:
    make_recipe().write(tmp_path / 'cache', num_groups=1)
    with pytest.raises(CacheIncompleteError, match='has not finished'):
        mtpd.cache.open(tmp_path / 'cache')


def test_a_map_of_unexpected_size_is_refused(tmp_path: Path, make_recipe: Callable[..., Any]) -> None:
    recipe = make_recipe()
    with recipe.writer(tmp_path / 'cache') as writer:
        group = writer.start_group(writer.pending()[0])
        maps = {name: encode(torch.randn(1, channels, 5, 5), 'int8') for name, channels in (('p3', 4), ('p4', 6))}
        with pytest.raises(ValueError, match=r'level p3 .* expected \(4, 8, 12\)'):
            group.append('plain', maps)


@pytest.mark.parametrize('codec', ['int8', 'fp16', 'lean'])
def test_codes_are_read_into_a_buffer(tmp_path: Path, make_recipe: Callable[..., Any], codec: CodecName) -> None:
    make_recipe(codec=codec).write(tmp_path / 'cache')
    cache = mtpd.cache.open(tmp_path / 'cache')
    longest = max(map(cache.num_codes, cache.image_ids))
    buffer = torch.full((longest + 3,), 77).to(cache.code_dtype)
    for image_id in cache.image_ids:
        for view, levels in product(cache.views, (None, ['p4'])):
            wanted = cache.read_encoded(image_id, view, levels=levels)
            found = cache.read_encoded(image_id, view, levels=levels, out=buffer)
            num_codes = cache.num_codes(image_id, levels=levels)
            assert num_codes == sum(one.codes.numel() for one in found.values())
            for name, one in wanted.items():
                torch.testing.assert_close(found[name].codes, one.codes, rtol=0, atol=0)
                assert found[name].codes.untyped_storage().data_ptr() == buffer.data_ptr()
            joined = torch.cat([one.codes.flatten() for one in found.values()])
            torch.testing.assert_close(buffer[:num_codes], joined, rtol=0, atol=0)
    assert (buffer[longest:] == 77).all()


def test_a_buffer_that_does_not_fit_is_refused(cache_root: Path) -> None:
    cache = mtpd.cache.open(cache_root)
    size = cache.num_codes(99)
    for out in (
        torch.zeros(size - 1, dtype=torch.int8),
        torch.zeros(size),
        torch.zeros(2 * size, dtype=torch.int8)[::2],
    ):
        with pytest.raises(InputError, match=rf'contiguous buffer of {size} torch\.int8'):
            cache.read_encoded(99, out=out)


def test_shards_of_images(cache_root: Path) -> None:
    """Two rows a shard in either bucket."""
    cache = mtpd.cache.open(cache_root)
    landscape = [99, 98, 96, 95, 93, 92, 90]
    assert [cache.shard(one) for one in landscape] == [('64x96', place // 2) for place in range(7)]
    assert [cache.shard(one) for one in (100, 97, 94, 91)] == [('96x64', place // 2) for place in range(4)]
