"""Contents and disk use of a cache, from its records alone."""

from collections import Counter
from dataclasses import dataclass

from mtpd.cache.checking.state import CacheState
from mtpd.cache.format.arrays import file_place
from mtpd.cache.format.basis import BASIS_FILE
from mtpd.cache.format.manifest import TEACHER_FILE, BucketRecord
from mtpd.cache.format.plan import ShardKey
from mtpd.geometry import Level


@dataclass(frozen=True)
class LevelStatistics:
    """What is stored of a level, in all views.

    Attributes:
        level: name, stride and channels.
        num_elements: feature values.
        num_bytes: of the codes and of what goes with them.
    """

    level: Level
    num_elements: int
    num_bytes: int

    @property
    def bits_per_element(self) -> float | None:
        """None while nothing is stored."""
        return 8 * self.num_bytes / self.num_elements if self.num_elements else None


@dataclass(frozen=True)
class ShapeStatistics:
    """What is stored of the images of one padded shape (height, width) px."""

    padded: tuple[int, int]
    num_images: int
    num_committed_images: int
    num_shards: int
    num_bytes: int


@dataclass(frozen=True)
class CacheStatistics:
    """What a cache holds. Bytes and elements of an unfinished one are those of its committed shards.

    Attributes:
        levels: in the cache's order.
        shapes: in the order of writing.
        num_bytes: by kind: `maps`, `row_tables`, `rois`, `index`, `teacher_weights`, `rotations` (of the lean codec),
            and `metadata` (all other files).
    """

    levels: tuple[LevelStatistics, ...]
    shapes: tuple[ShapeStatistics, ...]
    num_bytes: dict[str, int]

    @property
    def num_images(self) -> int:
        """Images of the finished cache."""
        return sum(shape.num_images for shape in self.shapes)

    @property
    def num_committed_images(self) -> int:
        """Images whose shards are committed."""
        return sum(shape.num_committed_images for shape in self.shapes)

    @property
    def num_elements(self) -> int:
        """Feature values on all levels."""
        return sum(level.num_elements for level in self.levels)

    @property
    def bits_per_element(self) -> float | None:
        """Over all levels; None while nothing is stored."""
        return 8 * self.num_bytes['maps'] / self.num_elements if self.num_elements else None


def measure(state: CacheState) -> CacheStatistics:
    """Adds up a cache's records and the sizes of its files."""
    levels = [level.to_level() for level in state.description.levels]
    kinds = dict.fromkeys(('maps', 'row_tables', 'rois', 'index', 'teacher_weights', 'rotations'), 0)
    of_level: Counter[str] = Counter()
    of_bucket: Counter[str] = Counter()
    committed: set[ShardKey] = set()
    for file, record in state.manifest.files.items():
        place = file_place(file)
        if place is None:
            kind = {TEACHER_FILE: 'teacher_weights', BASIS_FILE: 'rotations'}.get(file, 'index')
            kinds[kind] += record.num_bytes
            continue
        committed.add(place.key)
        of_bucket[place.key.bucket] += record.num_bytes
        level = next((level.name for level in levels if place.is_of(level)), None)
        kinds['rois' if not place.view else 'row_tables' if level is None else 'maps'] += record.num_bytes
        if level is not None:
            of_level[level] += record.num_bytes
    on_disk = sum(path.stat().st_size for path in state.root.rglob('*') if path.is_file())
    shapes = tuple(
        ShapeStatistics(
            padded=bucket.padded,
            num_images=bucket.num_images,
            num_committed_images=_num_rows(bucket, [key.shard for key in committed if key.bucket == bucket.name]),
            num_shards=bucket.num_shards,
            num_bytes=of_bucket[bucket.name],
        )
        for bucket in state.manifest.buckets
    )
    num_views = len(state.description.views)
    return CacheStatistics(
        levels=tuple(
            LevelStatistics(level, num_views * _num_elements(level, shapes), of_level[level.name]) for level in levels
        ),
        shapes=shapes,
        num_bytes=kinds | {'metadata': max(0, on_disk - sum(kinds.values()))},
    )


def _num_rows(bucket: BucketRecord, shards: list[int]) -> int:
    rows = bucket.rows_per_shard
    return sum(min(rows, bucket.num_images - shard * rows) for shard in shards)


def _num_elements(level: Level, shapes: tuple[ShapeStatistics, ...]) -> int:
    """Values of one view of the committed images."""
    grids = [(shape.num_committed_images, *level.grid(*shape.padded)) for shape in shapes]
    return sum(num_images * level.channels * height * width for num_images, height, width in grids)
