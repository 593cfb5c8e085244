"""A small cache of random maps with known truth."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from mtpd.cache.format.arrays import RoisRecord
from mtpd.cache.format.codecs import DEFAULT_TARGET, CodecName, encode, expected_bytes
from mtpd.cache.format.manifest import Description, GeometryRecord, LevelRecord, ViewName
from mtpd.cache.format.plan import CachePlan, SourceImage, plan_cache
from mtpd.cache.writing.parts import WHOLE, Part
from mtpd.cache.writing.remote_destination import destination_of
from mtpd.cache.writing.writer import CacheWriter
from mtpd.geometry import Geometry, Level
from mtpd.heads.rois import ImageRois

LEVELS = (Level('p3', 8, 4), Level('p4', 16, 6))
GEOMETRY = Geometry((96, 64))
IMAGES = tuple(SourceImage(100 - number, (64, 96) if number % 3 else (96, 64)) for number in range(11))


@dataclass(frozen=True)
class Recipe:
    """What a test cache is made of."""

    codec: CodecName = 'int8'
    views: tuple[ViewName, ...] = ('plain', 'flip')
    fingerprint: dict[str, str] = field(default_factory=lambda: {'weights': 'abc'})
    images: Sequence[SourceImage] = IMAGES
    shard_bytes: int = 1000
    bias: float = 1.0
    rois: RoisRecord | None = None

    def plan(self) -> CachePlan:
        """Two buckets with two and one rows a shard."""
        return plan_cache(
            self.images,
            geometry=GEOMETRY,
            levels=LEVELS,
            bytes_per_element=expected_bytes(self.codec),
            shard_bytes=int(self.shard_bytes * expected_bytes(self.codec)),
        )

    def description(self) -> Description:
        """The manifest's part that is known before the teacher runs."""
        return Description(
            fingerprint=self.fingerprint,
            provenance={'teacher': 'random'},
            levels=tuple(LevelRecord(**vars(level)) for level in LEVELS),
            codec=self.codec,
            target_error=DEFAULT_TARGET if self.codec == 'lean' else None,
            views=self.views,
            geometry=GeometryRecord(**vars(GEOMETRY)),
            rois=self.rois,
        )

    def writer(self, out: Path | str, *, part: Part = WHOLE) -> CacheWriter:
        """A writer that has not been entered."""
        weights = safetensors.torch.save({'neck.weight': torch.arange(3.0)})
        return CacheWriter(
            destination_of(out, part=part),
            description=self.description(),
            plan=self.plan(),
            teacher_weights=weights,
        )

    def maps(self, image: SourceImage, view: str) -> dict[str, Tensor]:
        """The teacher's maps of an image: random, but always the same."""
        padded = GEOMETRY.padded(image.size)
        generator = torch.Generator().manual_seed(2 * image.image_id + (view == 'flip'))
        return {
            level.name: torch.randn(level.channels, *level.grid(*padded), generator=generator) * 3 + self.bias
            for level in LEVELS
        }

    def rois_of(self, image: SourceImage) -> ImageRois:
        """The teacher's proposals on an image: random in number and in values, but always the same."""
        assert self.rois is not None
        generator = torch.Generator().manual_seed(image.image_id)
        num_rois = image.image_id % (self.rois.num_rois + 1)
        corners = 90 * torch.rand(num_rois, 2, generator=generator)
        probabilities = torch.randn(num_rois, self.rois.num_classes + 1, generator=generator).softmax(1)
        return ImageRois(
            boxes=torch.cat([corners, corners + 50 * torch.rand(num_rois, 2, generator=generator)], dim=1),
            probabilities=probabilities.half().float(),
            labels=probabilities[:, :-1].argmax(1),
            deltas=torch.randn(num_rois, 4, generator=generator),
        )

    def write(self, out: Path | str, *, num_groups: int | None = None, part: Part = WHOLE) -> None:
        """Writes all pending groups of a part and the manifest, or only the first `num_groups`."""
        with self.writer(out, part=part) as writer:
            bases = writer.bases(random_bases) if self.codec == 'lean' else {}
            for key in writer.pending()[:num_groups]:
                group = writer.start_group(key)
                for view in self.views:
                    for image in writer.plan.images(key):
                        maps = self.maps(image, view)
                        group.append(
                            view,
                            {name: encode(one[None], self.codec, basis=bases.get(name)) for name, one in maps.items()},
                        )
                if self.rois is not None:
                    group.append_rois([self.rois_of(image) for image in writer.plan.images(key)])
                writer.commit(group)
            if num_groups is None:
                writer.finish()


def random_bases() -> dict[str, Tensor]:
    """Orthonormal columns for each level."""
    generator = torch.Generator().manual_seed(0)
    return {
        level.name: torch.linalg.qr(torch.randn(level.channels, level.channels, generator=generator))[0]
        for level in LEVELS
    }


@pytest.fixture
def recipe() -> Recipe:
    """The default test cache."""
    return Recipe()


@pytest.fixture(scope='session')
def with_rois() -> Recipe:
    """The recipe of a cache that holds up to 5 proposals an image."""
    return Recipe(rois=RoisRecord(num_rois=5, num_classes=3))


@pytest.fixture(scope='session')
def make_recipe() -> Callable[..., Recipe]:
    """Builds recipes that differ from the default."""
    return Recipe


@pytest.fixture(scope='session')
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cache of the default recipe. Not to be changed."""
    root = tmp_path_factory.mktemp('sound') / 'cache'
    Recipe().write(root)
    return root


@pytest.fixture(scope='session')
def sound_with_rois(tmp_path_factory: pytest.TempPathFactory, with_rois: Recipe) -> Path:
    """A finished cache with proposals. Not to be changed."""
    root = tmp_path_factory.mktemp('sound') / 'cache'
    with_rois.write(root)
    return root


@pytest.fixture
def cache_root(tmp_path: Path, sound: Path) -> Path:
    """A finished cache of the default recipe that may be changed."""
    return Path(shutil.copytree(sound, tmp_path / 'cache'))
