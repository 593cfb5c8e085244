"""A cache of maps that pack as real ones do."""

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mtpd.cache.format.codecs import CodecName, EncodedMaps, encode, expected_bytes
from mtpd.cache.format.manifest import describe
from mtpd.cache.format.plan import SourceImage, plan_cache
from mtpd.cache.writing.writer import CacheWriter
from mtpd.geometry import Geometry, Level, Size

CHANNELS = 256
IMAGE_SIZE: Size = (480, 640)
DISTINCT_MAPS = 4  # images share them, which costs a reader nothing less
IMAGES_PER_SHARD = 6
OUTLIER = 60  # how far one cell stands out: it takes most of the range of int8


def synthetic_cache(root: Path, codec: CodecName, *, num_images: int, scale: Size) -> None:
    """Maps like those of an FPN: correlated channels, smooth in space, heavy tails; lean packs to 1.2 bits."""
    geometry, generator = Geometry(scale), torch.Generator().manual_seed(0)
    levels = tuple(Level(f'p{number}', 2**number, CHANNELS) for number in range(3, 8))
    bases = {one.name: torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=generator))[0] for one in levels}
    energies = torch.arange(1.0, CHANNELS + 1) ** -0.7

    def smooth(channels: int, grid: Size, *, cells: int) -> Tensor:
        coarse = torch.randn(1, channels, *(side // cells + 1 for side in grid), generator=generator)
        return interpolate(coarse, size=grid, mode='bilinear')

    def maps(level: Level) -> EncodedMaps:
        grid, basis = level.grid(*geometry.padded(IMAGE_SIZE)), bases[level.name]
        values = smooth(CHANNELS, grid, cells=4) + 0.2 * torch.randn(1, CHANNELS, *grid, generator=generator)
        gain = (0.8 * smooth(1, grid, cells=6)).exp()
        gain[..., grid[0] // 2, grid[1] // 2] *= OUTLIER
        values = values * gain
        values = torch.einsum('ck,bkhw->bchw', basis * energies, values)
        return encode(values, codec, basis=basis if codec == 'lean' else None)

    encoded = [{level.name: maps(level) for level in levels} for _ in range(min(DISTINCT_MAPS, num_images))]
    images = [SourceImage(number, IMAGE_SIZE) for number in range(num_images)]
    largest = CHANNELS * levels[0].stride ** -2 * geometry.padded(IMAGE_SIZE)[0] * geometry.padded(IMAGE_SIZE)[1]
    shard_bytes = int(largest * expected_bytes(codec) * (IMAGES_PER_SHARD + 0.5))
    plan = plan_cache(
        images, geometry=geometry, levels=levels, bytes_per_element=expected_bytes(codec), shard_bytes=shard_bytes
    )
    description = describe(
        fingerprint={'maps': 'synthetic'},
        provenance={},
        levels=levels,
        codec=codec,
        target_error=0.03 if codec == 'lean' else None,
        views=('plain',),
        geometry=geometry,
    )
    weights = safetensors.torch.save({'none': torch.zeros(1)})
    with CacheWriter(root, description=description, plan=plan, teacher_weights=weights) as writer:
        if codec == 'lean':
            writer.bases(lambda: bases)
        for key in writer.pending():
            group = writer.start_group(key)
            for image in writer.plan.images(key):
                group.append('plain', encoded[image.image_id % len(encoded)])
            writer.commit(group)
        writer.finish()
