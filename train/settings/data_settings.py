"""What a stage file may say about images: where they are, how they are batched, resized and padded."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, NonNegativeInt, PositiveInt, Tag

from mtpd.options import Options, Share, UserPath


class FilesSettings(Options):
    """A set of images in another layout than COCO's."""

    images: UserPath
    """Image folder; `file_name` in the annotations is relative to it."""
    annotations: UserPath
    """Annotations in COCO's JSON format."""


# Tags instead of trying both, so that an error is about the form that was used.
Split = Annotated[
    Annotated[str, Tag('split')] | Annotated[FilesSettings, Tag('files')],
    Discriminator(lambda value: 'files' if isinstance(value, dict | FilesSettings) else 'split'),
]


Edges = tuple[PositiveInt, PositiveInt]


def _read_scale(value: Any) -> Any:
    """Reads `1333x800` and [1333, 800] as (1333, 800); what is neither is left to the check of the type."""
    if isinstance(value, str):
        edges = value.split('x')
        return tuple(int(edge) for edge in edges) if all(edge.isdecimal() for edge in edges) else value
    return tuple(value) if isinstance(value, list) else value


class GeometrySettings(Options):
    """Resize and padding of the network input, as in mmdet's `Resize` and `Pad`."""

    scale: Annotated[Edges, BeforeValidator(_read_scale, json_schema_input_type=str | Edges)] = (1333, 800)
    """Edges in px that the image must fit, as 1333x800 or [1333, 800]; without keep_ratio its width and height."""
    keep_ratio: bool = True
    """Keep the aspect ratio."""
    pad_divisor: PositiveInt = 32
    """Pad both sides to a multiple of this, px."""
    pad_size: Edges | None = None
    """Minimum height and width of the padded input, px."""


class PhotometricSettings(Options):
    """Colour jitter with the defaults of SSD. The teacher sees the unchanged image."""

    brightness: Share = 0.125
    """Brightness factor, drawn from [1 - value, 1 + value]."""
    contrast: Share = 0.5
    """Contrast factor, drawn from [1 - value, 1 + value]."""
    saturation: Share = 0.5
    """Saturation factor, drawn from [1 - value, 1 + value]."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Hue shift, drawn from [-value, value]; 0.5 is the opposite colour."""
    probability: Share = 0.5
    """Probability of each of the four changes, drawn independently."""


class DataSettings(Options):
    """Images and annotations."""

    coco: UserPath = Path('data/coco')
    """Folder in COCO's layout: `train2017/`, `annotations/instances_train2017.json`, and so on."""
    train: Split = 'train2017'
    """Training images: a split below `coco`, or {images: FOLDER, annotations: FILE}."""
    val: Split | None = 'val2017'
    """Images to evaluate on, in the same forms; null: no evaluation."""
    batch_size: PositiveInt = 16
    """Global batch size (all processes together)."""
    workers: NonNegativeInt = 4
    """Processes that read images; 0: read in the training process."""
    flip: Share = 0.5
    """Probability of a horizontal flip of a training image."""
    photometric: PhotometricSettings | None = None
    """Colour jitter of training images, for the student only; null: none."""
    shuffle: Literal['full', 'shards'] = 'full'
    """`full`: shuffle all images; `shards`: shuffle within 8 shards of the cache at a time, for slow disks."""
    geometry: GeometrySettings | None = None
    """Resize and padding of a stage without a cache; null: from the student's config or from `teacher`."""
