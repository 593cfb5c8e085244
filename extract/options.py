"""Options of the commands that run a teacher over a data set, as their command lines give them."""

from dataclasses import dataclass, fields
from pathlib import Path

from mtpd.cache.format.codecs import CodecName
from mtpd.cache.format.manifest import ViewName
from mtpd.data.coco import coco_paths
from mtpd.detectors.hook_points import HookChoice
from mtpd.detectors.input_options import InputOptions


@dataclass(frozen=True, kw_only=True)
class SourceOptions(InputOptions):
    """Teacher and data set; what is inherited describes the input of a `file.py:callable`."""

    checkpoint: Path | None
    trust_checkpoint: bool
    coco: Path
    split: str
    images: Path | None
    annotations: Path | None
    device: str

    @property
    def input_options(self) -> InputOptions:
        return InputOptions(**{field.name: getattr(self, field.name) for field in fields(InputOptions)})

    @property
    def data_paths(self) -> tuple[Path, Path]:
        if self.images is not None and self.annotations is not None:
            return self.images, self.annotations
        return coco_paths(self.coco, self.split)


@dataclass(frozen=True, kw_only=True)
class ExtractOptions(SourceOptions):
    """Options of `mtpd-extract`; `part` is (index, count) from 1, `local_rank` the GPU that torchrun assigns."""

    teacher: str
    out: Path | str  # a URL is a string
    levels: tuple[str, ...] | None
    hook: HookChoice
    codec: CodecName
    error: float | None
    views: tuple[ViewName, ...]
    rois: int
    license_name: str | None
    batch_size: int
    workers: int
    shard_mb: float
    part: tuple[int, int] | None
    limit: int | None
    resume: bool
    overwrite: bool
    dry_run: bool
    local_rank: int | None = None
