"""The codes of a batch side by side: as they lie in the stream's memory where they can be, else copied together."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from mtpd.cache.format.codecs import EncodedMaps, batch_images
from mtpd.geometry import Level

Encoded = dict[str, EncodedMaps]
LEVELS = (Level('p3', 8, 3), Level('p4', 16, 3))
PADDED = (32, 48)


def in_stream(*sizes: tuple[int, int]) -> tuple[list[Encoded], Tensor]:
    """Images of these padded sizes one after another in one memory; and that memory."""
    shapes = [{level.name: (1, 3, *level.grid(*size)) for level in LEVELS} for size in sizes]
    buffer = torch.randint(-128, 128, (sum(torch.Size(one).numel() for image in shapes for one in image.values()),))
    buffer = buffer.to(torch.int8)
    images: list[Encoded] = []
    start = 0
    for number, image in enumerate(shapes):
        maps = {}
        for name, shape in image.items():
            end = start + torch.Size(shape).numel()
            maps[name] = EncodedMaps(buffer[start:end].view(shape), torch.full((1, 2, 3), float(number)))
            start = end
        images.append(maps)
    return images, buffer


def require_codes(encoded: Sequence[Encoded], *, shares: Tensor | None) -> None:
    """Every image's codes are at their place; and whether they are the very memory of `shares`."""
    for level in LEVELS:
        one, grid = batch_images([image[level.name] for image in encoded]), level.grid(*PADDED)
        assert one.codes.shape == (len(encoded), 3, *grid)
        assert one.scale is not None
        for number, image in enumerate(encoded):
            codes, scale = image[level.name].codes, image[level.name].scale
            assert scale is not None
            _, _, rows, columns = codes.shape
            assert torch.equal(one.codes[number, :, :rows, :columns], codes[0])
            assert torch.equal(one.scale[number], scale[0])
            if (rows, columns) != grid:
                assert one.sizes is not None
                assert one.sizes[number] == (rows, columns)
        memory = one.codes.untyped_storage().data_ptr()
        assert (memory == (shares.untyped_storage().data_ptr() if shares is not None else None)) == (shares is not None)


@pytest.mark.parametrize('number', [1, 2, 5])
def test_images_of_one_size_are_not_copied(number: int) -> None:
    images, buffer = in_stream(*[PADDED] * number)
    require_codes(images, shares=buffer)
    assert batch_images([image['p3'] for image in images]).sizes is None


def test_images_of_several_sizes_are() -> None:
    images, _ = in_stream(PADDED, (32, 32), PADDED)
    require_codes(images, shares=None)


def test_images_of_which_none_fills_the_batch() -> None:
    images, _ = in_stream((24, 48), (32, 40))
    require_codes(images, shares=None)


def test_images_that_do_not_lie_evenly() -> None:
    """Whatever the order, each image gets its own codes."""
    images, buffer = in_stream(*[PADDED] * 4)
    require_codes([images[0], images[2]], shares=buffer)
    require_codes([images[0], images[0]], shares=buffer)
    require_codes([images[0], images[1], images[3]], shares=None)
    require_codes([images[2], images[1], images[0]], shares=None)
    require_codes([images[0], in_stream(PADDED)[0][0]], shares=None)
