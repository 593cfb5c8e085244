"""Made the golden caches of format version 1, once: `python tests/cache/golden/make.py FOLDER`.

Not to be run over the folder `v1` beside it: what lies there must be read for as long as there are caches of version 1,
however the writer changes. A new version gets a folder of its own.

All values are sums of powers of two, so that decoding is exact on every machine. `expected.json` is computed here from
codes, steps and offsets with numpy, not read back from the cache. Letters: C channels, H W grid of a level.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from mtpd.cache.format.arrays import RoisRecord
from mtpd.cache.format.codecs import CodecName, EncodedMaps, expected_bytes
from mtpd.cache.format.manifest import Description, GeometryRecord, LevelRecord, ViewName
from mtpd.cache.format.plan import SourceImage, plan_cache
from mtpd.cache.writing.destination import FolderDestination
from mtpd.cache.writing.writer import CacheWriter
from mtpd.geometry import Geometry, Level
from mtpd.heads.rois import ImageRois

LEVELS = (Level('p3', 8, 2), Level('p4', 16, 4))
GEOMETRY = Geometry((32, 16), pad_divisor=16)
# Two padded shapes; the first one fills a shard and a half.
IMAGES = (SourceImage(7, (16, 32)), SourceImage(3, (30, 15)), SourceImage(5, (16, 30)), SourceImage(9, (8, 16)))
VIEWS: dict[CodecName, tuple[ViewName, ...]] = {'fp16': ('plain',), 'int8': ('plain', 'flip'), 'lean': ('plain',)}
ERROR = 2.0**-7
NUM_ROIS = {7: 3, 3: 0, 5: 2, 9: 1}
# Orthonormal, and every entry a power of two.
BASES: dict[str, np.ndarray] = {
    'p3': np.array([[0, -1], [1, 0]], dtype=np.float32),
    'p4': np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype=np.float32) / 2,
}


def codes(image_id: int, view: str, level: Level, grid: tuple[int, int]) -> np.ndarray:
    """int8 (C, H, W): all kinds of numbers, the extremes among them."""
    channel, row, column = np.indices((level.channels, *grid))
    number = 31 * image_id + 11 * len(view) + 7 * channel + 5 * row + 3 * column + level.stride
    values = (number * number) % 256 - 128
    values.flat[0], values.flat[-1] = -127, 127
    stored: np.ndarray = values.astype(np.int8)
    return stored


def steps_and_offsets(image_id: int, level: Level) -> np.ndarray:
    """float32 (2, C)."""
    channels = np.arange(level.channels)
    return np.stack([2.0 ** (-channels - 2), channels - image_id / 4]).astype(np.float32)


def encoded_and_expected(image_id: int, view: str, level: Level, codec: CodecName) -> tuple[EncodedMaps, np.ndarray]:
    """What is stored, and the float32 map (C, H, W) that it stands for."""
    size = next(image.size for image in IMAGES if image.image_id == image_id)
    stored = codes(image_id, view, level, level.grid(*GEOMETRY.padded(size)))
    scale = steps_and_offsets(image_id, level)
    expected: np.ndarray = stored.astype(np.float32) * scale[0][:, None, None] + scale[1][:, None, None]
    error = torch.full((1,), ERROR)
    if codec == 'fp16':
        return EncodedMaps(torch.from_numpy(expected).half()[None], error=error), expected
    if codec == 'lean':
        expected = (BASES[level.name] @ expected.reshape(level.channels, -1)).reshape(expected.shape)
    return EncodedMaps(torch.from_numpy(stored)[None], torch.from_numpy(scale)[None], error=error), expected


def proposals(image_id: int) -> ImageRois:
    """None, one, two or three RoIs; every value a sum of a few powers of two."""
    count = NUM_ROIS[image_id]
    first = torch.arange(4.0 * count).reshape(count, 4) / 4 + image_id
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.125, 0.375, 0.5]])[:count]
    return ImageRois(
        boxes=first,
        probabilities=probabilities,
        labels=probabilities[:, :-1].argmax(1),
        deltas=first / 8 - 1,
    )


def description(codec: CodecName, rois: RoisRecord | None = None) -> Description:
    """What the manifest says."""
    return Description(
        fingerprint={'teacher': {'weights': '0' * 64}, 'data': {'annotations': '1' * 64}},
        provenance={'teacher': 'golden', 'versions': {}},
        levels=tuple(LevelRecord(**vars(level)) for level in LEVELS),
        codec=codec,
        target_error=0.03125 if codec == 'lean' else None,
        views=VIEWS[codec],
        geometry=GeometryRecord(**vars(GEOMETRY)),
        rois=rois,
    )


def make(root: Path, codec: CodecName, rois: RoisRecord | None = None) -> Mapping[str, object]:
    """Writes one cache; returns its maps as lists by image, view and level."""
    plan = plan_cache(
        IMAGES,
        geometry=GEOMETRY,
        levels=LEVELS,
        bytes_per_element=expected_bytes(codec),
        shard_bytes=int(32 * expected_bytes(codec)),
    )
    weights = safetensors.torch.save({'neck.weight': torch.arange(3.0)})
    expected: dict[str, dict[str, dict[str, object]]] = {}
    with CacheWriter(
        FolderDestination(root), description=description(codec, rois), plan=plan, teacher_weights=weights
    ) as writer:
        if codec == 'lean':
            writer.bases(lambda: {name: torch.from_numpy(basis) for name, basis in BASES.items()})
        for key in writer.pending():
            group = writer.start_group(key)
            for view in VIEWS[codec]:
                for image in plan.images(key):
                    pairs = {level.name: encoded_and_expected(image.image_id, view, level, codec) for level in LEVELS}
                    group.append(view, {name: encoded for name, (encoded, _) in pairs.items()})
                    of_image = expected.setdefault(str(image.image_id), {})
                    of_image[view] = {name: values.tolist() for name, (_, values) in pairs.items()}
            if rois is not None:
                group.append_rois([proposals(image.image_id) for image in plan.images(key)])
            writer.commit(group)
        writer.finish()
    for path in root.glob('.lock*'):
        path.unlink()
    if codec != 'fp16':
        # One cache is enough to show that other programs can open them, and these files take half of the space.
        for path in root.rglob('zarr.json'):
            path.unlink()
    return expected


def main(folder: Path) -> None:
    """Writes a cache for each codec and what is to be read from it."""
    for codec in VIEWS:
        expected = make(folder / codec, codec)
        write_expected(folder / f'{codec}.expected.json', expected)
    # Came later than the others, and leaves them as they are.
    make(folder / 'rois', 'int8', RoisRecord(num_rois=3, num_classes=2))
    columns = {image.image_id: proposals(image.image_id)._asdict() for image in IMAGES}
    values = {str(key): {name: one.tolist() for name, one in column.items()} for key, column in columns.items()}
    write_expected(folder / 'rois.expected.json', values)


def write_expected(path: Path, content: Mapping[str, object]) -> None:
    """Writes what is to be read."""
    path.write_text(json.dumps(content, separators=(',', ':')) + '\n')


if __name__ == '__main__':
    main(Path(sys.argv[1]))
